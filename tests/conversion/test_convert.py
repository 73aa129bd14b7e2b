"""Conversion from Google's variables: weights to the bit, logits beside Google's in float64, and what is refused.

No TensorFlow here: the variables are a dict of arrays. test_tensorflow.py has them in TensorFlow's files.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers

import electra_fast
from electra_fast.cli import main
from electra_fast.conversion import Converted, convert, convert_variables
from electra_fast.data.tokenizer import load_tokenizer
from electra_fast.models import ElectraForJointPreTraining
from tests.conversion.google import (
    BY_NAME,
    SMALL,
    Arrays,
    Electra,
    Sizes,
    google_weights,
    random_weights,
    with_optimizer,
)
from tests.small import folder_bytes

SPECIAL = ["[UNK]", "[PAD]", "[MASK]", "[CLS]", "[SEP]"]  # in another order than in the released vocabulary
VOCABULARY = [*SPECIAL, *"abcdefghijklmnopqrstuvwxyz", *(f"##{letter}" for letter in "abcdefghijklmnopqrstuvwxyz")]


@pytest.fixture
def rng(rng_seed: int) -> np.random.Generator:
    return np.random.default_rng(rng_seed)


@pytest.fixture
def vocab(tmp_path: Path) -> Path:
    path = tmp_path / "vocab.txt"
    path.write_text("\n".join(VOCABULARY) + "\n", encoding="utf-8")
    return path


def _inputs(sizes: Sizes, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    ids, types = rng.integers(0, sizes.vocab, (3, 11)), rng.integers(0, 2, (3, 11))
    mask = (np.arange(11) < np.array([[11], [7], [1]])).astype(np.int64)
    return ids, mask, types


def _logits(model: torch.nn.Module, ids: np.ndarray, mask: np.ndarray, types: np.ndarray) -> np.ndarray:
    with torch.no_grad():
        output = model(*map(torch.from_numpy, (ids, mask, types)))
    return output.logits.numpy()


def _load(library: Any, name: str, folder: Path) -> torch.nn.Module:
    return getattr(library, name).from_pretrained(folder, local_files_only=True).eval()


def _assert_same_bits(found: Arrays, wanted: Arrays) -> None:
    assert found.keys() == wanted.keys()
    for name, array in wanted.items():
        assert (found[name].dtype, found[name].shape) == (array.dtype, array.shape), name
        assert found[name].tobytes() == array.tobytes(), name


@pytest.mark.parametrize("name", BY_NAME)
def test_logits_are_googles_and_no_bit_changes(
    name: str, tmp_path: Path, vocab: Path, rng: np.random.Generator
) -> None:
    sizes = BY_NAME[name]
    weights = random_weights(sizes, rng)
    converted = convert_variables(with_optimizer(weights, rng, step=4000), tmp_path / "out", vocab=vocab)
    assert (converted.step, converted.slots, converted.left_out) == (4000, 2 * len(weights), [])
    assert converted.tie == {"embeddings": "shared", "nothing": "untied", "all": "all"}[sizes.sharing]

    google, inputs = Electra(weights), _inputs(sizes, rng)
    real = inputs[1] == 1
    stock = {}
    for kind, class_name, wanted in (
        ("discriminator", "ElectraForPreTraining", google.rtd_logits(*inputs)),
        ("generator", "ElectraForMaskedLM", google.mlm_logits(*inputs)),
    ):
        stock[kind] = _load(transformers, class_name, converted.folders[kind])
        ours = _load(electra_fast, class_name, converted.folders[kind])
        assert wanted[real].std() > 0.01  # a thousand times the tolerance
        for model in (stock[kind], ours):
            np.testing.assert_allclose(_logits(model, *inputs)[real], wanted[real], rtol=0, atol=1e-5)
        # In float64 nothing is left but the weights: any that is off by a rounding shows.
        np.testing.assert_allclose(_logits(stock[kind].double(), *inputs)[real], wanted[real], rtol=0, atol=1e-11)
        stock[kind].float()

    _assert_same_bits(google_weights(**stock, sharing=sizes.sharing), weights)


@pytest.mark.parametrize(
    ("tie", "embedding_size", "generator_size"), [("shared", 32, 64), ("untied", 128, 64), ("all", 32, 128)]
)
def test_ours_to_google_and_back_changes_no_bit(
    tie: str, embedding_size: int, generator_size: int, tmp_path: Path, vocab: Path, rng: np.random.Generator
) -> None:
    def config(width: int, embedding_size: int) -> electra_fast.ElectraConfig:
        return electra_fast.ElectraConfig(
            vocab_size=60,
            embedding_size=embedding_size,
            hidden_size=width,
            num_hidden_layers=2,
            num_attention_heads=width // 64,
            intermediate_size=3 * width,  # of another ratio than Google's
            max_position_embeddings=20,
            pad_token_id=1,
        )

    generator_embedding = generator_size if tie == "untied" else embedding_size
    model = ElectraForJointPreTraining(
        config(generator_size, generator_embedding), config(128, embedding_size), tie=tie
    )
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.from_numpy(rng.standard_normal(parameter.shape)))
        table = model.generator.generator_lm_head.weight
        table[3, 3], table[3, 4], table[3, 5] = -0.0, float("nan"), 1e-42  # bits that arithmetic would not keep
    sharing = {"shared": "embeddings", "untied": "nothing", "all": "all"}[tie]
    variables = google_weights(model.generator, model.discriminator, sharing=sharing)

    convert_variables(with_optimizer(variables, rng), tmp_path / "out", vocab=vocab)

    back = ElectraForJointPreTraining.from_pretrained(tmp_path / "out")
    assert back.tie == tie
    arrays = [{name: p.detach().numpy() for name, p in m.state_dict().items()} for m in (back, model)]
    _assert_same_bits(*arrays)
    assert len(list(back.parameters())) == len(list(model.parameters()))  # what was tied is tied


def test_the_pair_trains_on(tmp_path: Path, vocab: Path, rng: np.random.Generator) -> None:
    convert_variables(random_weights(SMALL, rng), tmp_path / "out", vocab=vocab)
    model = ElectraForJointPreTraining.from_pretrained(tmp_path / "out")
    assert model.mask_token_id == 2
    assert model.never_mask_ids == (3, 4, 2)
    assert model.generator.config.pad_token_id == model.discriminator.config.pad_token_id == 1
    ids = torch.from_numpy(rng.integers(5, len(VOCABULARY), (4, 16)))
    result = model(ids, seed=int(rng.integers(2**31)))
    result.loss.backward()
    assert result.loss.isfinite()
    assert all(parameter.grad is not None for parameter in model.parameters())


def test_the_tokenizer_comes_along(tmp_path: Path, vocab: Path, rng: np.random.Generator) -> None:
    weights = random_weights(SMALL, rng)
    converted = convert_variables(weights, tmp_path / "out", vocab=vocab)
    assert (converted.vocabulary, converted.lowercase) == (len(VOCABULARY), True)
    for folder in converted.folders.values():
        tokenizer = load_tokenizer(folder)
        assert tokenizer.convert_ids_to_tokens(tokenizer("Ab é")["input_ids"]) == ["[CLS]", "a", "##b", "e", "[SEP]"]
        assert tokenizer.model_max_length == SMALL.positions
    for more in ({"lowercase": False}, {"hparams": '{"do_lower_case": false}'}):
        cased = convert_variables(weights, tmp_path / f"cased {len(more)} {next(iter(more))}", vocab=vocab, **more)
        assert load_tokenizer(cased.folders["generator"]).tokenize("Ab") == ["[UNK]"]


def test_without_a_vocabulary_there_are_two_models_and_no_joint_one(tmp_path: Path, rng: np.random.Generator) -> None:
    converted = convert_variables(random_weights(SMALL, rng), tmp_path / "out")
    assert (converted.is_joint, converted.vocabulary) == (False, None)
    files = {name for name, content in folder_bytes(tmp_path / "out").items() if content is not None}
    assert files == {f"{k}/{f}" for k in ("discriminator", "generator") for f in ("config.json", "model.safetensors")}


def _without(weights: Arrays, *scopes: str) -> Arrays:
    return {name: array for name, array in weights.items() if not name.startswith(scopes)}


def test_a_model_of_one_tower(tmp_path: Path, vocab: Path, rng: np.random.Generator) -> None:
    """`electra_objective: false` trains a masked language model alone, `uniform_generator` a discriminator alone."""
    weights, inputs = random_weights(BY_NAME["small all tied"], rng), _inputs(SMALL, rng)
    real, google = inputs[1] == 1, Electra(weights)
    mlm = convert_variables(_without(weights, "discriminator_predictions/"), tmp_path / "mlm", vocab=vocab)
    assert list(mlm.folders) == ["generator"]
    logits = _logits(_load(transformers, "ElectraForMaskedLM", mlm.folders["generator"]).double(), *inputs)
    np.testing.assert_allclose(logits[real], google.mlm_logits(*inputs)[real], rtol=0, atol=1e-11)
    rtd = convert_variables(_without(weights, "generator_predictions/"), tmp_path / "rtd", vocab=vocab)
    assert list(rtd.folders) == ["discriminator"]
    logits = _logits(_load(transformers, "ElectraForPreTraining", rtd.folders["discriminator"]).double(), *inputs)
    np.testing.assert_allclose(logits[real], google.rtd_logits(*inputs)[real], rtol=0, atol=1e-11)


def test_a_fine_tuned_checkpoint_gives_its_encoder(tmp_path: Path, vocab: Path, rng: np.random.Generator) -> None:
    weights = random_weights(SMALL, rng)
    tuned = _without(weights, "generator/", "generator_predictions/", "discriminator_predictions/")
    heads = {"task_specific/mnli/dense/kernel": np.zeros((128, 3), np.float32)}
    heads["task_specific/mnli/dense/bias"] = np.zeros(3, np.float32)
    with pytest.raises(ValueError, match=r"heads of tasks \(mnli\).*--encoder_only"):
        convert_variables(with_optimizer(tuned | heads, rng), tmp_path / "out", vocab=vocab)
    converted = convert_variables(with_optimizer(tuned | heads, rng), tmp_path / "out", vocab=vocab, encoder_only=True)
    assert converted.left_out == sorted(heads)
    inputs = _inputs(SMALL, rng)
    with torch.no_grad():
        encoder = _load(transformers, "AutoModel", tmp_path / "out" / "encoder").double()
        hidden = encoder(*map(torch.from_numpy, inputs)).last_hidden_state
    wanted = Electra(weights).encode("electra", *inputs, None)
    real = inputs[1] == 1
    np.testing.assert_allclose(hidden.numpy()[real], wanted[real], rtol=0, atol=1e-11)
    both = convert_variables(weights, tmp_path / "pretrained", encoder_only=True)
    assert (list(both.folders), both.tie) == (["encoder"], None)


# hparams


def test_heads_and_objective_come_from_the_hparams(tmp_path: Path, vocab: Path, rng: np.random.Generator) -> None:
    weights = random_weights(SMALL, rng)
    overrides = {"num_attention_heads": 8, "hidden_size": 128, "attention_probs_dropout_prob": 0.2}
    given = {"model_hparam_overrides": overrides, "vocab_size": SMALL.vocab, "learning_rate": 1, "mask_prob": 0.25}
    given |= {"disc_weight": 25, "temperature": 2, "disallow_correct": True, "gen_weight": 2.5}
    file = tmp_path / "hparams.json"
    file.write_text(json.dumps(given), encoding="utf-8")
    for name, text in (("a", json.dumps(given)), ("b", str(file))):
        converted = convert_variables(weights, tmp_path / name, vocab=vocab, hparams=text)
        heads = {kind: config.num_attention_heads for kind, config in converted.configs.items()}
        assert heads == {"discriminator": 8, "generator": 1}
        assert {config.attention_probs_dropout_prob for config in converted.configs.values()} == {0.2}
        joint = ElectraForJointPreTraining.from_pretrained(tmp_path / name)
        assert (joint.mask_prob, joint.discriminator_weight, joint.generator_weight) == (0.25, 25, 2.5)
        assert (joint.temperature, joint.disallow_correct) == (2, True)
    inputs = _inputs(SMALL, rng)
    logits = _logits(_load(transformers, "ElectraForPreTraining", converted.folders["discriminator"]).double(), *inputs)
    wanted = Electra(weights, heads=8).rtd_logits(*inputs)
    np.testing.assert_allclose(logits[inputs[1] == 1], wanted[inputs[1] == 1], rtol=0, atol=1e-11)


@pytest.mark.parametrize(
    ("hparams", "message"),
    [
        ("nothing.json", "expected a JSON dictionary, or a file"),
        ("{", "is no JSON"),
        ("[1]", "expected a JSON dictionary, or a file"),
        ('{"model_hparam_overrides": 3}', "must be a dictionary"),
        ('{"model_hparam_overrides": {"hidden_size": 256}}', "hidden_size is 256, but the checkpoint has 128"),
        ('{"embedding_size": 64}', "embedding_size is 64, but the checkpoint has 32"),
        ('{"model_hparam_overrides": {"num_heads": 2}}', "'num_heads', which is nothing of Google's BertConfig"),
        ('{"model_hparam_overrides": {"num_attention_heads": 5}}', "hidden size 128 is no multiple of 5 heads"),
        ('{"model_hparam_overrides": {"num_attention_heads": "4"}}', "num_attention_heads must be a number"),
        ('{"model_hparam_overrides": {"num_attention_heads": 0}}', "no multiple of 0 heads"),
        ('{"model_hparam_overrides": {"hidden_act": "relu"}}', "'relu' is not supported"),
        ('{"mask_prob": "much"}', "mask_prob must be a number; got 'much'"),
        ('{"disallow_correct": 1}', "disallow_correct must be true or false; got 1"),
    ],
)
def test_hparams_of_another_model_or_none(hparams: str, message: str, tmp_path: Path, rng: np.random.Generator) -> None:
    with pytest.raises(ValueError, match=message):
        convert_variables(random_weights(SMALL, rng), tmp_path / "out", hparams=hparams)
    assert not (tmp_path / "out").exists()


def test_heads_of_64_may_not_fit(tmp_path: Path, rng: np.random.Generator) -> None:
    """Google's code could not have made such a model without hparams, which the checkpoint does not hold."""
    weights = random_weights(Sizes(hidden=200), rng)
    with pytest.raises(ValueError, match=r"discriminator's hidden size 200 is no multiple of 3 heads.*--hparams '"):
        convert_variables(weights, tmp_path / "out")
    converted = convert_variables(
        weights,
        tmp_path / "out",
        hparams='{"model_hparam_overrides": {"num_attention_heads": 4}}',
    )
    assert converted.configs["discriminator"].num_attention_heads == 4


# What is refused


def _refused(variables: Arrays, output: Path, **options: Any) -> str:
    with pytest.raises(ValueError, match=r".") as caught:
        convert_variables(variables, output, checkpoint="THE CHECKPOINT", **options)
    assert not output.exists()
    assert str(caught.value).startswith("THE CHECKPOINT")
    return str(caught.value)


def test_missing_and_unknown_variables_are_listed(tmp_path: Path, rng: np.random.Generator) -> None:
    weights = random_weights(SMALL, rng)
    query = "electra/encoder/layer_1/attention/self/query/kernel"
    message = _refused(_without(weights, query), tmp_path / "out")
    assert "1 missing" in message
    assert query in message
    assert "unknown" not in message
    strange = {
        "electra/encoder/layer_1/attention/self/query/scale": np.ones(3),
        "electra/pooler/dense/bias": np.ones(3),
    }
    message = _refused(weights | strange, tmp_path / "out")
    assert f"2 unknown: {', '.join(strange)}" in message
    assert "missing" not in message
    both = _refused(_without(weights, "generator_predictions/output_bias") | strange, tmp_path / "out")
    assert "1 missing: generator_predictions/output_bias; 2 unknown" in both


@pytest.mark.parametrize("name", ["small", "base untied", "small all tied"])
def test_no_variable_may_be_left_out(name: str, tmp_path: Path, rng: np.random.Generator) -> None:
    """Each one, with a message that names it; but a whole head or tower less is another kind of model."""
    weights = random_weights(BY_NAME[name], rng)
    for left_out in weights:
        message = _refused(_without(weights, left_out), tmp_path / "out")
        assert left_out in message, left_out


def test_a_missing_layer_is_no_shorter_model(tmp_path: Path, rng: np.random.Generator) -> None:
    message = _refused(_without(random_weights(SMALL, rng), "electra/encoder/layer_0/"), tmp_path / "out")
    assert "16 missing: electra/encoder/layer_0/attention/output/LayerNorm/beta" in message
    assert "16 unknown: electra/encoder/layer_1/" in message


def test_a_generator_without_the_discriminators_head(tmp_path: Path, rng: np.random.Generator) -> None:
    message = _refused(_without(random_weights(SMALL, rng), "discriminator_predictions/"), tmp_path / "out")
    assert "4 missing: discriminator_predictions/dense/bias" in message


def test_shapes_and_types_must_fit(tmp_path: Path, rng: np.random.Generator) -> None:
    weights = random_weights(SMALL, rng)
    kernel = "electra/encoder/layer_1/output/dense/kernel"
    message = _refused(weights | {kernel: weights[kernel].T}, tmp_path / "out")
    assert f"{kernel} is float32 [128, 512], not float32 [512, 128]" in message
    bias = "generator_predictions/output_bias"
    message = _refused(weights | {bias: weights[bias].astype(np.float16)}, tmp_path / "out")
    assert f"{bias} is float16 [90], not float32 [90]" in message
    table = "electra/embeddings/word_embeddings"
    assert table in _refused(weights | {table: weights[table][None]}, tmp_path / "out")


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["_CHECKPOINTABLE_OBJECT_GRAPH", "model/.ATTRIBUTES/VARIABLE_VALUE"], "TensorFlow 2"),
        (["bert/embeddings/word_embeddings", "cls/predictions/output_bias"], "it is a BERT"),
        (["resnet/conv1/kernel"], "it holds resnet/conv1/kernel"),
        ([], "it holds no variables"),
    ],
)
def test_other_models(names: list[str], message: str, tmp_path: Path) -> None:
    assert message in _refused({name: np.zeros(3, np.float32) for name in names}, tmp_path / "out")


def test_a_vocabulary_of_another_model(tmp_path: Path, rng: np.random.Generator) -> None:
    vocab = tmp_path / "vocab.txt"
    vocab.write_text("\n".join([*SPECIAL, *(f"word{index}" for index in range(90))]), encoding="utf-8")
    with pytest.raises(ValueError, match="has 95 entries, but the discriminator knows 90 tokens"):
        convert_variables(random_weights(SMALL, rng), tmp_path / "out", vocab=vocab)


def test_output_must_be_new(tmp_path: Path, rng: np.random.Generator, monkeypatch: pytest.MonkeyPatch) -> None:
    weights, output = random_weights(SMALL, rng), tmp_path / "out"
    output.mkdir()
    convert_variables(weights, output)
    before = folder_bytes(output)
    with pytest.raises(ValueError, match="holds something already: give a new folder"):
        convert_variables(weights, output)
    with pytest.raises(ValueError, match="is a file: give a new folder"):
        convert_variables(weights, output / "generator" / "config.json")
    assert folder_bytes(output) == before

    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(electra_fast.ElectraForPreTraining, "save_pretrained", full)
        with pytest.raises(OSError, match="No space left"):
            convert_variables(weights, tmp_path / "new")
    assert folder_bytes(tmp_path / "new") == {}
    (tmp_path / "new" / ".partial" / "generator").mkdir(parents=True)  # of a conversion that was killed
    convert_variables(weights, tmp_path / "new")
    assert folder_bytes(tmp_path / "new") == before


# The command


def test_the_command_says_what_it_made_of_what(
    tmp_path: Path, rng: np.random.Generator, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    variables = with_optimizer(random_weights(BY_NAME["base untied"], rng), rng, step=12345)
    monkeypatch.setattr("electra_fast.conversion.google.read_tensorflow", lambda prefix: variables)
    folder = _touch(tmp_path / "given é", *PARTS)
    (folder / "vocab.txt").write_text("\n".join(VOCABULARY), encoding="utf-8")
    output = tmp_path / "out put"
    assert main(["convert", str(folder), "--output", str(output)]) == 0
    shown = capsys.readouterr().out.splitlines()
    tower = "hidden size {} (heads: {} x 64), embedding size {}, 90 tokens"
    assert shown == [
        f"{output / 'discriminator'}: 2 layers, {tower.format(128, 2, 128)}",
        f"{output / 'generator'}: 2 layers, {tower.format(64, 1, 64)}",
        f"From {folder / 'model.ckpt-7'} after 12,345 steps; nothing shared",
        f"Left out: {len(variables) // 3 * 2} variables of the optimizer, whose moments begin at zero again",
        f"Tokenizer: {len(VOCABULARY)} entries, lowercase",
        f"Next: electra-fast pretrain --config continue --init.run '{output}' --model.tie untied --data.train corpus "
        "--output runs/continued",
    ]
    assert main(["convert", str(folder), "--output", str(output), "--lowercase", "false"]) == 2
    assert capsys.readouterr().err == f"error: {output} holds something already: give a new folder\n"
    bare = ["--output", str(tmp_path / "bare"), "--encoder_only"]
    (folder / "vocab.txt").unlink()
    assert main(["convert", str(folder), *bare]) == 0
    shown = capsys.readouterr().out
    assert "Left out: discriminator_predictions/dense/bias, " in shown
    assert "No vocab.txt: no tokenizer was written" in shown
    assert "Next:" not in shown


# Files


def _touch(folder: Path, *names: str) -> Path:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(b"")
    return folder


def _told(given: Path) -> str:
    """What is said before TensorFlow is asked for."""
    with pytest.raises(ValueError, match=r".") as caught:
        convert(given, given.parent / "out")
    return str(caught.value)


@pytest.mark.parametrize(
    ("files", "given", "message"),
    [
        ([], "absent", "is not there: give the folder of a checkpoint of TensorFlow 1"),
        (["text.txt"], "", "holds no checkpoint of TensorFlow: give the folder"),
        (["text.txt"], "text.txt", "is no checkpoint of TensorFlow"),
        (["m.data-00000-of-00001"], "m.data-00000-of-00001", "m.index is not beside"),
        (["config.json", "model.safetensors"], "", "in the format of transformers already"),
        (["model.safetensors"], "model.safetensors", "in the format of transformers already"),
        (["discriminator/config.json", "discriminator/model.safetensors"], "", "in the format of transformers already"),
        (["config.json", "pytorch_model.bin"], "", "a pickle"),
        (["pytorch_model.bin"], "", "electra-fast reads safetensors only"),
        (["pytorch_model.bin"], "pytorch_model.bin", "can run any program"),
        (["model.pt"], "model.pt", "a pickle"),
        (["electra_small.zip"], "electra_small.zip", "is packed: unpack it"),
        (["saved_model.pb", "variables/variables.index"], "", "is a SavedModel"),
        (["model.ckpt-1.index", "model.ckpt-2.index"], "", r"several checkpoints: give one of .*-1, .*-2"),
    ],
)
def test_advice_on_other_formats(files: list[str], given: str, message: str, tmp_path: Path) -> None:
    assert re.search(message, _told(_touch(tmp_path / "given", "keep", *files) / given))


PARTS = ["model.ckpt-7.index", "model.ckpt-7.meta", "model.ckpt-7.data-00000-of-00001"]


@pytest.mark.parametrize(
    ("named", "given"),
    [
        (None, "model.ckpt-7"),
        (None, PARTS[0]),
        (None, PARTS[1]),
        (None, PARTS[2]),
        ("model.ckpt-7", ""),
        ("/of/another/machine/model.ckpt-7", ""),
        (None, "alone"),
    ],
)
def test_where_the_checkpoint_is(
    named: str | None, given: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, rng: np.random.Generator
) -> None:
    folder = _touch(tmp_path, *PARTS, "model.ckpt-10.index", *(f"alone/{part}" for part in PARTS))
    if named is not None:
        (folder / "checkpoint").write_text(f'model_checkpoint_path: "{named}"\nall_model_checkpoint_paths: "x"\n')
    found = []

    def read(prefix: Path) -> Arrays:
        found.append(prefix)
        return random_weights(SMALL, rng)

    monkeypatch.setattr("electra_fast.conversion.google.read_tensorflow", read)
    converted: Converted = convert(folder / given, tmp_path / "out")
    assert found == [folder / ("alone/model.ckpt-7" if given == "alone" else "model.ckpt-7")]
    assert converted.checkpoint == str(found[0])


def test_the_working_folder_is_a_folder_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match="holds no checkpoint of TensorFlow"):
        convert(".", "out")


def test_without_tensorflow_the_extra_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "tensorflow", None)
    message = _told(_touch(tmp_path / "given", *PARTS))
    assert "need tensorflow, which is not installed: pip install 'electra-fast[tensorflow]'" in message
