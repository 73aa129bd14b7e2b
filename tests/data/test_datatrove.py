"""Corpora that many tasks made: the bytes of `prepare`, however many, and nothing that looks whole before it is."""

from __future__ import annotations

import copy
import gzip
import importlib.util
import json
import os
import pickle
import sysconfig
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import fsspec
import numpy as np
import pytest

from electra_fast.data.corpus import Corpus
from electra_fast.data.prepare import prepare
from electra_fast.data.tokenizer import save_tokenizer, train_wordpiece
from tests.data.texts import SYLLABLES, random_documents, write_text
from tests.small import folder_bytes

if importlib.util.find_spec("datatrove") is None:
    pytest.skip("datatrove is not installed: pip install 'electra-fast[datatrove]'", allow_module_level=True)

import dill
import loguru
from datatrove.data import Document
from datatrove.executor import LocalPipelineExecutor, SlurmPipelineExecutor
from datatrove.pipeline.base import PipelineStep
from datatrove.pipeline.readers import JsonlReader

from electra_fast.data.datatrove import CorpusMerger, CorpusTokenizer, DocumentReader

LocalExecutor = partial(LocalPipelineExecutor, workers=1)  # in this process


@pytest.fixture(autouse=True)
def quiet() -> Iterator[None]:
    loguru.logger.remove()
    yield
    loguru.logger.remove()


@pytest.fixture
def saved(tmp_path: Path, tokenizer) -> Path:
    save_tokenizer(tokenizer, tmp_path / "tokenizer")
    return tmp_path / "tokenizer"


def write_lines(path: Path, documents: list[str], **fields: list) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    rows = [dict(zip(["text", *fields], row, strict=True)) for row in zip(documents, *fields.values(), strict=True)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def write_texts(folder: Path, g: np.random.Generator, files: int, documents: int) -> list[Path]:
    """Files of JSON lines below `folder` with duplicates and blank documents, and one without any; by name."""
    shared = random_documents(g, 5, most_words=9)
    paths = []
    for number in g.permutation(files).tolist():
        texts = [*random_documents(g, documents, most_words=30), *shared, " \n", "\u00ad", ""]
        texts = [texts[i] for i in g.permutation(len(texts))] if number else []
        entities = [[[0, 1]] if len(text) > 3 else [] for text in texts]
        paths.append(write_lines(folder / f"{'deep/' * (number % 2)}{number:02d}.jsonl", texts, entities=entities))
    return sorted(paths, key=str)


def run(*steps: PipelineStep, tasks: int = 1) -> None:
    """As an executor does, task after task."""
    for rank in range(tasks):
        data = None
        for step in copy.deepcopy(steps):
            data = step(data, rank, tasks)


@pytest.mark.parametrize("options", [{}, {"deduplicate": True}, {"units": ["entity", "word"]}], ids=str)
def test_the_bytes_of_prepare_for_any_number_of_tasks(
    tmp_path: Path, saved: Path, rng_seed: int, options: dict[str, object]
) -> None:
    paths = write_texts(tmp_path / "texts", np.random.default_rng(rng_seed), 9, 20)
    prepare(paths, saved, tmp_path / "expected", shard_tokens=501, progress=False, **options)
    expected = folder_bytes(tmp_path / "expected")
    duplicates = Corpus.open(tmp_path / "expected", verify=True).meta.duplicate_documents
    assert duplicates is None if "deduplicate" not in options else duplicates >= 7 * 5  # eight files hold the same five
    for tasks in (1, 2, 5, 11):  # 11: one reads the file without documents, two read none
        parts, output = f"{tmp_path}/parts{tasks}", tmp_path / f"corpus{tasks}"
        run(JsonlReader(str(tmp_path / "texts")), CorpusTokenizer(parts, saved, **options), tasks=tasks)
        run(CorpusMerger(parts, output, saved, shard_tokens=501, progress=False))
        assert folder_bytes(output) == expected


def test_every_format_that_prepare_reads(tmp_path: Path, saved: Path, tokenizer, rng_seed: int) -> None:
    g = np.random.default_rng(rng_seed)
    folder = tmp_path / "texts"
    paths = write_texts(folder, g, 3, 5)
    paths.append(write_text(folder / "z.txt", random_documents(g, 30)))
    paths.append(folder / "z.txt.gz")
    paths[-1].write_bytes(gzip.compress(b"ki lo\n\nmu\n"))
    prepare(paths, saved, tmp_path / "expected", progress=False)
    run(DocumentReader(str(folder)), CorpusTokenizer(f"{tmp_path}/parts", saved), tasks=2)
    run(CorpusMerger(f"{tmp_path}/parts", tmp_path / "corpus", saved, progress=False))
    assert folder_bytes(tmp_path / "corpus") == folder_bytes(tmp_path / "expected")

    lines = [path for path in paths if path.suffix == ".jsonl"]
    prepare(lines, saved, tmp_path / "entities", units=["entity"], progress=False)
    reader = DocumentReader(str(folder), entities_field="entities", glob_pattern="**/*.jsonl")
    run(reader, CorpusTokenizer(f"{tmp_path}/parts2", saved, units=["entity"]), tasks=2)
    run(CorpusMerger(f"{tmp_path}/parts2", tmp_path / "corpus2", saved, progress=False))
    assert folder_bytes(tmp_path / "corpus2") == folder_bytes(tmp_path / "entities")
    with pytest.raises(ValueError, match=r"entities are read from JSON lines and wiki dumps, and .*z\.txt"):
        list(DocumentReader(str(folder), entities_field="entities", glob_pattern="*.txt").run())
    with pytest.raises(ValueError, match=r"z\.txt, line 1: not JSON"):
        list(DocumentReader(str(folder), format="jsonl", glob_pattern="*.txt").run())
    with pytest.raises(ValueError, match="format must be one of"):
        DocumentReader(str(folder), format="csv")


def test_a_filter_between_and_parts_and_corpus_behind_urls(
    tmp_path: Path, saved: Path, rng_seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ELECTRA_FAST_CACHE", str(tmp_path / "cache"))
    memory = fsspec.filesystem("memory")
    place = f"memory://{tmp_path.name}{rng_seed}"  # all tests of a process share that storage
    g = np.random.default_rng(rng_seed)
    documents = [[*random_documents(g, 20, most_words=9), "words of this are left out"] for _ in range(4)]
    for number, part in enumerate(documents):
        write_lines(tmp_path / "texts" / f"{number}.jsonl", part)
        memory.pipe_file(f"{place}/texts/{number}.jsonl", (tmp_path / "texts" / f"{number}.jsonl").read_bytes())
        write_lines(tmp_path / "kept" / f"{number}.jsonl", part[:-1])
    try:
        prepare(sorted((tmp_path / "kept").iterdir()), saved, tmp_path / "expected", progress=False)
        for reader in (JsonlReader(f"{place}/texts"), DocumentReader(f"{place}/texts")):
            run(reader, _Without("words of this"), CorpusTokenizer(f"{place}/parts", saved), tasks=3)
            run(CorpusMerger(f"{place}/parts", f"{place}/corpus", saved, progress=False, overwrite=True))
            corpus = Corpus.open(f"{place}/corpus", verify=True)
            assert folder_bytes(corpus.folder) == folder_bytes(tmp_path / "expected")
    finally:
        memory.rm(place, recursive=True)


class _Without(PipelineStep):
    """Drops documents that begin in a certain way."""

    name, type = "without", "FILTER"

    def __init__(self, beginning: str) -> None:
        super().__init__()
        self.beginning = beginning

    def run(self, data: Iterator[Document], rank: int = 0, world_size: int = 1) -> Iterator[Document]:
        return (document for document in data if not document.text.startswith(self.beginning))


class _FailAt(PipelineStep):
    """Fails in one task after some documents, while a file is there."""

    name, type = "fail", "FILTER"

    def __init__(self, flag: Path, task: int) -> None:
        super().__init__()
        self.flag, self.task = flag, task

    def run(self, data: Iterator[Document], rank: int = 0, world_size: int = 1) -> Iterator[Document]:
        for number, document in enumerate(data):
            if number == 10 and rank == self.task and self.flag.exists():
                raise RuntimeError("the node is gone")
            yield document


def test_stopped_tasks_and_a_stopped_merge(
    tmp_path: Path, saved: Path, rng_seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    paths = write_texts(tmp_path / "texts", np.random.default_rng(rng_seed), 6, 20)
    prepare(paths, saved, tmp_path / "expected", progress=False)
    parts, output, flag = tmp_path / "parts", tmp_path / "out" / "corpus", tmp_path / "flag"
    flag.touch()

    def tokenizing(**options: object) -> LocalPipelineExecutor:
        reader, log = JsonlReader(str(tmp_path / "texts")), str(tmp_path / "log")
        steps = [reader, _FailAt(flag, 1), CorpusTokenizer(str(parts), saved)]
        return LocalExecutor(steps, tasks=3, logging_dir=log, **options)

    def merging(number: int) -> LocalPipelineExecutor:
        return LocalExecutor(
            [CorpusMerger(str(parts), output, saved, progress=False)], logging_dir=str(tmp_path / f"merge{number}")
        )

    with pytest.raises(RuntimeError, match="the node is gone"):
        tokenizing().run()
    assert sorted(path.name for path in parts.glob("*.json")) == ["00000.json"]
    with pytest.raises(ValueError, match=r"2 of 3 tasks are not done \(1, 2\): run them, then merge"):
        merging(0).run()
    assert not output.parent.exists()
    flag.unlink()
    first = (parts / "00000.bin").stat().st_mtime_ns
    tokenizing().run()  # what was done is not done again
    assert (parts / "00000.bin").stat().st_mtime_ns == first

    flag.touch()
    with pytest.raises(RuntimeError, match="the node is gone"):
        tokenizing(skip_completed=False).run()
    with pytest.raises(ValueError, match=r"1 of 3 tasks are not done \(1\)"):  # though it was, once
        merging(1).run()
    flag.unlink()
    tokenizing(skip_completed=False).run()

    with monkeypatch.context() as patch:
        patch.setattr("electra_fast.data.corpus.CorpusMeta.write", _interrupt)
        with pytest.raises(KeyboardInterrupt):
            merging(2).run()
    assert list(output.parent.iterdir()) == []
    merging(2).run()
    assert folder_bytes(output) == folder_bytes(tmp_path / "expected")
    with pytest.raises(ValueError, match=r"corpus exists; choose another or overwrite it"):
        merging(3).run()


def _interrupt(*_: object) -> None:
    raise KeyboardInterrupt


def test_several_processes_on_real_text(tmp_path: Path, shared_data: Callable[[str], Path]) -> None:
    """A pool of two workers, which get the steps pickled, as datatrove's other executors send them."""
    text = shared_data("pretrain_en/wiki_en.valid.txt").read_text(encoding="utf-8")
    vocab = shared_data("vocab/bert-base-uncased.vocab.txt")
    documents = [document for document in text.split("\n\n") if document.strip()]
    assert len(documents) == 264
    (tmp_path / "texts").mkdir()
    paths = [write_text(tmp_path / "texts" / f"{i}.txt", documents[60 * i : 60 * (i + 1)]) for i in range(5)]
    prepare(paths, vocab, tmp_path / "expected", progress=False, deduplicate=True)
    steps = [DocumentReader(str(tmp_path / "texts")), CorpusTokenizer(f"{tmp_path}/parts", vocab, deduplicate=True)]
    tokenizing = LocalPipelineExecutor(steps, tasks=4, workers=2, logging_dir=f"{tmp_path}/log")
    merger = CorpusMerger(f"{tmp_path}/parts", tmp_path / "corpus", vocab, progress=False)
    LocalExecutor([merger], depends=tokenizing, logging_dir=f"{tmp_path}/log2").run()
    assert folder_bytes(tmp_path / "corpus") == folder_bytes(tmp_path / "expected")
    assert Corpus.open(tmp_path / "corpus", verify=True).num_documents == 264
    stats = json.loads((tmp_path / "log" / "stats.json").read_text())
    assert stats[1]["stats"]["tokens"]["total"] == Corpus.open(tmp_path / "corpus").num_tokens


def test_slurm_runs_the_same_steps(tmp_path: Path, saved: Path, rng_seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """All but Slurm itself: the executor that a job reads from its file, and the ranks that it is told."""
    paths = write_texts(tmp_path / "texts", np.random.default_rng(rng_seed), 5, 10)
    prepare(paths, saved, tmp_path / "expected", progress=False)
    launched: list[str] = []
    monkeypatch.setattr(
        "datatrove.executor.slurm.launch_slurm_job", lambda script, *_: launched.append(script) or str(len(launched))
    )
    options = {"time": "1:00:00", "partition": "cpu", "requeue_signals": None}
    steps = [JsonlReader(str(tmp_path / "texts")), CorpusTokenizer(f"{tmp_path}/parts", saved)]
    tokenizing = SlurmPipelineExecutor(steps, tasks=3, logging_dir=f"{tmp_path}/log", **options)
    merger = CorpusMerger(f"{tmp_path}/parts", tmp_path / "corpus", saved, progress=False)
    SlurmPipelineExecutor([merger], tasks=1, depends=tokenizing, logging_dir=f"{tmp_path}/log2", **options).run()
    assert sum("launch_pickled_pipeline" in script for script in launched) == 2
    monkeypatch.setenv("SLURM_NODELIST", "node1")
    monkeypatch.setattr("datatrove.executor.slurm.expand_slurm_nodelist", lambda nodes: [nodes])
    for log, tasks in (("log", 3), ("log2", 1)):
        for task in range(tasks):
            monkeypatch.setenv("SLURM_ARRAY_TASK_ID", str(task))
            dill.loads((tmp_path / log / "executor.pik").read_bytes()).run()
    assert folder_bytes(tmp_path / "corpus") == folder_bytes(tmp_path / "expected")


SBATCH = """#!/bin/bash
script="${@: -1}"
last=$(sed -n 's/^#SBATCH --array=0-\\([0-9]*\\).*/\\1/p' "$script")
for task in $(seq 0 "$last"); do
    SLURM_ARRAY_TASK_ID=$task SLURM_NODELIST=node1 bash "$script" >&2 || exit 1
done
echo "Submitted batch job 1"
"""
SRUN = """#!/bin/bash
while [ "$1" != launch_pickled_pipeline ]; do shift; done
exec "$@"
"""


@pytest.mark.skipif(
    os.environ.get("ELECTRA_FAST_TEST_ALL") != "1", reason="takes 20 s of processes: set ELECTRA_FAST_TEST_ALL=1"
)
def test_the_script_that_slurm_gets(
    tmp_path: Path, saved: Path, rng_seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With a Slurm of three shell scripts, which runs each job where it is submitted, at once."""
    (tmp_path / "bin").mkdir()
    for name, script in (("sbatch", SBATCH), ("srun", SRUN), ("scontrol", "#!/bin/bash\necho node1\n")):
        (tmp_path / "bin" / name).write_text(script)
        (tmp_path / "bin" / name).chmod(0o755)
    monkeypatch.setenv("PATH", os.pathsep.join([f"{tmp_path}/bin", sysconfig.get_path("scripts"), os.environ["PATH"]]))
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parents[2]))
    paths = write_texts(tmp_path / "texts", np.random.default_rng(rng_seed), 3, 10)
    prepare(paths, saved, tmp_path / "expected", progress=False)
    slurm = partial(SlurmPipelineExecutor, time="1:00:00", partition="cpu")
    steps = [DocumentReader(str(tmp_path / "texts")), CorpusTokenizer(f"{tmp_path}/parts", saved)]
    tokenizing = slurm(steps, tasks=2, logging_dir=f"{tmp_path}/log")
    merger = CorpusMerger(f"{tmp_path}/parts", tmp_path / "corpus", saved)
    slurm([merger], tasks=1, depends=tokenizing, logging_dir=f"{tmp_path}/log2").run()
    assert folder_bytes(tmp_path / "corpus") == folder_bytes(tmp_path / "expected")


def test_steps_are_small_where_they_travel(tmp_path: Path, saved: Path) -> None:
    step = CorpusTokenizer(f"{tmp_path}/parts", saved, units=["word"], deduplicate=True)
    for library in (pickle, dill):
        sent = library.dumps(step)
        assert len(sent) < (saved / "tokenizer.json").stat().st_size + 3000
        back = library.loads(sent).encoder
        assert (back.units.kinds, back.deduplicate, back.tokenizer_sha256) == (
            ("word",),
            True,
            step.encoder.tokenizer_sha256,
        )


@pytest.fixture
def parts(tmp_path: Path, saved: Path, rng_seed: int) -> Path:
    """Of two tasks."""
    write_texts(tmp_path / "texts", np.random.default_rng(rng_seed), 4, 10)
    run(JsonlReader(str(tmp_path / "texts")), CorpusTokenizer(f"{tmp_path}/parts", saved, units=["word"]), tasks=2)
    return tmp_path / "parts"


def test_damaged_parts_are_named(tmp_path: Path, saved: Path, parts: Path, rng_seed: int) -> None:
    g = np.random.default_rng(rng_seed)
    merger = CorpusMerger(str(parts), tmp_path / "corpus", saved, progress=False)
    for file in sorted(parts.iterdir()):
        content = file.read_bytes()
        places = [0, len(content) - 1, *g.integers(0, len(content), 20).tolist()]
        flipped = [content[:i] + bytes([content[i] ^ 4]) + content[i + 1 :] for i in places]
        for damaged in (*flipped, content[:-1], content[: len(content) // 2], b""):
            file.write_bytes(damaged)
            with pytest.raises(ValueError, match=rf"{file.name} is damaged.*: .*run (its task|task {int(file.stem)})"):
                run(merger)
        file.write_bytes(content)
    assert not (tmp_path / "corpus").exists()
    run(merger)
    assert Corpus.open(tmp_path / "corpus", verify=True).num_documents > 0


def test_parts_that_do_not_belong_together(tmp_path: Path, saved: Path, parts: Path) -> None:
    reader, merger = JsonlReader(str(tmp_path / "texts")), CorpusMerger(str(parts), tmp_path / "corpus", saved)
    with pytest.raises(ValueError, match="give its pipeline tasks=1, not 2"):
        run(merger, tasks=2)
    train_wordpiece(sorted((tmp_path / "texts").rglob("*.jsonl")), tmp_path / "other", vocab_size=120)
    with pytest.raises(ValueError, match="holds parts of another tokenizer than"):
        run(CorpusMerger(str(parts), tmp_path / "corpus", tmp_path / "other"))
    with pytest.raises(ValueError, match="holds no parts of a corpus: tasks with the step CorpusTokenizer write them"):
        run(CorpusMerger(f"{tmp_path}/none", tmp_path / "corpus", saved))
    list(CorpusTokenizer(str(parts), saved, units=["word"]).run(reader.run(None, 0, 3), 0, 3) or ())
    with pytest.raises(ValueError, match="holds parts of runs with different numbers of tasks: empty it"):
        run(merger)
    CorpusTokenizer(str(parts), saved).run(reader.run(None, 0, 2), 0, 2)
    with pytest.raises(ValueError, match="holds parts of different tokenizers or options"):
        run(merger)
    for rank in range(2):  # both read all files
        CorpusTokenizer(str(parts), saved).run(reader.run(), rank, 2)
    with pytest.raises(ValueError, match=r"documents of .*jsonl are in the parts of tasks 0 and 1"):
        run(merger)
    os.rename(parts / "00000.json", parts / "00007.json")
    with pytest.raises(ValueError, match=r"00007\.json is damaged: it is of task 0"):
        run(merger)
    assert not (tmp_path / "corpus").exists()


def test_documents_that_can_not_be_taken(tmp_path: Path, saved: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TOKENIZERS_PARALLELISM", raising=False)  # another test's libraries may have set it
    step = CorpusTokenizer(f"{tmp_path}/parts", saved, units=["entity"])
    for document, message in (
        (Document("ba", "7/1"), r"document '7/1' does not name its file in metadata\['file_path'\]"),
        (Document("ba \ud800", "a", metadata={"file_path": "a"}), "document 'a' holds a lone surrogate"),
        (Document("ba", "a", metadata={"file_path": "a", "entities": [[1, 9]]}), r"document 'a': the entity \[1, 9\]"),
    ):
        with pytest.raises(ValueError, match=message):
            step.run([document])
        assert not (tmp_path / "parts" / "00000.json").exists()
    with pytest.raises(ValueError, match="put a reader of files before it"):
        step.run(None)
    CorpusTokenizer(f"{tmp_path}/parts", saved, file_key="shelf").run(
        [Document(SYLLABLES[0], "a", metadata={"shelf": "x"})]
    )
    run(CorpusMerger(f"{tmp_path}/parts", tmp_path / "corpus", saved, progress=False))
    assert Corpus.open(tmp_path / "corpus").num_documents == 1
    CorpusTokenizer(f"{tmp_path}/blank", saved).run([Document(" ", "a", metadata={"file_path": "x"})])
    with pytest.raises(ValueError, match=r"no document with a token in .*blank: give files that hold text"):
        run(CorpusMerger(f"{tmp_path}/blank", tmp_path / "new", saved, progress=False))
    assert "TOKENIZERS_PARALLELISM" not in os.environ


def test_without_datatrove_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    import importlib
    import sys

    import electra_fast.data.datatrove as module

    for name in [name for name in sys.modules if name.split(".")[0] == "datatrove"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "datatrove", None)
    monkeypatch.delitem(sys.modules, module.__name__)
    with pytest.raises(ValueError, match=r"Pipelines of datatrove need datatrove, .*'electra-fast\[datatrove\]'"):
        importlib.import_module(module.__name__)
