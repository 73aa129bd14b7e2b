"""Model cards and exported checkpoints: what the Hub will show and get, checked without a network."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import yaml
from huggingface_hub import CommitOperationAdd, HfApi, ModelCard
from huggingface_hub.errors import LocalEntryNotFoundError
from safetensors.torch import load_file

from electra_fast import ElectraForJointPreTraining, ElectraForPreTraining
from electra_fast.cli import main
from electra_fast.data.corpus import Corpus
from electra_fast.pretraining.cards import MARK, Facts, write_cards
from electra_fast.pretraining.config import ConfigError
from electra_fast.pretraining.config_file import read_config
from electra_fast.pretraining.export import export_checkpoint
from electra_fast.pretraining.run_folder import check_output, delete_run
from electra_fast.pretraining.train import pretrain
from tests.small import folder_bytes

FOLDERS = (".", "discriminator", "generator", "mlm")
# Of a checkpoint of transformers with a tokenizer.
MODEL_FILES = {"README.md", "config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"}
PHASES = [{"objective": "mlm", "steps": 5}, {"objective": "joint", "steps": 7}]


@pytest.fixture(scope="module")
def run(corpus: Path, quick_config: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run with checkpoints of steps 5, 10 and 12."""
    output = tmp_path_factory.mktemp("cards") / "run"
    pretrain(quick_config(output, schedule=PHASES, **{"training.keep_checkpoints": 3}), progress=False)
    return output


@pytest.fixture(scope="module")
def exported(run: Path) -> Path:
    export_checkpoint(run, run.parent / "exported")
    return run.parent / "exported"


def _metrics(run: Path, step: int) -> dict[str, Any]:
    rows = map(json.loads, (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines())
    return next(row for row in rows if row["kind"] == "eval" and row["step"] == step)


@pytest.mark.parametrize("name", FOLDERS)
def test_card_has_what_the_hub_reads(run: Path, name: str) -> None:
    card = ModelCard.load(run / name / "README.md")
    data = card.data.to_dict()
    assert {"electra", "electra-fast"} <= set(data["tags"])
    assert all(re.fullmatch(r"[a-z][a-z0-9-]*", tag) for tag in data["tags"])
    assert data.get("library_name") == ("electra-fast" if name == "." else "transformers")
    assert data.get("pipeline_tag") == ("fill-mask" if name in ("generator", "mlm") else None)
    assert data.keys() <= {"tags", "library_name", "pipeline_tag"}  # no license, language or data set was invented
    assert re.match(r"---\n.*?\n---\n", (run / name / "README.md").read_text(encoding="utf-8"), re.DOTALL)


def test_card_tells_the_run(run: Path, corpus: Path) -> None:
    text = (run / "discriminator" / "README.md").read_text(encoding="utf-8")
    model, meta = ElectraForPreTraining.from_pretrained(run / "discriminator"), Corpus.open(corpus / "train").meta
    assert f"{sum(p.numel() for p in model.parameters()):,} parameters" in text
    assert "| objective | mlm, then joint |" in text
    assert "| updates | 12 |" in text
    assert "| batch | 8 sequences, of up to 24 tokens a sequence |" in text
    assert "| discriminator | layers: 2, width: 32, heads: 2, feed-forward: 64 |" in text
    assert "| generator | layers: 1, width: 16, heads: 1, feed-forward: 32 |" in text
    assert (
        f"| {meta.documents:,} | {meta.tokens:,} | {meta.text_bytes:,} | {meta.vocab_size} | {meta.content_hash()} |"
        in text
    )
    row = _metrics(run, 12)
    assert f"| auc | {row['auc']:.4f} |" in text
    assert f"| discriminator_loss | {row['discriminator_loss']:.4f} |" in text


@pytest.mark.parametrize("name", FOLDERS)
def test_code_on_the_card_runs(run: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(run / name)
    code = re.findall(r"```python\n(.*?)```", Path("README.md").read_text(encoding="utf-8"), re.DOTALL)
    assert code
    namespace: dict[str, Any] = {}
    for block in code:
        exec(block, namespace)
    if name == "discriminator":
        assert bool(((namespace["probabilities"] > 0) & (namespace["probabilities"] < 1)).all())
    if name in ("generator", "mlm"):
        assert len(namespace["guesses"]) == 5


def test_a_card_names_no_place(run: Path) -> None:
    for card in run.rglob("README.md"):
        assert str(run.parent) not in card.read_text(encoding="utf-8")


def test_checkpoints_have_a_card_that_says_how_to_get_models(run: Path) -> None:
    for step in (5, 10, 12):
        card = ModelCard.load(run / "checkpoints" / f"step-{step:08d}" / "README.md")
        assert card.data.library_name == "electra-fast"
        assert f"electra-fast export RUN --step {step} " in card.text


def test_export_of_the_last_checkpoint_is_the_run(run: Path, exported: Path) -> None:
    """Same bytes as at the end of the run: weights, tokenizer, cards."""
    found = folder_bytes(exported)
    wanted = {name: content for name, content in folder_bytes(run).items() if name in found}
    assert {
        f"{folder}/{file}" for folder in ("discriminator", "generator", "mlm") for file in MODEL_FILES
    } <= found.keys()
    assert {"README.md", "electra_fast.json", "electra_fast.safetensors"} <= found.keys()
    assert found == wanted


def test_export_of_a_step(run: Path, tmp_path: Path) -> None:
    assert export_checkpoint(run, tmp_path / "deep" / "models", step=10) == 10
    model = ElectraForJointPreTraining.from_pretrained(tmp_path / "deep" / "models")
    saved = load_file(run / "checkpoints" / "step-00000010" / "model.safetensors")
    for name, parameter in model.named_parameters():
        assert torch.equal(parameter, saved[name]), name
    text = (tmp_path / "deep" / "models" / "discriminator" / "README.md").read_text(encoding="utf-8")
    assert "| updates | 10 |" in text
    assert f"| discriminator_loss | {_metrics(run, 6)['discriminator_loss']:.4f} |" in text  # the last before step 10
    assert "after update 6;" in text


def test_export_in_16_bits_has_the_float32_weights(quick_config: Any, tmp_path: Path) -> None:
    run = tmp_path / "run"
    settings = {"training.precision": "bfloat16", "training.steps": 2, "data.valid": None}
    pretrain(quick_config(run, **settings), progress=False)
    export_checkpoint(run, tmp_path / "models")
    assert (run / "discriminator" / "model.safetensors").read_bytes() == (
        tmp_path / "models" / "discriminator" / "model.safetensors"
    ).read_bytes()
    assert "nothing was measured" in (run / "README.md").read_text(encoding="utf-8")


def test_export_refuses(run: Path, corpus: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(ConfigError, match="is no run"):
        export_checkpoint(corpus, tmp_path / "new")
    with pytest.raises(ConfigError, match="exists: choose a new folder"):
        export_checkpoint(run, tmp_path)
    with pytest.raises(ConfigError, match=r"no checkpoint of step 7: it has 5, 10, 12"):
        export_checkpoint(run, tmp_path / "new", step=7)
    copy = tmp_path / "copy"
    shutil.copytree(run, copy)
    settings = yaml.safe_load((copy / "config.yaml").read_text(encoding="utf-8"))
    settings["data"]["train"] = str(corpus / "valid")
    (copy / "config.yaml").write_text(yaml.safe_dump(settings), encoding="utf-8")
    assert main(["export", str(copy), "--output", str(tmp_path / "new")]) == 2
    assert "not what" in capsys.readouterr().err
    shutil.rmtree(copy / "checkpoints")
    assert main(["export", str(copy), "--output", str(tmp_path / "new")]) == 2
    assert "holds no checkpoint" in capsys.readouterr().err
    assert sorted(path.name for path in tmp_path.iterdir()) == ["copy"]


def test_a_damaged_checkpoint_leaves_nothing_behind(run: Path, tmp_path: Path) -> None:
    shutil.copytree(run, tmp_path / "copy")
    with (tmp_path / "copy" / "checkpoints" / "step-00000012" / "model.safetensors").open("r+b") as file:
        file.seek(-1, 2)
        last = file.read(1)
        file.seek(-1, 2)
        file.write(bytes([last[0] ^ 1]))
    with pytest.raises(ValueError, match="is damaged"):
        export_checkpoint(tmp_path / "copy", tmp_path / "models")
    assert [path.name for path in tmp_path.iterdir()] == ["copy"]


def test_a_claimed_card_stays_and_ours_goes_with_the_run(run: Path, quick_config: Any, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(run, copy)
    ours, claimed = copy / "generator" / "README.md", copy / "discriminator" / "README.md"
    ours.write_text(f"{MARK} of an older version", encoding="utf-8")
    claimed.write_text("License: mine.", encoding="utf-8")
    config = read_config(copy / "config.yaml")
    write_cards(copy, Facts(config, ElectraForJointPreTraining.from_pretrained(copy), [], 12, None))
    assert "# ELECTRA generator" in ours.read_text(encoding="utf-8")
    assert claimed.read_text(encoding="utf-8") == "License: mine."

    assert (copy / "README.md").is_file()
    delete_run(copy)
    assert not (copy / "README.md").exists()
    (copy / "README.md").write_text("# My notes", encoding="utf-8")
    assert not check_output(copy, config, resume=False, overwrite=False)  # such a folder holds no run yet
    delete_run(copy)
    assert [path.name for path in copy.iterdir()] == ["README.md"]


@pytest.fixture
def uploaded(monkeypatch: pytest.MonkeyPatch) -> dict[str, bytes]:
    """What a commit to the hub would hold; there is no repository yet, and no network is asked."""
    files: dict[str, bytes] = {}

    def create_commit(*_: Any, operations: list[CommitOperationAdd], **__: Any) -> None:
        for operation in operations:
            with operation.as_file() as file:
                files[operation.path_in_repo] = file.read()

    def no_card(*_: Any, **__: Any) -> None:
        raise LocalEntryNotFoundError("no README.md there")

    monkeypatch.setattr(HfApi, "create_repo", lambda api, repo_id, **_: SimpleNamespace(repo_id=repo_id))
    monkeypatch.setattr(HfApi, "create_commit", create_commit)
    monkeypatch.setattr("huggingface_hub.repocard.hf_hub_download", no_card)
    monkeypatch.setattr(HfApi, "_validate_yaml", lambda *_, **__: None)  # the hub would look at a card's first lines
    monkeypatch.setattr("huggingface_hub.hf_api.is_xet_available", lambda: False)
    return files


@pytest.mark.parametrize("name", ["discriminator", "generator", "mlm"])
def test_a_folder_uploads_as_it_is(run: Path, name: str, uploaded: dict[str, bytes]) -> None:
    """`hf upload NAME FOLDER` calls this."""
    HfApi().upload_folder(repo_id="me/electra", folder_path=run / name)
    assert uploaded.keys() == MODEL_FILES
    assert uploaded == folder_bytes(run / name)


def test_an_export_uploads_without_training_state(exported: Path, uploaded: dict[str, bytes]) -> None:
    HfApi().upload_folder(repo_id="me/electra", folder_path=exported)
    assert {Path(name).suffix for name in uploaded} == {".md", ".json", ".safetensors"}  # nothing that is unpickled
    assert {name for name in uploaded if "/" not in name} == {
        "README.md",
        "electra_fast.json",
        "electra_fast.safetensors",
    }
    assert not any("optimizer" in name or "state" in name or "checkpoints" in name for name in uploaded)


def test_push_to_hub_of_a_model(run: Path, uploaded: dict[str, bytes], monkeypatch: pytest.MonkeyPatch) -> None:
    model = ElectraForPreTraining.from_pretrained(run / "discriminator")
    model.push_to_hub("me/electra")
    assert uploaded.keys() == {"README.md", "config.json", "model.safetensors"}
    assert uploaded["model.safetensors"] == (run / "discriminator" / "model.safetensors").read_bytes()

    # transformers writes an empty card of its own, unless the repository has one: upload the folder first.
    ours = run / "discriminator" / "README.md"
    monkeypatch.setattr("huggingface_hub.repocard.hf_hub_download", lambda *_, **__: str(ours))
    model.push_to_hub("me/electra")
    assert uploaded["README.md"] == ours.read_bytes()
