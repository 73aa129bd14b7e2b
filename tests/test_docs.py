"""What the READMEs, the manual and the notebook show works, and the manual builds without a warning.

Each page's code runs in a folder of its own, in the order of the page: Python in one namespace; `electra-fast` commands
on a small text, with models shrunk to seconds; YAML as config files; `make` by whether there is such a target. A block
after `<!-- not run: REASON -->` is left out. A service, a line that ends in `&`, runs at a free port, which takes
the place of the page's in what follows, up to `kill %1`.
"""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest

from electra_fast.cli import COMMANDS, PROG, main
from electra_fast.data.prepare import prepare
from electra_fast.data.tokenizer import train_wordpiece
from electra_fast.pretraining.config_file import read_config
from electra_fast.pretraining.train import pretrain

ROOT = Path(__file__).parents[1]
READMES = ("README.md", "README.zh-CN.md")
FENCE = re.compile(r"(?:^<!-- not run: (.+?) -->\n)?^```(\w*)[^\n]*\n(.*?)^```$", re.MULTILINE | re.DOTALL)
WORDS = [
    *"abcdefgh",
    "this",
    "function",
    "returns",
    "takes",
    "list",
    "strings",
    "value",
    "because",
    "the",
    "of",
    "@",
    "#",
]
SHRUNK = {
    "model.embedding_size": 8,
    "model.hidden_size": 16,
    "model.num_hidden_layers": 1,
    "model.num_attention_heads": 1,
    "model.intermediate_size": 16,
    "model.generator.hidden_size": 8,
    "model.generator.num_hidden_layers": 1,
    "model.generator.num_attention_heads": 1,
    "model.generator.intermediate_size": 16,
    "data.batch_size": 4,
    "data.max_length": 32,
    "training.steps": 2,
    "training.eval_batches": 1,
    "training.device": "cpu",
}


class Block(NamedTuple):
    """A fenced block of a page."""

    not_run: str | None  # the reason
    language: str
    code: str
    line: int


def blocks(page: Path) -> list[Block]:
    text = page.read_text(encoding="utf-8")
    return [Block(m[1], m[2], m[3], text.count("\n", 0, m.start(2)) + 1) for m in FENCE.finditer(text)]


def runs(page: Path) -> bool:
    return any(block.language != "text" and not block.not_run for block in blocks(page))


# The other README has the same code: see test_readmes_say_the_same.
PAGES = [page for page in [ROOT / READMES[0], *sorted((ROOT / "docs").glob("*.md"))] if runs(page)]


@pytest.fixture(scope="session")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with what the pages take for granted: text.txt, reviews.csv and a finished runs/demo."""
    folder = tmp_path_factory.mktemp("docs")
    g = np.random.default_rng(3)
    for name, documents in (("text.txt", 120), ("held_out.txt", 30)):
        text = "\n\n".join(" ".join(g.choice(WORDS, g.integers(8, 60))) + "." for _ in range(documents))
        (folder / name).write_text(text + "\n", encoding="utf-8")
    reviews = [(" ".join(g.choice(WORDS, 6)), name) for name in ("good", "bad") * 12]
    (folder / "reviews.csv").write_text("\n".join(["text,label", *map(",".join, reviews)]) + "\n", encoding="utf-8")
    demo = folder / "runs" / "demo"
    train_wordpiece([folder / "text.txt"], demo / "tokenizer", vocab_size=120)
    for part, name in (("train", "text.txt"), ("valid", "held_out.txt")):
        prepare([folder / name], demo / "tokenizer", demo / "corpus" / part, progress=False)
    corpora = {"data.train": str(demo / "corpus" / "train"), "data.valid": str(demo / "corpus" / "valid")}
    pretrain(read_config("tiny", SHRUNK | corpora | {"output": str(demo)}), progress=False)
    return folder


class Background:
    """The service that a page has started."""

    def __init__(self) -> None:
        self.process: subprocess.Popen[str] | None = None
        self.address = {"": ""}  # the page's -> the real one

    def start(self, words: list[str]) -> None:
        given = words[words.index("--port") + 1]
        command = [sys.executable, "-m", "electra_fast", "serve", *words, "--port", "0", "--device", "cpu"]
        environment = os.environ | {"PYTHONPATH": str(ROOT)}
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment)
        line = self.process.stdout.readline()
        assert "http://" in line, "the service did not start: see standard error"
        self.address = {f"http://127.0.0.1:{given}": line[line.index("http://") :].split()[0]}

    def with_address(self, code: str) -> str:
        ((given, real),) = self.address.items()
        return code.replace(given, real) if given else code

    def stop(self) -> None:
        self.process.terminate()
        output, _ = self.process.communicate(timeout=600)
        assert (self.process.returncode, output) == (0, "ended\n")


@pytest.fixture
def background() -> Iterator[Background]:
    service = Background()
    yield service
    if service.process is not None and service.process.poll() is None:
        service.process.kill()
        service.process.communicate()


@pytest.mark.usefixtures("no_pictures")
@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_code_on_the_page_works(
    page: Path,
    world: Path,
    tmp_path: Path,
    background: Background,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    folder = tmp_path / "work"
    shutil.copytree(world, folder)
    monkeypatch.chdir(folder)
    namespace: dict[str, object] = {"__name__": "__main__"}
    ran = 0
    for block in blocks(page):
        where = f"{page.name}, line {block.line}"
        if block.not_run or block.language == "text":
            continue
        ran += 1
        if block.language == "python":
            code = background.with_address(block.code)
            exec(compile("\n" * block.line + code, str(page), "exec"), namespace)
        elif block.language == "yaml":
            Path("page.yaml").write_text(block.code, encoding="utf-8")
            read_config("page.yaml")
        elif block.language == "sh":
            for line in block.code.replace("\\\n", "").splitlines():
                _run_line(shlex.split(background.with_address(line), comments=True), where, background, capsys)
        else:
            pytest.fail(f"{where}: a block of language {block.language!r}, which nothing runs")
    assert ran


def _run_line(words: list[str], where: str, background: Background, capsys: pytest.CaptureFixture[str]) -> None:
    if not words or words == [".", ".venv/bin/activate"]:
        return
    if words[-1] == "&":
        assert words[:2] == [PROG, "serve"], f"{where}: in the background run services only"
        return background.start(words[2:-1])
    if words == ["kill", "%1"]:
        return background.stop()
    if words[0] == "curl":
        if shutil.which("curl"):
            asked = subprocess.run(words, capture_output=True, text=True, timeout=600)
            assert asked.returncode == 0, f"{where}: {asked.stdout}{asked.stderr}"
        return
    if words[0] == "make":
        assert words[1] in _make_targets(), f"{where}: the Makefile has no target {words[1]}"
        return
    assert words[0] == PROG, f"{where}: {words[0]} is neither {PROG} nor make"
    shrunk = [word for key, value in SHRUNK.items() for word in (f"--{key}", str(value))]
    # Of a model so small one number's rounding may be beyond what is allowed, where its terms cancel: no fresh draw.
    more = {"pretrain": shrunk, "verify": ["--seed", "1"]}.get(words[1], [])
    code = main([*words[1:], *more])
    assert code == 0, f"{where}: {shlex.join(words)} ended with {code}:\n{capsys.readouterr().err}"


def _make_targets() -> set[str]:
    return set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE))


def test_examples_in_help_parse() -> None:
    """The page of commands shows these."""
    for name, command in COMMANDS.items():
        examples = [line.strip() for line in command.parser().epilog.splitlines()[1:]]
        assert examples, name
        for example in examples:
            words = shlex.split(example)
            assert words[:2] == [PROG, name]
            command.parser().parse_args(words[2:], defaults=command.defaults)


def test_every_metric_of_a_run_is_explained(world: Path) -> None:
    lines = (world / "runs" / "demo" / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    evaluation = [row for row in map(json.loads, lines) if row["kind"] == "eval"][-1]
    explained = set(re.findall(r"`(\w+)`", (ROOT / "docs" / "concepts.md").read_text(encoding="utf-8")))
    assert evaluation.keys() - {"kind", "step"} <= explained


def test_readmes_say_the_same() -> None:
    """Same headings, code, figures and links, in another language."""
    texts = [(ROOT / name).read_text(encoding="utf-8") for name in READMES]
    english, chinese = [FENCE.sub("", text) for text in texts]
    for pattern in (r"^#+ ", r"\]\(([^)]*)\)", r"^\|(?:-+\|)+$", r"\d+\.\d{2,}", r"`[^`\n]+`"):
        found = [sorted(re.findall(pattern, text, re.MULTILINE)) for text in (english, chinese)]
        found = [[match for match in matches if match not in READMES] for matches in found]  # each may name the other
        assert found[0] == found[1], pattern
    code = [[(b.language, _without_comments(b.code)) for b in blocks(ROOT / name)] for name in READMES]
    assert code[0] == code[1]


def _without_comments(code: str) -> str:
    return re.sub(r"\s*#.*", "", code)


@pytest.mark.parametrize("name", [*READMES, "CHANGELOG.md"])
def test_local_links_lead_somewhere(name: str) -> None:
    links = re.findall(r"\]\(([^)#\s]+)[^)]*\)", (ROOT / name).read_text(encoding="utf-8"))
    assert [link for link in links if "://" not in link and not (ROOT / link).exists()] == []


def test_manual_builds_without_warnings(tmp_path: Path) -> None:
    """And it is complete: every command, setting and operator; and it asks no other host for anything."""
    from electra_fast import ops

    built = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", tmp_path / "site"],
        cwd=ROOT,
        env=os.environ | {"NO_MKDOCS_2_WARNING": "1", "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
    )
    assert (built.returncode, built.stdout + built.stderr) == (0, "")

    site = {page.stem: page.read_text(encoding="utf-8") for page in (tmp_path / "site").glob("*.html")}
    for name in COMMANDS:
        assert f'<h2 id="{name}">' in site["commands"]
    for key in ("optimizer.lr", "model.generator.hidden_size", "training.keep_checkpoints"):
        assert f"<code>{key} " in site["recipe"]
    functions = [name for name in ops.__all__ if name.islower() and name != "random"]
    assert [
        name for name in functions if not re.search(rf'id="electra_fast\.ops\.(\w+\.)?{name}"', site["operators"])
    ] == []
    for name, html in site.items():
        assert re.findall(r"<(?:script|img|iframe)[^>]+src=[\"']?https?:[^>]*>", html) == [], name
        assert re.findall(r"<link[^>]+rel=[\"']?stylesheet[^>]+href=[\"']?https?:[^>]*>", html) == [], name


def test_notebook_runs(world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import nbformat
    from nbclient import NotebookClient

    notebook = nbformat.read(ROOT / "examples" / "first_steps.ipynb", as_version=4)
    (parameters,) = [cell for cell in notebook.cells if "parameters" in cell.metadata.get("tags", [])]
    parameters.source += f"\nSTEPS = 3\nTRAIN, VALID = {str(world / 'text.txt')!r}, {str(world / 'held_out.txt')!r}"
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    limits = {"timeout": 600, "startup_timeout": 300}
    NotebookClient(notebook, **limits, resources={"metadata": {"path": str(tmp_path)}}).execute()

    outputs = json.dumps([cell.get("outputs", []) for cell in notebook.cells])
    assert "image/png" in outputs
    assert (tmp_path / "runs" / "first_steps" / "discriminator" / "model.safetensors").is_file()
