"""A run starts from other weights: what stock transformers computes with them is what it begins with."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import BertForMaskedLM, BertForPreTraining, BertModel, ElectraForMaskedLM, ElectraForPreTraining

from electra_fast.data.corpus import Corpus
from electra_fast.data.loader import BatchLoader
from electra_fast.models import ElectraForJointPreTraining
from electra_fast.pretraining.build import build_model
from electra_fast.pretraining.config import ConfigError, PretrainConfig
from electra_fast.pretraining.config_file import read_config
from electra_fast.pretraining.distributed import Ranks
from electra_fast.pretraining.initialize import start_model
from electra_fast.pretraining.metrics import read_metrics
from electra_fast.pretraining.sources import resolve_init
from electra_fast.pretraining.train import pretrain
from tests.pretraining.test_phases import interrupt_after
from tests.pretraining.test_train import same_bits

SIZES = {
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 40,
    "max_position_embeddings": 32,
}
TIED = ("word_embeddings", "position_embeddings", "token_type_embeddings", "LayerNorm")


@torch.no_grad()
def randomised(model: nn.Module) -> nn.Module:
    """Every weight away from where fresh ones are, so that none can be left out unseen."""
    for parameter in model.parameters():
        parameter.copy_(torch.randn_like(parameter) * 0.1 + 0.05)
    return model.eval()


def save(model: nn.Module, folder: Path, corpus: Path) -> Path:
    """With the tokenizer of `corpus`."""
    model.save_pretrained(folder)
    shutil.copytree(corpus / "tokenizer", folder, dirs_exist_ok=True)
    return folder


@pytest.fixture
def electra_pair(tmp_path: Path, corpus: Path, rng_seed: int) -> tuple[Path, Path]:
    """A discriminator and a generator of other sizes with its embeddings, as they are released."""
    sizes = {"vocab_size": Corpus.open(corpus / "train").meta.vocab_size, "embedding_size": 12, **SIZES}
    discriminator = randomised(ElectraForPreTraining(transformers.ElectraConfig(hidden_size=24, **sizes)))
    generator = randomised(ElectraForMaskedLM(transformers.ElectraConfig(hidden_size=16, **sizes)))
    ours, theirs = generator.electra.embeddings, discriminator.electra.embeddings
    for name in TIED:
        getattr(ours, name).load_state_dict(getattr(theirs, name).state_dict())
    return (
        save(discriminator, tmp_path / "discriminator", corpus),
        save(generator, tmp_path / "generator", corpus),
    )


def started(
    corpus: Path, *, train: str = "train", **settings: object
) -> tuple[ElectraForJointPreTraining, list[str], PretrainConfig]:
    """The model of a run before its first step, and what it says about its start."""
    overrides = {"data.train": str(corpus / train), "data.max_length": 24} | settings
    config = resolve_init(
        read_config("continue", {key: str(v) if isinstance(v, Path) else v for key, v in overrides.items()})
    )
    opened = Corpus.open(corpus / train)
    torch.manual_seed(config.training.seed)
    model = build_model(config, opened.meta)
    config, lines = start_model(model, config, [opened], opened.load_tokenizer(), Ranks(torch.device("cpu")))
    return model.eval(), lines, config


def real_ids(corpus: Path, train: str = "train", max_length: int = 24) -> Tensor:
    """Rows [B, S] of the corpus, padded."""
    batch = BatchLoader(Corpus.open(corpus / train), batch_size=8, max_length=max_length, seed=0).batch(0)
    rows = batch.input_ids.split(batch.cu_seqlens.diff().tolist())
    return nn.utils.rnn.pad_sequence(list(rows), batch_first=True)


def saved(model: ElectraForJointPreTraining, folder: Path) -> tuple[nn.Module, nn.Module]:
    """Generator and discriminator, as stock transformers loads them."""
    model.save_pretrained(folder)
    return (
        ElectraForMaskedLM.from_pretrained(folder / "generator").eval(),
        ElectraForPreTraining.from_pretrained(folder / "discriminator").eval(),
    )


@torch.no_grad()
def same_logits(ours: nn.Module, theirs: nn.Module, ids: Tensor, *, exact: bool = True) -> None:
    mask = (ids != 0).long()
    logits = [model(ids, attention_mask=mask).logits for model in (ours, theirs)]
    real = mask.bool()
    difference = float((logits[0] - logits[1])[real].abs().max())
    assert difference == 0 if exact else difference <= 1e-6 * max(1.0, float(logits[1].abs().max())), difference


@pytest.mark.parametrize("tie", ["shared", "untied", "gdes"])
def test_a_pair_gives_its_logits(tmp_path, corpus, electra_pair, tie):
    init = dict(zip(("init.discriminator", "init.generator"), electra_pair, strict=True))
    model, lines, config = started(corpus, **init, **{"model.tie": tie})
    ids = real_ids(corpus)
    generator, discriminator = saved(model, tmp_path / "saved")
    same_logits(discriminator, ElectraForPreTraining.from_pretrained(electra_pair[0]), ids, exact=tie != "gdes")
    same_logits(generator, ElectraForMaskedLM.from_pretrained(electra_pair[1]), ids)
    same_logits(model.discriminator, discriminator, ids, exact=False)  # the fast one that is trained
    assert (config.model.hidden_size, config.model.generator.hidden_size, config.model.embedding_size) == (24, 16, 12)
    assert config.model.max_position_embeddings == 32
    counts = [len(load_file(folder / "model.safetensors")) for folder in electra_pair]
    assert lines == [
        f"generator: {counts[1]} of {counts[1]} weights from {electra_pair[1]}",
        f"discriminator: {counts[0]} of {counts[0]} weights from {electra_pair[0]}",
    ]


def test_a_discriminator_alone_gives_the_generator_its_embeddings(tmp_path, corpus, electra_pair):
    for tie in ("shared", "untied", "gdes"):
        model, lines, config = started(corpus, **{"init.discriminator": electra_pair[0], "model.tie": tie})
        sizes = config.model.generator
        assert (sizes.hidden_size, sizes.num_attention_heads, sizes.intermediate_size) == (12, 1, 48)
        source = ElectraForPreTraining.from_pretrained(electra_pair[0])
        generator, discriminator = saved(model, tmp_path / tie)
        same_logits(discriminator, source, real_ids(corpus))
        for name in TIED:
            for ours, theirs in zip(
                getattr(generator.electra.embeddings, name).parameters(),
                getattr(source.electra.embeddings, name).parameters(),
                strict=True,
            ):
                assert torch.equal(ours, theirs), (tie, name)
        total = len(load_file(tmp_path / tie / "generator" / "model.safetensors"))
        fresh = "electra.encoder, generator_predictions, generator_lm_head"
        assert lines[0] == f"generator: 5 of {total} weights from {electra_pair[0]} (its embeddings); fresh: {fresh}"


def test_an_encoder_without_the_head_leaves_it_fresh_and_says_so(tmp_path, corpus, electra_pair):
    """A generator as discriminator: the way to a generator that starts from a discriminator is the same."""
    model, lines, _ = started(corpus, **{"init.discriminator": electra_pair[1], "model.tie": "all"})
    source = ElectraForMaskedLM.from_pretrained(electra_pair[1])
    ours = model.discriminator.electra.state_dict()
    assert all(torch.equal(ours[name], tensor) for name, tensor in source.electra.state_dict().items())
    assert model.generator.electra is model.discriminator.electra
    fresh = [line.partition("fresh: ")[2] for line in lines if "fresh" in line]
    assert fresh == ["generator_predictions, generator_lm_head", "discriminator_predictions"]
    left, found = f"discriminator: left out of {electra_pair[1]}: ", lines[-1]
    assert found.startswith(left)
    assert set(found.removeprefix(left).split(", ")) == {"generator_predictions", "generator_lm_head"}


def bert_config(corpus: Path, **more: object) -> transformers.BertConfig:
    return transformers.BertConfig(
        vocab_size=Corpus.open(corpus / "train").meta.vocab_size, hidden_size=24, **SIZES, **more
    )


@pytest.mark.parametrize("kind", [BertForPreTraining, BertForMaskedLM, BertModel])
def test_either_tower_from_bert(tmp_path, corpus, rng_seed, kind):
    bert = randomised(kind(bert_config(corpus)))
    folder = save(bert, tmp_path / "bert", corpus)
    model, lines, config = started(
        corpus, **{"init.discriminator": folder, "init.generator": folder, "model.tie": "untied"}
    )
    ids = real_ids(corpus)
    mask = (ids != 0).long()
    generator, discriminator = saved(model, tmp_path / "saved")
    with torch.no_grad():
        theirs = (bert if kind is BertModel else bert.bert)(ids, attention_mask=mask).last_hidden_state
        for tower in (generator, discriminator):
            ours = tower.electra(ids, attention_mask=mask).last_hidden_state
            assert float((ours - theirs).abs().max()) <= 1e-6 * float(theirs.abs().max())
    if kind is not BertModel:
        same_logits(generator, bert if kind is BertForMaskedLM else _MaskedLMOf(bert), ids, exact=False)
    assert (config.model.embedding_size, config.model.generator.embedding_size) == (24, 24)
    assert ("pooler" in " ".join(lines)) == (kind is not BertForMaskedLM)
    assert ("; fresh: generator_predictions, generator_lm_head" in " ".join(lines)) == (kind is BertModel)


class _MaskedLMOf(nn.Module):
    """The first of BERT's two heads."""

    def __init__(self, bert: BertForPreTraining) -> None:
        super().__init__()
        self.bert = bert

    def forward(self, ids: Tensor, attention_mask: Tensor) -> transformers.utils.ModelOutput:
        out = self.bert(ids, attention_mask=attention_mask)
        return transformers.utils.ModelOutput(logits=out.prediction_logits)


def test_names_of_old_checkpoints(tmp_path, corpus, rng_seed):
    """Released BERT has LayerNorm.gamma and beta, buffers, and float16; a large model lies in several files."""
    bert = randomised(BertForMaskedLM(bert_config(corpus))).half()
    folder = save(bert, tmp_path / "bert", corpus)
    tensors = load_file(folder / "model.safetensors")
    old = {
        name.replace("LayerNorm.weight", "LayerNorm.gamma").replace("LayerNorm.bias", "LayerNorm.beta"): tensor
        for name, tensor in tensors.items()
    } | {"bert.embeddings.position_ids": torch.arange(32).unsqueeze(0)}
    names = sorted(old)
    (folder / "model.safetensors").unlink()
    shards = {"model-00001-of-00002.safetensors": names[::2], "model-00002-of-00002.safetensors": names[1::2]}
    for file, part in shards.items():
        save_file({name: old[name] for name in part}, folder / file)
    index = {"weight_map": {name: file for file, part in shards.items() for name in part}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    model, *_ = started(corpus, **{"init.discriminator": folder, "init.generator": folder, "model.tie": "all"})
    for name, tensor in bert.bert.float().state_dict().items():
        assert torch.equal(model.discriminator.electra.state_dict()[name], tensor), name
    assert torch.equal(model.generator.generator_predictions.dense.weight, bert.cls.predictions.transform.dense.weight)


def test_the_head_of_bert_goes_to_the_objective_mlm(tmp_path, corpus, rng_seed):
    bert = randomised(BertForMaskedLM(bert_config(corpus)))
    folder = save(bert, tmp_path / "bert", corpus)
    model, *_ = started(corpus, **{"init.discriminator": folder, "schedule": [{"objective": "mlm"}]})
    model.save_pretrained(tmp_path / "saved")
    same_logits(
        ElectraForMaskedLM.from_pretrained(tmp_path / "saved" / "mlm").eval(), bert, real_ids(corpus), exact=False
    )


@pytest.mark.parametrize("how", ["repeat", "interpolate", "fresh"])
def test_longer_and_shorter_positions(tmp_path, corpus, electra_pair, how):
    init = dict(zip(("init.discriminator", "init.generator"), electra_pair, strict=True)) | {"init.positions": how}
    model, lines, _ = started(corpus, **init, **{"model.max_position_embeddings": 80, "data.max_length": 64})
    source = ElectraForPreTraining.from_pretrained(electra_pair[0])
    generator, discriminator = saved(model, tmp_path / "saved")
    ours, theirs = (m.electra.embeddings.position_embeddings.weight.detach() for m in (discriminator, source))
    assert ours.shape == (80, 12)
    expected = {"repeat": "repeated", "interpolate": "interpolated", "fresh": "fresh beyond"}[how]
    assert f"positions: 32 of {electra_pair[0]}, {expected} for 80" in lines
    if how == "interpolate":
        assert torch.equal(ours[[0, -1]], theirs[[0, -1]])
        at = torch.arange(80, dtype=torch.float64) * 31 / 79
        low = at.floor().long().clamp(max=30)
        rows = theirs[low].double() + (at - low).unsqueeze(1) * (theirs[low + 1] - theirs[low]).double()
        assert torch.allclose(ours.double(), rows, atol=1e-6)
    else:
        assert torch.equal(ours[:32], theirs)
        same_logits(discriminator, source, real_ids(corpus))
        same_logits(generator, ElectraForMaskedLM.from_pretrained(electra_pair[1]), real_ids(corpus))
    if how == "repeat":
        assert torch.equal(ours[32:64], theirs)
        assert torch.equal(ours[64:], theirs[:16])
    elif how == "fresh":
        assert float(ours[32:].abs().max()) <= 0.04  # two deviations of 0.02
    with torch.no_grad():
        assert discriminator(real_ids(corpus, max_length=64)).logits.isfinite().all()

    shorter, *_ = started(corpus, **init, **{"model.max_position_embeddings": 24})
    cut = shorter.discriminator.electra.embeddings.position_embeddings.weight
    assert torch.equal(cut, theirs[:24])


def write_vocabulary(corpus: Path, folder: Path, tokens: list[str]) -> transformers.PreTrainedTokenizerFast:
    tokenizer = transformers.BertTokenizer(vocab={token: index for index, token in enumerate(tokens)})
    tokenizer.save_pretrained(folder)
    return tokenizer


def tokens_of(folder: Path) -> list[str]:
    vocabulary = transformers.AutoTokenizer.from_pretrained(folder).get_vocab()
    return sorted(vocabulary, key=vocabulary.get)


def test_a_permuted_vocabulary_gives_the_same_logits_for_permuted_ids(tmp_path, corpus, electra_pair):
    """Exactly: the source's tokenizer is the corpus's in another order."""
    tokens = tokens_of(corpus / "tokenizer")
    order = torch.randperm(len(tokens))
    for folder in electra_pair:
        for file in ("tokenizer.json", "tokenizer_config.json"):
            (folder / file).unlink()
        write_vocabulary(corpus, folder, [tokens[index] for index in order])  # its id i is the corpus's order[i]
    init = dict(zip(("init.discriminator", "init.generator"), electra_pair, strict=True))
    model, lines, _ = started(corpus, **init)
    assert f"vocabulary: {len(tokens)} of {len(tokens)} tokens as in {electra_pair[0]}, 0 as" in "\n".join(lines)
    ids, inverse = real_ids(corpus), order.argsort()
    generator, discriminator = saved(model, tmp_path / "saved")
    mask = (ids != 0).long()
    with torch.no_grad():
        source = ElectraForPreTraining.from_pretrained(electra_pair[0])
        assert torch.equal(discriminator(ids, mask).logits, source(inverse[ids], mask).logits)
        source = ElectraForMaskedLM.from_pretrained(electra_pair[1])
        ours, theirs = generator(ids, mask).logits, source(inverse[ids], mask).logits[..., inverse]
        assert torch.allclose(ours, theirs, rtol=0, atol=1e-6 * float(theirs.abs().max()))


@pytest.mark.parametrize("how", ["pieces", "mean", "random"])
def test_a_grown_vocabulary_keeps_the_old_rows(tmp_path, corpus, electra_pair, how):
    """Half the tokens are taken away from the source, whose table pads: they are new to it."""
    tokens = tokens_of(corpus / "tokenizer")
    kept = [token for token in tokens if len(token.removeprefix("##")) <= 2 or token.startswith("[")]
    padded = len(kept) + 3
    folder = electra_pair[0]
    weights = load_file(folder / "model.safetensors")
    name = "electra.embeddings.word_embeddings.weight"
    weights[name] = weights[name][:padded].contiguous()
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"vocab_size": padded}))
    for file in ("tokenizer.json", "tokenizer_config.json"):
        (folder / file).unlink()
    old = write_vocabulary(corpus, folder, kept)
    model, lines, _ = started(corpus, **{"init.discriminator": folder, "init.new_tokens": how})
    ours, theirs = model.discriminator.electra.embeddings.word_embeddings.weight.detach(), weights[name]
    new = [index for index, token in enumerate(tokens) if token not in kept]
    assert len(new) > 20
    for index, token in enumerate(tokens):
        if token in kept:
            assert torch.equal(ours[index], theirs[kept.index(token)]), token
        elif how == "mean":
            assert torch.allclose(ours[index], theirs.mean(dim=0), atol=1e-6)
        elif how == "pieces" and not token.startswith("##"):
            pieces = old(token, add_special_tokens=False)["input_ids"]
            expected = theirs.mean(dim=0) if old.unk_token_id in pieces else theirs[pieces].mean(dim=0)
            assert torch.allclose(ours[index], expected, atol=1e-6), token
    if how == "random":  # of at least 20 x 12 numbers
        drawn = (ours[new] - theirs.mean(dim=0)) / theirs.std(dim=0)
        assert len(drawn.unique(dim=0)) == len(new)
        assert 0.5 < float(drawn.std()) < 2
    assert lines[0].startswith(f"vocabulary: {len(kept)} of {len(tokens)} tokens as in")


def run(output: Path, corpus: Path, steps: int, **more: object) -> PretrainConfig:
    return read_config(
        "continue",
        {
            "data.train": str(corpus / "train"),
            "data.valid": str(corpus / "valid"),
            "data.max_length": 24,
            "data.batch_size": 8,
            "optimizer.lr": 3e-3,
            "optimizer.warmup_steps": 5,
            "training.steps": steps,
            "training.eval_every": 0,
            "training.eval_batches": 3,
            "output": str(output),
        }
        | more,
    )


SMALL = {
    "model.embedding_size": 16,
    "model.hidden_size": 32,
    "model.num_hidden_layers": 1,
    "model.num_attention_heads": 2,
    "model.intermediate_size": 64,
    "model.generator.hidden_size": 16,
    "model.generator.num_hidden_layers": 1,
    "model.generator.num_attention_heads": 1,
    "model.generator.intermediate_size": 32,
    "model.max_position_embeddings": 32,
}
OTHERS = {  # what needs weights beside the towers
    "shared": {},
    "gdes": {"model.tie": "gdes"},
    "mlm": {"schedule": [{"objective": "mlm"}]},
    "electric": {"schedule": [{"objective": "electric"}]},
}


@pytest.mark.parametrize("name", OTHERS)
def test_a_continued_run_starts_where_the_first_ended_and_gets_better(tmp_path, corpus, name, capsys):
    first = pretrain(run(tmp_path / "first", corpus, 20, **SMALL, **OTHERS[name]), progress=False).metrics
    config = run(tmp_path / "next", corpus, 30, **OTHERS[name], **{"init.run": str(tmp_path / "first")})
    last = pretrain(config).metrics
    rows = [row for row in read_metrics(tmp_path / "next" / "metrics.jsonl") if row["kind"] == "eval"]
    assert [row["step"] for row in rows] == [0, 30]
    for key, value in first.items():
        assert rows[0][key] == pytest.approx(value, rel=1e-6, abs=1e-6), key
    falls = "mlm_loss" if name == "mlm" else "generator_loss"  # the discriminator's may rise with the generator's skill
    assert last[falls] < first[falls]
    shown = capsys.readouterr().out
    assert "fresh" not in shown
    assert "left out" not in shown
    assert str(tmp_path / "first" / "discriminator") in shown


def test_a_resumed_run_needs_its_source_no_more(tmp_path, corpus, monkeypatch):
    pretrain(run(tmp_path / "first", corpus, 3, **SMALL), progress=False)
    init = {"init.run": str(tmp_path / "first"), "training.save_every": 2, "data.valid": None}
    pretrain(run(tmp_path / "whole", corpus, 6, **init), progress=False)
    interrupt_after(monkeypatch, 3)
    config = run(tmp_path / "cut", corpus, 6, **init)
    assert pretrain(config, progress=False).step == 3
    (tmp_path / "first").rename(tmp_path / "gone")
    assert pretrain(config, resume=True, progress=False).step == 6
    assert same_bits(tmp_path / "whole", tmp_path / "cut")

    written = read_config(tmp_path / "cut" / "config.yaml")
    assert (written.init.run, written.model.hidden_size) == (str(tmp_path / "first"), 32)
    for card in (tmp_path / "cut" / "README.md", tmp_path / "cut" / "discriminator" / "README.md"):
        assert f"| start | weights of other models, sha256 {written.init.sha256} |" in card.read_text()
    assert "| start | random weights |" in (tmp_path / "gone" / "README.md").read_text()
    again = replace(written, output=str(tmp_path / "again"))
    with pytest.raises(ConfigError, match="is no folder"):
        pretrain(again, progress=False)
    shutil.copytree(tmp_path / "gone", tmp_path / "first")
    assert pretrain(again, progress=False).step == 6  # the file of a run starts another one like it
    assert same_bits(tmp_path / "whole", tmp_path / "again")
    save_changed(tmp_path / "first" / "generator")
    with pytest.raises(ConfigError, match=r"not those of init\.sha256"):
        pretrain(replace(written, output=str(tmp_path / "other")), progress=False)
    with pytest.raises(ConfigError, match=r"init\.run is None now"):
        pretrain(run(tmp_path / "cut", corpus, 6, **SMALL), resume=True, progress=False)


def save_changed(folder: Path, change: float = 1.0) -> None:
    weights = load_file(folder / "model.safetensors")
    weights["generator_lm_head.bias"] += change
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})


def test_what_cannot_be_is_refused(tmp_path, corpus, electra_pair):
    discriminator, generator = electra_pair

    def refused(message: str, **settings: object) -> None:
        with pytest.raises(ValueError, match=message):
            started(corpus, **{key.replace("__", "."): value for key, value in settings.items()})

    refused("google/electra-small is no folder: download", init__discriminator="google/electra-small")
    refused(r"model\.hidden_size is 20, and .* has 24", init__discriminator=discriminator, model__hidden_size=20)
    refused(
        r"model\.generator\.num_hidden_layers is 1, and",
        init__generator=generator,
        **{"model.generator.num_hidden_layers": 1},
    )
    refused(r"at most model\.max_position_embeddings \(32\)", init__discriminator=discriminator, data__max_length=64)
    refused("null where init.discriminator", init__discriminator=discriminator, init__run=generator)
    refused("holds no generator: give the folder of a finished run", init__run=generator)
    refused("holds no config.json", init__discriminator=corpus)
    refused("needs one hidden_size", init__discriminator=discriminator, init__generator=generator, model__tie="all")

    def broken(change) -> Path:
        folder = tmp_path / "broken"
        shutil.rmtree(folder, ignore_errors=True)
        shutil.copytree(discriminator, folder)
        change(folder)
        return folder

    def rewrite(folder: Path, change) -> None:
        weights = load_file(folder / "model.safetensors")
        change(weights)
        save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})

    def configure(folder: Path, **changes: object) -> None:
        config = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps(config | changes))

    def pickled(folder: Path) -> None:
        (folder / "model.safetensors").rename(folder / "pytorch_model.bin")

    def without_tokenizer(folder: Path) -> None:
        (folder / "tokenizer.json").unlink()
        rewrite(folder, lambda w: w.update({word: w[word][:-1].contiguous()}))

    word = "electra.embeddings.word_embeddings.weight"
    query = "electra.encoder.layer.1.attention.self.query.weight"
    cases = {
        "holds no model.safetensors but pytorch_model.bin, .* pickle": pickled,
        "holds no weights": lambda folder: (folder / "model.safetensors").unlink(),
        "model.safetensors is damaged": lambda folder: (folder / "model.safetensors").write_bytes(b"x" * 99),
        "config.json is damaged": lambda folder: (folder / "config.json").write_text("{"),
        "damaged: .*hidden_size": lambda folder: configure(folder, hidden_size="wide"),
        "is of model_type roberta": lambda folder: configure(folder, model_type="roberta"),
        "relative_key positions": lambda folder: configure(folder, position_embedding_type="relative_key"),
        f"lacks {query}": lambda folder: rewrite(folder, lambda w: w.pop(query)),
        "for which its config.json has no place": lambda folder: rewrite(
            folder, lambda w: w.update({query.replace("layer.1", "layer.2"): w[query].clone()})
        ),
        "give the model the checkpoint's sizes": lambda folder: rewrite(
            folder, lambda w: w.update({query: w[query][:, :-1].contiguous()})
        ),
        "infinite numbers or NaN": lambda folder: rewrite(folder, lambda w: w[query].fill_(float("nan"))),
        "not quantised": lambda folder: rewrite(folder, lambda w: w.update({query: w[query].char()})),
        "without a tokenizer.json or vocab.txt": without_tokenizer,
    }
    for message, change in cases.items():
        refused(message, init__discriminator=broken(change))

    folder = broken(lambda folder: rewrite(folder, lambda w: w[word].add_(1)))
    refused(
        "model.tie is shared, but .* have different .*word_embeddings",
        init__discriminator=folder,
        init__generator=generator,
    )
    started(corpus, **{"init.discriminator": folder, "init.generator": generator, "model.tie": "untied"})
    folder = broken(lambda folder: (folder / "tokenizer.json").unlink())
    _, lines, _ = started(corpus, **{"init.discriminator": folder})
    assert f"{folder} holds no tokenizer" in lines[0]

    config = read_config("continue", {"init.discriminator": str(discriminator), "output": str(tmp_path)})
    with pytest.raises(ConfigError, match="would delete"):
        resolve_init(config, overwrite=True)
    (tmp_path / "unfinished" / "checkpoints").mkdir(parents=True)
    refused("not finished", init__run=tmp_path / "unfinished")


def test_towers_of_two_widths_of_embeddings(tmp_path, corpus, electra_pair, rng_seed):
    bert = save(randomised(BertForMaskedLM(bert_config(corpus))), tmp_path / "bert", corpus)
    init = {"init.discriminator": bert, "init.generator": electra_pair[1]}
    with pytest.raises(ConfigError, match=r"needs one embedding_size, .* give model\.tie untied"):
        started(corpus, **init)
    model, *_ = started(corpus, **init, **{"model.tie": "untied"})
    generator, _ = saved(model, tmp_path / "saved")
    same_logits(generator, ElectraForMaskedLM.from_pretrained(electra_pair[1]), real_ids(corpus))
    model.train()
    ids = real_ids(corpus)
    assert model(ids, attention_mask=(ids != 0).long()).loss.isfinite()


def test_another_activation_and_eps_come_along(tmp_path, corpus, rng_seed):
    """A head of BERT with another activation would compute something else here: it stays fresh."""
    bert = randomised(BertForMaskedLM(bert_config(corpus, hidden_act="relu", layer_norm_eps=1e-5)))
    folder = save(bert, tmp_path / "bert", corpus)
    sizes = {"model.hidden_size": 16, "model.num_hidden_layers": 1, "model.num_attention_heads": 1}
    model, lines, config = started(corpus, **{"init.generator": folder, "model.tie": "untied"}, **sizes)
    assert (config.model.hidden_act, config.model.layer_norm_eps) == ("relu", 1e-5)
    generator, _ = saved(model, tmp_path / "saved")
    ids = real_ids(corpus)
    with torch.no_grad():
        ours, theirs = (m(ids).last_hidden_state for m in (generator.electra, bert.bert))
    assert float((ours - theirs).abs().max()) <= 1e-6 * float(theirs.abs().max())
    assert any("fresh: generator_predictions, generator_lm_head" in line for line in lines)
    with pytest.raises(ConfigError, match="hidden_act 'swoosh' is none of"):
        build_model(read_config("tiny", {"model.hidden_act": "swoosh"}), Corpus.open(corpus / "train").meta)


@pytest.mark.skipif(not os.environ.get("ELECTRA_FAST_TEST_ALL"), reason="slow (30 s): set ELECTRA_FAST_TEST_ALL=1")
@pytest.mark.parametrize("parallel", ["ddp", "fsdp"])
def test_two_ranks_start_from_the_same_weights(tmp_path, corpus, parallel):
    pretrain(run(tmp_path / "first", corpus, 3, **SMALL), progress=False)
    settings = {"init.run": str(tmp_path / "first"), "training.log_every": 1, "training.device": "cpu"}
    pretrain(run(tmp_path / "one", corpus, 3, **settings), progress=False)
    config = run(tmp_path / "two", corpus, 3, **settings, **{"training.parallel": parallel})
    (tmp_path / "two.yaml").write_text(config.to_yaml(), encoding="utf-8")
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    command += ["-m", "electra_fast", "pretrain", "--config", str(tmp_path / "two.yaml")]
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[2]), "OMP_NUM_THREADS": "1"}
    ended = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=500, check=False)
    assert ended.returncode == 0, ended.stderr
    assert ended.stdout.count("discriminator: 27 of 27 weights from") == 1
    one, two = (read_metrics(tmp_path / name / "metrics.jsonl") for name in ("one", "two"))
    assert [row["step"] for row in two] == [row["step"] for row in one]
    for ours, theirs in zip(one, two, strict=True):
        key = "loss" if "loss" in ours else "generator_loss"
        assert ours[key] == pytest.approx(theirs[key], rel=1e-5)
