"""FeatureExtractor and `electra-fast features` beside stock transformers in float64, and files read back."""

from __future__ import annotations

import json
import random
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers
from torch import Tensor, nn

from electra_fast import FeatureExtractor
from electra_fast.cli import main
from electra_fast.finetuning.features import POOLINGS
from tests.small import WORDS, write_small

LAYERS = 3


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Folders of stock checkpoints with heads on them, and a tokenizer."""
    folder = tmp_path_factory.mktemp("models")
    torch.manual_seed(0)  # what learns on top of it must not depend on luck
    tokenizer = transformers.AutoTokenizer.from_pretrained(write_small(folder) / "tokenizer")
    shape = {
        "vocab_size": len(tokenizer),
        "hidden_size": 32,
        "num_hidden_layers": LAYERS,
        "num_attention_heads": 2,
        "intermediate_size": 48,
        "max_position_embeddings": 40,
        "initializer_range": 0.2,
    }
    stock = {
        "electra": transformers.ElectraForPreTraining(transformers.ElectraConfig(embedding_size=24, **shape)),
        "bert": transformers.BertForMaskedLM(transformers.BertConfig(**shape)),
    }
    for name, model in stock.items():
        model.save_pretrained(folder / name)
        tokenizer.save_pretrained(folder / name)
    return {name: folder / name for name in stock}


def _texts(seed: int) -> list[str]:
    """Ragged, one of them empty and one too long for the models."""
    rng = random.Random(seed)
    return [" ".join(rng.choices(WORDS, k=length)) for length in (*(rng.randrange(1, 30) for _ in range(5)), 0, 60)]


def _stock(folder: Path, texts: list[str]) -> tuple[list[Tensor], Tensor]:
    """Hidden states [B, S, H] before, between and after all layers in float64, and the mask [B, S]."""
    model = transformers.AutoModel.from_pretrained(folder).double().eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    encoded = tokenizer(texts, padding=True, truncation=True, max_length=40, return_tensors="pt")
    assert type(model).__module__.startswith("transformers.")
    return list(model(**encoded, output_hidden_states=True).hidden_states), encoded["attention_mask"]


def _pooled(vectors: Tensor, mask: Tensor, pooling: str) -> Tensor:
    rows = [row[keep] for row, keep in zip(vectors, mask.bool(), strict=True)]
    if pooling == "tokens":
        return vectors * mask[..., None]
    how = {"mean": lambda row: row.mean(0), "max": lambda row: row.amax(0), "cls": lambda row: row[0]}[pooling]
    return torch.stack([how(row) for row in rows])


@pytest.mark.parametrize("name", ["electra", "bert"])
@pytest.mark.parametrize("layers", [-1, [1], [0, -2, 3]], ids=str)
def test_vectors_are_stocks_hidden_states(
    models: dict[str, Path], name: str, layers: int | list[int], rng_seed: int
) -> None:
    texts = _texts(rng_seed)
    states, mask = _stock(models[name], texts)
    wanted = torch.cat([states[layer] for layer in ([layers] if isinstance(layers, int) else layers)], dim=-1)
    for pooling in POOLINGS:
        extractor = FeatureExtractor(models[name], layers=layers, pooling=pooling).double()
        result = extractor(texts)
        assert result.shape[-1] == extractor.dim
        assert not result.requires_grad
        torch.testing.assert_close(result, _pooled(wanted, mask, pooling), rtol=1e-9, atol=1e-10)
        ids = extractor.tokenizer(texts, truncation=True, max_length=40)["input_ids"]
        packed = extractor.packed(ids)
        same = result[mask.bool()] if pooling == "tokens" else result
        torch.testing.assert_close(packed, same, rtol=1e-12, atol=1e-12)


def test_layers_above_the_highest_are_dropped(models: dict[str, Path]) -> None:
    assert len(FeatureExtractor(models["electra"], layers=[0, 1]).encoder.encoder.layer) == 1
    assert len(FeatureExtractor(models["electra"], layers=0).encoder.encoder.layer) == 0


def test_trainable_gets_stocks_gradients_and_frozen_gets_none(models: dict[str, Path], rng_seed: int) -> None:
    texts = _texts(rng_seed)
    trained = FeatureExtractor(models["electra"], layers=[1, -1], trainable=True).double()
    assert trained.training
    trained.eval()  # without dropout, so that stock can be compared with
    model = transformers.AutoModel.from_pretrained(models["electra"]).double().eval()
    encoded = trained.tokenize(texts)
    states = model(**encoded, output_hidden_states=True).hidden_states
    weights = torch.randn(len(texts), trained.dim, dtype=torch.float64)
    (trained(texts) * weights).sum().backward()
    wanted = _pooled(torch.cat([states[1], states[-1]], dim=-1), encoded["attention_mask"], "mean")
    (wanted * weights).sum().backward()
    theirs = dict(model.named_parameters())
    compared = 0
    for name, parameter in trained.encoder.named_parameters():
        torch.testing.assert_close(parameter.grad, theirs[name].grad, rtol=1e-8, atol=1e-9, msg=name)
        compared += 1
    assert compared == len(theirs)

    frozen = FeatureExtractor(models["electra"]).train()
    assert not frozen.training
    assert not any(parameter.requires_grad for parameter in frozen.parameters())
    first = frozen(texts)
    assert torch.equal(first, frozen(texts))  # no dropout
    assert not first.requires_grad


@pytest.mark.parametrize("trainable", [False, True])
def test_another_model_learns_on_top(models: dict[str, Path], trainable: bool) -> None:
    """Which of two words a text has: a linear layer over the vectors separates it."""
    torch.manual_seed(0)
    rng = random.Random(0)
    texts = [f"{' '.join(rng.choices(WORDS[:9], k=4))} {'river' if i % 2 else 'under'}" for i in range(32)]
    labels = torch.arange(32) % 2
    extractor = FeatureExtractor(models["electra"], trainable=trainable)
    model = nn.Sequential(extractor, nn.Linear(extractor.dim, 2))
    before = {name: value.clone() for name, value in extractor.state_dict().items()}
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=0.005 if trainable else 0.1)
    for _ in range(60):
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(texts), labels).backward()
        optimizer.step()
    model.eval()
    assert (model(texts).argmax(-1) == labels).double().mean() >= 0.9
    moved = [name for name, value in extractor.state_dict().items() if not torch.equal(value, before[name])]
    assert bool(moved) == trainable


def test_what_is_refused(models: dict[str, Path], tmp_path: Path) -> None:
    folder = models["electra"]
    for options, message in (
        ({"layers": 4}, "the model has 3"),
        ({"layers": []}, "layers is empty"),
        ({"pooling": "sum"}, "pooling must be one of mean, cls, max, tokens"),
        ({"max_length": 41}, "position table's size \\(40\\)"),
    ):
        with pytest.raises(ValueError, match=message):
            FeatureExtractor(folder, **options)
    with pytest.raises(ValueError, match=r"holds no config\.json"):
        FeatureExtractor(tmp_path)
    extractor = FeatureExtractor(folder)
    with pytest.raises(ValueError, match="a list of texts"):
        extractor("one text")
    with pytest.raises(ValueError, match="pad on the right"):
        extractor(input_ids=torch.tensor([[0, 5]]), attention_mask=torch.tensor([[0, 1]]))
    assert extractor([]).shape == (0, extractor.dim)


@pytest.mark.parametrize("pooling", ["mean", "tokens"])
@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_files_hold_the_vectors_in_the_texts_order(
    models: dict[str, Path],
    pooling: str,
    dtype: str,
    tmp_path: Path,
    rng_seed: int,
    capsys: pytest.CaptureFixture[str],
) -> None:
    parquet = pytest.importorskip("pyarrow.parquet")
    texts = _texts(rng_seed)
    (tmp_path / "texts.txt").write_text("\n".join(texts) + "\n", encoding="utf-8")
    lines = "".join(json.dumps({"review": text}) + "\n" for text in texts)
    (tmp_path / "texts.jsonl").write_text(lines, encoding="utf-8")
    options = [str(models["electra"]), "--pooling", pooling, "--layers", "0", "-1", "--dtype", dtype]
    given = ["--input", str(tmp_path / "texts.txt"), "--output", str(tmp_path / "v.npy")]
    assert main(["features", *options, *given]) == 0
    assert f"{len(texts)} texts of" in capsys.readouterr().out
    given = ["--input", str(tmp_path / "texts.jsonl"), "--text", "review", "--output", str(tmp_path / "v.parquet")]
    assert main(["features", *options, *given]) == 0

    extractor = FeatureExtractor(models["electra"], layers=[0, -1], pooling=pooling)
    ids = extractor.tokenizer(texts, truncation=True, max_length=40)["input_ids"]
    wanted = extractor.packed(ids).numpy().astype(dtype)
    array = np.load(tmp_path / "v.npy")
    assert array.dtype == dtype
    # Another split into batches may round otherwise.
    tolerance = {"rtol": 1e-4, "atol": 1e-4} if dtype == "float32" else {"rtol": 4e-3, "atol": 4e-3}
    np.testing.assert_allclose(array, wanted, **tolerance)
    table = parquet.read_table(tmp_path / "v.parquet")
    assert table["text"].to_pylist() == texts
    if pooling == "mean":
        np.testing.assert_array_equal(np.array(table["vector"].to_pylist(), dtype), array)
        return
    offsets = np.load(tmp_path / "v.offsets.npy")
    np.testing.assert_array_equal(np.diff(offsets), [len(row) for row in ids])
    tokens = [extractor.tokenizer.convert_ids_to_tokens(row) for row in ids]
    assert table["tokens"].to_pylist() == tokens
    flat = [vector for text in table["vectors"].to_pylist() for vector in text]
    np.testing.assert_array_equal(np.array(flat, dtype), array)


def test_the_command_tells_what_is_wrong(
    models: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = str(models["electra"])
    (tmp_path / "texts.txt").write_text("a fox\n", encoding="utf-8")
    (tmp_path / "bad.jsonl").write_text('{"text": "a"}\n{"text": 3}\n', encoding="utf-8")
    (tmp_path / "latin.txt").write_bytes(b"a fox\xe9\n")
    (tmp_path / "empty.txt").write_bytes(b"")
    (tmp_path / "there.npy").write_bytes(b"")
    for name, output, message in (
        ("texts.txt", "v.bin", ".npy or .parquet"),
        ("texts.txt", "there.npy", "there already"),
        ("texts.txt", "no/v.npy", "is not there: make it"),
        ("bad.jsonl", "v.npy", "row 2: text must be text"),
        ("latin.txt", "v.npy", "not UTF-8"),
        ("empty.txt", "v.npy", "holds no text"),
        ("none.txt", "v.npy", "No such file"),
    ):
        arguments = [model, "--input", str(tmp_path / name), "--output", str(tmp_path / output)]
        assert main(["features", *arguments]) == 2
        error = capsys.readouterr().err
        assert message in error, error
        assert len(error.splitlines()) == 1
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "bad.jsonl",
        "empty.txt",
        "latin.txt",
        "texts.txt",
        "there.npy",
    ]
