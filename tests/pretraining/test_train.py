"""The loop: exact resume, interruption, what it leaves behind, and that it learns."""

from __future__ import annotations

import json
import signal
from pathlib import Path

import pytest
import torch
import transformers
from safetensors.torch import load_file

from electra_fast.data.corpus import Corpus
from electra_fast.data.loader import BatchLoader
from electra_fast.pretraining import train as train_module
from electra_fast.pretraining.config import TRACKERS, ConfigError
from electra_fast.pretraining.curves import plot_curves
from electra_fast.pretraining.metrics import read_metrics
from electra_fast.pretraining.run_folder import RUN_CONTENT
from electra_fast.pretraining.train import NonFiniteLoss, build_model, pretrain


def weights(output: Path) -> dict[str, torch.Tensor]:
    """Both towers as the run left them."""
    return {
        f"{tower}.{name}": tensor
        for tower in ("generator", "discriminator")
        for name, tensor in load_file(output / tower / "model.safetensors").items()
    }


def same_bits(a: Path, b: Path) -> bool:
    ours, theirs = weights(a), weights(b)
    assert ours.keys() == theirs.keys()
    return all(torch.equal(ours[name], theirs[name]) for name in ours)


@pytest.fixture(scope="module")
def whole(tmp_path_factory, quick_config):
    """A run that nothing disturbed."""
    output = tmp_path_factory.mktemp("runs") / "whole"
    result = pretrain(quick_config(output), progress=False)
    assert (result.step, result.interrupted_by) == (12, None)
    return output


def test_two_runs_of_one_seed_have_the_same_bits_and_another_seed_has_not(tmp_path, quick_config, whole):
    seed = quick_config(tmp_path).training.seed
    for name, of_it in (("again", seed), ("other", seed + 1)):
        result = pretrain(quick_config(tmp_path / name, **{"training.seed": of_it}), progress=False)
        assert (result.step, result.interrupted_by) == (12, None)
    assert same_bits(whole, tmp_path / "again")
    assert not same_bits(whole, tmp_path / "other")


@pytest.mark.parametrize("stop_after", [1, 5, 7])
def test_an_interrupted_run_resumes_to_the_same_bits(tmp_path, quick_config, whole, monkeypatch, stop_after):
    steps = 0
    add = train_module.Window.add

    def interrupt(self, *args, **kwargs):
        nonlocal steps
        steps += 1
        if steps == stop_after:
            signal.raise_signal(signal.SIGINT)
        add(self, *args, **kwargs)

    monkeypatch.setattr(train_module.Window, "add", interrupt)
    config = quick_config(tmp_path / "cut")
    result = pretrain(config, progress=False)
    assert (result.step, result.interrupted_by) == (stop_after, "SIGINT")
    assert not (tmp_path / "cut" / "discriminator").exists()
    torch.manual_seed(999)  # nothing of the global generator's state may matter
    result = pretrain(config, resume=True, progress=False)
    assert result.step == 12
    assert steps == 12
    assert same_bits(whole, tmp_path / "cut")

    rows = [read_metrics(output / "metrics.jsonl") for output in (whole, tmp_path / "cut")]
    evaluations = [[row for row in of_one if row["kind"] == "eval"] for of_one in rows]
    assert evaluations[0] == evaluations[1]
    assert [row["step"] for row in evaluations[0]] == [6, 12]


def test_a_killed_run_resumes_from_its_last_checkpoint_to_the_same_bits(tmp_path, quick_config, whole, monkeypatch):
    save = train_module.save_checkpoint

    def die_after_saving(folder, step, *args, **options):
        save(folder, step, *args, **options)
        if step == 5:
            raise KeyboardInterrupt  # as abrupt as a test can be without losing its own process

    config = quick_config(tmp_path / "cut")
    monkeypatch.setattr(train_module, "save_checkpoint", die_after_saving)
    with pytest.raises(KeyboardInterrupt):
        pretrain(config, progress=False)
    monkeypatch.setattr(train_module, "save_checkpoint", save)
    pretrain(config, resume=True, progress=False)
    assert same_bits(whole, tmp_path / "cut")


def test_sigterm_ends_the_step_saves_and_returns(tmp_path, quick_config, monkeypatch):
    config = quick_config(tmp_path / "run", **{"training.save_every": 0, "training.eval_every": 0})
    before = signal.getsignal(signal.SIGTERM)
    add = train_module.Window.add

    def terminate(self, *args, **kwargs):
        add(self, *args, **kwargs)
        if self.steps == 3:
            signal.raise_signal(signal.SIGTERM)

    monkeypatch.setattr(train_module.Window, "add", terminate)
    result = pretrain(config, progress=False)
    assert (result.step, result.interrupted_by) == (3, "SIGTERM")
    state = json.loads((tmp_path / "run" / "checkpoints" / "step-00000003" / "state.json").read_text())
    assert state["step"] == 3
    assert signal.getsignal(signal.SIGTERM) is before


def test_what_a_run_leaves_behind(tmp_path, quick_config, corpus, monkeypatch):
    monkeypatch.setattr(train_module, "plot_curves", plot_curves)
    output = tmp_path / "my run"
    result = pretrain(quick_config(output), progress=False)
    # The other two are of models that a joint phase does not make.
    elsewhere = {*TRACKERS, "mlm", "electra_fast.safetensors"}
    assert {path.name for path in output.iterdir()} == {*RUN_CONTENT, "README.md"} - elsewhere
    assert (output / "curves.png").read_bytes().startswith(b"\x89PNG")
    assert [path.name for path in sorted((output / "checkpoints").iterdir())] == ["step-00000010", "step-00000012"]

    rows = read_metrics(output / "metrics.jsonl")
    train_rows = [row for row in rows if row["kind"] == "train"]
    assert [row["step"] for row in train_rows] == [4, 8, 12]
    assert all(row["tokens_per_second"] > 0 and 0 <= row["auc"] <= 1 for row in train_rows)
    assert rows[-1]["kind"] == "eval"
    assert rows[-1]["auc"] == result.metrics["auc"]

    tokenizer = transformers.AutoTokenizer.from_pretrained(output / "discriminator")
    fill = transformers.pipeline("fill-mask", model=str(output / "generator"), tokenizer=str(output / "generator"))
    assert len(fill("the cat [MASK] the red apple.")) == 5
    model = transformers.ElectraForPreTraining.from_pretrained(output / "discriminator")
    assert model(**tokenizer("the cat eats the red apple.", return_tensors="pt")).logits.shape[0] == 1
    assert Corpus.open(corpus / "train").meta.vocab_size == model.config.vocab_size


def test_an_output_that_holds_a_run_is_refused(tmp_path, quick_config):
    output = tmp_path / "run"
    pretrain(quick_config(output, **{"training.steps": 2}), progress=False)
    before = weights(output)
    with pytest.raises(ConfigError, match="--resume"):
        pretrain(quick_config(output), progress=False)
    with pytest.raises(ConfigError, match=r"optimizer\.lr"):
        pretrain(quick_config(output, **{"optimizer.lr": 1.0}), resume=True, progress=False)
    with pytest.raises(ConfigError, match=r"training\.steps"):
        pretrain(quick_config(output, **{"training.steps": 1}), resume=True, progress=False)
    with pytest.raises(ValueError, match="needs one hidden_size"):  # found out before anything is deleted
        pretrain(quick_config(output, **{"model.tie": "all"}), overwrite=True, progress=False)
    assert all(torch.equal(tensor, before[name]) for name, tensor in weights(output).items())
    (output / "notes.txt").write_text("mine")
    assert pretrain(quick_config(output, **{"training.steps": 3}), overwrite=True, progress=False).step == 3
    assert (output / "notes.txt").read_text() == "mine"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "holds no settings"),
        (b"training: {st", "config.yaml is damaged"),
        (b"\xff", "config.yaml is damaged"),
        (b"model: {}", "was None"),
    ],
)
def test_damaged_settings_are_named_on_resume(tmp_path, quick_config, content, message):
    (tmp_path / "config.yaml").write_bytes(content)
    with pytest.raises(ConfigError, match=message):
        pretrain(quick_config(tmp_path), resume=True, progress=False)
    assert (tmp_path / "config.yaml").read_bytes() == content
    (tmp_path / "config.yaml").rename(tmp_path / "metrics.jsonl")
    with pytest.raises(ConfigError, match=r"no config\.yaml"):
        pretrain(quick_config(tmp_path), resume=True, progress=False)


def test_a_corpus_that_is_not_set_is_named(tmp_path, quick_config):
    with pytest.raises(ConfigError, match=r"data\.train"):
        pretrain(quick_config(tmp_path / "run", **{"data.train": ""}), progress=False)
    assert not (tmp_path / "run").exists()


def test_a_loss_that_is_no_number_stops_the_run(tmp_path, quick_config):
    config = quick_config(tmp_path / "run", **{"optimizer.lr": 1e30, "training.steps": 40, "optimizer.warmup_steps": 1})
    with pytest.raises(NonFiniteLoss, match=r"optimizer\.lr"):
        pretrain(config, progress=False)
    for path in (tmp_path / "run" / "checkpoints").glob("step-*/model.safetensors"):
        assert all(tensor.isfinite().all() for tensor in load_file(path).values())


def test_it_learns(tmp_path, quick_config):
    settings = {"training.steps": 400, "data.batch_size": 32, "optimizer.lr": 3e-3, "optimizer.warmup_steps": 50}
    settings |= {"model.hidden_dropout_prob": 0.0, "training.eval_every": 0}
    result = pretrain(quick_config(tmp_path / "run", **settings), progress=False)
    print(result.metrics)
    assert result.metrics["generator_loss"] < result.metrics["unigram_loss"] - 0.5
    assert result.metrics["unigram_auc"] > 0.6


def test_step_0_loss_on_real_text(tmp_path, shared_data):
    """`small` starts at ln(V) + 50 ln 2 = 44.98: 3% with truncated normal everywhere, 15% with the Glorot layers."""
    from electra_fast.data.prepare import prepare
    from electra_fast.pretraining.config_file import read_config

    vocab = shared_data("vocab/bert-base-uncased.vocab.txt")
    text = shared_data("pretrain_en/wiki_en.valid.txt").read_text(encoding="utf-8")
    (tmp_path / "text.txt").write_text(text[: text.index("\n\n", 100_000)], encoding="utf-8")
    prepare([tmp_path / "text.txt"], vocab, tmp_path / "corpus", progress=False)
    corpus = Corpus.open(tmp_path / "corpus")
    batch = BatchLoader(corpus, batch_size=16, max_length=128, seed=0).batch(0)
    expected = 44.98
    for glorot, tolerance in ((False, 0.03), (True, 0.15)):
        for seed in (0, 1):
            torch.manual_seed(seed)
            model = build_model(read_config("small", {"model.glorot": glorot}), corpus.meta)
            norms = [module for module in model.modules() if isinstance(module, torch.nn.LayerNorm)]
            assert {norm.eps for norm in norms} == {1e-12}
            with torch.no_grad():
                out = model(batch.input_ids, cu_seqlens=batch.cu_seqlens, sequence_ids=batch.sequence_ids, seed=seed)
            print(f"step-0 loss, glorot={glorot}, seed {seed}: {float(out.loss):.3f}")
            assert float(out.loss) == pytest.approx(expected, rel=tolerance)


@pytest.mark.gpu
def test_a_run_on_a_gpu_goes_on_from_its_checkpoint(tmp_path, quick_config):
    settings = {"training.device": "cuda", "training.steps": 5}
    assert pretrain(quick_config(tmp_path / "run", **settings), progress=False).metrics["auc"] > 0
    settings["training.steps"] = 10
    assert pretrain(quick_config(tmp_path / "run", **settings), resume=True, progress=False).step == 10
