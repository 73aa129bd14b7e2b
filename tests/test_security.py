"""What lies in a checkpoint is data: no code in it runs, in whatever file it hides."""

from __future__ import annotations

import ast
import json
import pickle
from pathlib import Path

import pytest
import torch
import transformers
import yaml

from electra_fast.cli import main
from electra_fast.data.tokenizer import train_wordpiece
from electra_fast.pretraining.config_file import _Loader
from tests.small import TEXT

ROOT = Path(__file__).parents[1]
# What makes objects, or code, of a file's bytes. (`pickle` itself is imported for the name of an error.)
UNSAFE = {
    "torch.load",
    "pickle.load",
    "pickle.loads",
    "marshal.load",
    "marshal.loads",
    "yaml.unsafe_load",
    "eval",
    "exec",
}


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    """A discriminator with its tokenizer."""
    folder = tmp_path / "model"
    sizes = {"hidden_size": 16, "embedding_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1}
    config = transformers.ElectraConfig(vocab_size=80, intermediate_size=16, max_position_embeddings=16, **sizes)
    torch.manual_seed(0)
    transformers.ElectraForPreTraining(config).save_pretrained(folder)
    (tmp_path / "text.txt").write_text(TEXT, encoding="utf-8")
    train_wordpiece([tmp_path / "text.txt"], folder, vocab_size=80)
    return folder


def test_code_beside_a_checkpoint_is_not_run(checkpoint: Path, tmp_path: Path) -> None:
    trace = tmp_path / "trace"
    for name in ("modeling", "configuration", "tokenization"):
        text = f"import pathlib\npathlib.Path({str(trace)!r}).touch()\nclass Theirs: pass\n"
        (checkpoint / f"{name}_theirs.py").write_text(text, encoding="utf-8")
    classes = ("AutoModel", "AutoModelForPreTraining", "AutoModelForSequenceClassification")
    maps = {
        "config.json": {
            "AutoConfig": "configuration_theirs.Theirs",
            **dict.fromkeys(classes, "modeling_theirs.Theirs"),
        },
        "tokenizer_config.json": {"AutoTokenizer": ["tokenization_theirs.Theirs", "tokenization_theirs.Theirs"]},
    }
    for name, auto_map in maps.items():
        content = json.loads((checkpoint / name).read_text(encoding="utf-8"))
        (checkpoint / name).write_text(json.dumps(content | {"auto_map": auto_map}), encoding="utf-8")
    model = str(checkpoint)
    assert main(["verify", model, "--batches", "1", "--max_length", "8", "--seed", "1"]) == 0
    assert main(["inspect", model, "the lazy fox"]) == 0
    assert (
        main(["prepare", str(tmp_path / "text.txt"), "--tokenizer", model, "--output", str(tmp_path / "corpus")]) == 0
    )
    assert not trace.exists()


class _LeavesATrace:
    def __init__(self, trace: Path) -> None:
        self.trace = trace

    def __reduce__(self) -> tuple[object, ...]:
        return Path.touch, (self.trace,)


def test_a_pickled_checkpoint_runs_nothing(
    checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    trace = tmp_path / "trace"
    weights = transformers.ElectraForPreTraining.from_pretrained(checkpoint).state_dict()
    (checkpoint / "model.safetensors").unlink()
    torch.save(dict(weights), checkpoint / "pytorch_model.bin")
    verify = ["verify", str(checkpoint), "--batches", "1", "--max_length", "8", "--seed", "1"]
    assert main(verify) == 0  # tensors alone are fine

    torch.save({**weights, "more": _LeavesATrace(trace)}, checkpoint / "pytorch_model.bin")
    assert main(verify) == 2
    assert "can't read the model in" in capsys.readouterr().err
    assert not trace.exists()
    pickle.loads(pickle.dumps(_LeavesATrace(trace)))  # the trap would have shut
    assert trace.exists()


def test_the_package_calls_nothing_that_makes_code_of_data() -> None:
    found = []
    for file in sorted([*(ROOT / "electra_fast").rglob("*.py"), *(ROOT / "kernels").glob("*.py")]):
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if not isinstance(node, ast.Call):
                continue
            options = {keyword.arg for keyword in node.keywords}
            is_unsafe_yaml = ast.unparse(node.func) == "yaml.load" and not issubclass(_Loader, yaml.SafeLoader)
            if is_unsafe_yaml or ast.unparse(node.func) in UNSAFE or options & {"trust_remote_code", "allow_pickle"}:
                found.append(f"{file.relative_to(ROOT)}:{node.lineno}: {ast.unparse(node)}")
    assert found == []
