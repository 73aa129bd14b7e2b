"""The fast classes in transformers' place: names, files, hub, pipelines, hooks, wrapped layers, attn_implementation."""

from __future__ import annotations

import copy
import gc
import importlib
import itertools
import json
import pickle
import sys
import types
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
import transformers
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers import BertConfig, ElectraConfig, PreTrainedModel
from transformers.models.electra import modeling_electra as stock_electra

import electra_fast
from electra_fast import attention, optimize, patch_transformers
from electra_fast.models import initialize_weights
from electra_fast.models.swap import SWAPS
from electra_fast.models.tower import FlatTower

HEADS = "PreTraining MaskedLM CausalLM SequenceClassification TokenClassification QuestionAnswering MultipleChoice"
NAMES = ["ElectraModel", *(f"ElectraFor{head}" for head in HEADS.split())]
SIZES = {
    "vocab_size": 90,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 48,
    "max_position_embeddings": 24,
}
LENGTHS = (9, 4, 7)


def electra_config(**more: object) -> ElectraConfig:
    return ElectraConfig(embedding_size=16, **SIZES, **more)


def stock_model(name: str = "ElectraModel", **more: object) -> PreTrainedModel:
    """A model of transformers itself in eval mode, with weights so large that a mistake shows."""
    config = BertConfig(**SIZES, **more) if name.startswith("Bert") else electra_config(**more)
    model = getattr(transformers, name)(config)
    initialize_weights(model, std=0.2)
    return model.eval()


def ragged() -> tuple[Tensor, Tensor]:
    """Ids and mask [3, 9]."""
    mask = (torch.arange(max(LENGTHS)) < torch.tensor(LENGTHS)[:, None]).long()
    return torch.randint(1, 90, mask.shape) * mask, mask


def packed(ids: Tensor, mask: Tensor) -> dict[str, object]:
    boundaries = torch.tensor([0, *LENGTHS]).cumsum(0).to(torch.int32)
    return {"input_ids": ids[mask.bool()][None], "cu_seq_lens_q": boundaries, "max_length_q": max(LENGTHS)}


@torch.no_grad()
def real_results(model: nn.Module, *, choices: bool = False) -> Tensor:
    """The first result of `model` for one batch, always the same, without what stands at padding."""
    torch.manual_seed(5)
    ids, mask = ragged()
    if choices:
        return model(ids.unsqueeze(0), attention_mask=mask.unsqueeze(0))[0]
    result = model(ids, attention_mask=mask)[0]
    return result[mask.bool()] if result.shape[:2] == mask.shape else result


def assert_equal_results(ours: nn.Module, theirs: nn.Module) -> None:
    choices = "MultipleChoice" in type(theirs).__name__
    assert float((real_results(ours, choices=choices) - real_results(theirs, choices=choices)).abs().max()) <= 2e-5


@pytest.fixture
def flat_calls(monkeypatch: pytest.MonkeyPatch) -> list[FlatTower]:
    """The towers whose flat path has run, one entry a call."""
    calls: list[FlatTower] = []
    flat = FlatTower._flat_hidden_states

    def spy(self: FlatTower, *args: object) -> Tensor:
        calls.append(self)
        return flat(self, *args)

    monkeypatch.setattr(FlatTower, "_flat_hidden_states", spy)
    return calls


# --- The classes ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", NAMES)
def test_each_class_stands_in_for_the_stock_one(name):
    ours, theirs = getattr(electra_fast, name), getattr(transformers, name)
    model, stock = ours(electra_config()), theirs(electra_config())
    assert ours is not theirs
    assert isinstance(model, theirs)
    assert ours.__name__ == name
    assert ours.can_generate() == theirs.can_generate()
    assert ("GenerationMixin" in str(ours.__bases__)) == ("GenerationMixin" in str(theirs.__bases__))
    assert model.config.to_dict() == stock.config.to_dict()
    assert {key: value.shape for key, value in model.state_dict().items()} == {
        key: value.shape for key, value in stock.state_dict().items()
    }
    assert [n for n, _ in model.named_parameters()] == [n for n, _ in stock.named_parameters()]


@pytest.mark.parametrize("name", NAMES)
def test_files_go_both_ways(name, tmp_path):
    ours, theirs = getattr(electra_fast, name), getattr(transformers, name)
    stock = stock_model(name)
    stock.save_pretrained(tmp_path / "stock")
    model = ours.from_pretrained(tmp_path / "stock").eval()
    assert_equal_results(model, stock)
    model.save_pretrained(tmp_path / "ours")
    assert (tmp_path / "ours" / "config.json").read_text() == (tmp_path / "stock" / "config.json").read_text()
    assert json.loads((tmp_path / "ours" / "config.json").read_text())["architectures"] == [name]
    assert_equal_results(theirs.from_pretrained(tmp_path / "ours").eval(), stock)


def test_copies_and_pickles_stay_fast(flat_calls):
    stock = stock_model("ElectraForTokenClassification")
    model = optimize(copy.deepcopy(stock))
    for other in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        flat_calls.clear()
        assert_equal_results(other, stock)
        assert flat_calls == [other.electra]


def test_built_on_the_meta_device_and_filled(tmp_path, flat_calls):
    stock = stock_model("ElectraForSequenceClassification")
    stock.save_pretrained(tmp_path)
    with torch.device("meta"):
        hollow = electra_fast.ElectraForSequenceClassification(electra_config())
    assert hollow.electra.encoder.layer[0].output.dense.weight.is_meta
    loaded = electra_fast.ElectraForSequenceClassification.from_pretrained(tmp_path, low_cpu_mem_usage=True).eval()
    assert_equal_results(loaded, stock)
    assert flat_calls


def test_resized_vocabulary():
    stock = stock_model("ElectraForMaskedLM")
    model = optimize(copy.deepcopy(stock))
    for other in (stock, model):
        other.resize_token_embeddings(95, mean_resizing=False)
    model.load_state_dict(stock.state_dict())
    assert model.generator_lm_head.weight is model.get_input_embeddings().weight
    assert_equal_results(model, stock)
    assert model(torch.tensor([[94, 3]])).logits.shape == (1, 2, 95)


def test_a_chunked_feed_forward_has_the_same_results(flat_calls):
    stock = stock_model("ElectraForTokenClassification", chunk_size_feed_forward=1)
    model = optimize(copy.deepcopy(stock))
    assert_equal_results(model, stock)
    plain = optimize(stock_model("ElectraForTokenClassification"))
    plain.load_state_dict(stock.state_dict())
    ids, mask = ragged()
    assert torch.allclose(model(ids, mask).logits, plain(ids, mask).logits, rtol=0, atol=2e-5)  # at padding too
    assert len(flat_calls) == 3


# --- A hub cache ------------------------------------------------------------------------------------------------------

DISCRIMINATOR = "google/electra-small-discriminator"


def lay_out_hub(cache: Path, files: Callable[[Path], None], revision: str = "5f3f4a9a") -> None:
    """What huggingface_hub leaves on disk: refs/main names a snapshot, whose files are links into blobs."""
    repo = cache / "models--google--electra-small-discriminator"
    snapshot, blobs = repo / "snapshots" / revision, repo / "blobs"
    for folder in (snapshot, blobs, repo / "refs"):
        folder.mkdir(parents=True)
    (repo / "refs" / "main").write_text(revision)
    files(snapshot)
    for index, file in enumerate(sorted(snapshot.iterdir())):
        file.rename(blobs / f"blob{index}")
        file.symlink_to(blobs / f"blob{index}")


def with_old_names(state: dict[str, Tensor]) -> dict[str, Tensor]:
    def old(key: str) -> str:
        return key.replace("LayerNorm.weight", "LayerNorm.gamma").replace("LayerNorm.bias", "LayerNorm.beta")

    return {old(key): value for key, value in state.items()}


@pytest.mark.parametrize("layout", ["safetensors", "bin", "sharded", "old names, safetensors", "old names, bin"])
def test_from_a_hub_cache(layout, tmp_path, monkeypatch):
    stock = stock_model("ElectraForPreTraining")

    def files(snapshot: Path) -> None:
        if layout == "sharded":
            stock.save_pretrained(snapshot, max_shard_size="10KB")
            assert len(list(snapshot.glob("*.safetensors"))) > 2
            return
        stock.config.architectures = ["ElectraForPreTraining"]
        stock.config.save_pretrained(snapshot)
        state = with_old_names(stock.state_dict()) if "old" in layout else stock.state_dict()
        if "bin" in layout:
            torch.save(state, snapshot / "pytorch_model.bin")
        else:
            save_file(state, snapshot / "model.safetensors", metadata={"format": "pt"})

    lay_out_hub(tmp_path, files)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    model = electra_fast.ElectraForPreTraining.from_pretrained(DISCRIMINATOR, cache_dir=tmp_path)
    assert_equal_results(model.eval(), stock)
    with patch_transformers():
        tower = transformers.AutoModel.from_pretrained(DISCRIMINATOR, cache_dir=tmp_path)
    assert type(tower) is electra_fast.ElectraModel
    assert_equal_results(tower.eval(), stock.electra)


# --- patch_transformers -----------------------------------------------------------------------------------------------


def test_auto_classes_build_fast_models_while_patched(tmp_path):
    names = {
        "AutoModel": "ElectraModel",
        "AutoModelForPreTraining": "ElectraForPreTraining",
        "AutoModelForMaskedLM": "ElectraForMaskedLM",
        "AutoModelForCausalLM": "ElectraForCausalLM",
        "AutoModelForSequenceClassification": "ElectraForSequenceClassification",
        "AutoModelForTokenClassification": "ElectraForTokenClassification",
        "AutoModelForQuestionAnswering": "ElectraForQuestionAnswering",
        "AutoModelForMultipleChoice": "ElectraForMultipleChoice",
    }
    electra_fast.ElectraForPreTraining(electra_config()).save_pretrained(tmp_path)
    with patch_transformers():
        for auto, name in names.items():
            assert type(getattr(transformers, auto).from_pretrained(tmp_path)) is getattr(electra_fast, name)
            assert type(getattr(transformers, auto).from_config(electra_config())) is getattr(electra_fast, name)
        bert = transformers.AutoModelForMaskedLM.from_config(BertConfig(**SIZES))
        assert type(bert) is SWAPS[stock_class("BertForMaskedLM")]
    for auto in names:
        assert type(getattr(transformers, auto).from_config(electra_config())) not in SWAPS.values()


def stock_class(name: str) -> type[nn.Module]:
    return next(stock for stock in SWAPS if stock.__name__ == name)


def test_a_module_that_the_collector_does_not_show_is_patched(monkeypatch):
    """As after gc.freeze()."""
    monkeypatch.setattr(gc, "get_objects", lambda: [])
    assert importlib.import_module("electra_fast.models.optimize")._packages.__wrapped__(transformers) == [transformers]


def test_patch_undo_nesting_and_many_undos():
    stock = transformers.ElectraModel
    with patch_transformers() as outer:
        assert transformers.ElectraModel is stock_electra.ElectraModel is electra_fast.ElectraModel
        with patch_transformers():
            assert transformers.models.electra.ElectraModel is electra_fast.ElectraModel
        assert transformers.ElectraModel is electra_fast.ElectraModel
    assert transformers.ElectraModel is stock_electra.ElectraModel is stock
    outer.undo()
    assert transformers.ElectraModel is stock

    patch = patch_transformers()
    assert importlib.import_module("transformers").ElectraModel is electra_fast.ElectraModel
    model = transformers.ElectraModel(electra_config())
    patch.undo()
    assert transformers.ElectraModel is transformers.models.electra.ElectraModel is stock
    assert type(model) is electra_fast.ElectraModel

    with pytest.raises(RuntimeError, match="boom"), patch_transformers():
        raise RuntimeError("boom")
    assert transformers.ElectraModel is stock


def test_pipelines_build_fast_models_while_patched(tmp_path, flat_calls):
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "the", "fox", "runs", "over", "a", "river"]
    (tmp_path / "vocab.txt").write_text("\n".join(words))
    tokenizer = transformers.ElectraTokenizer(str(tmp_path / "vocab.txt"))
    texts = ["the fox", "a river runs over the fox"]
    for task, name in (("text-classification", "SequenceClassification"), ("feature-extraction", None)):
        folder = tmp_path / task
        stock = stock_model(f"ElectraFor{name}" if name else "ElectraModel")
        stock.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        options = {"batch_size": 2} | ({"top_k": None} if name else {})  # all labels: two may be next to equal
        expected = transformers.pipeline(task, model=str(folder), device="cpu")(texts, **options)
        with patch_transformers():
            pipeline = transformers.pipeline(task, model=str(folder), device="cpu")
        assert type(pipeline.model) in SWAPS.values()
        flat_calls.clear()
        got = pipeline(texts, **options)
        assert flat_calls
        if name:
            for one, other in zip(got, expected, strict=True):
                scores, wanted = ({row["label"]: row["score"] for row in rows} for rows in (one, other))
                assert scores == pytest.approx(wanted, abs=2e-5)
        else:  # the shorter text is padded: its own 4 tokens count
            assert torch.tensor(got[1]).sub(torch.tensor(expected[1])).abs().max() <= 2e-5
            assert torch.tensor(got[0])[:, :4].sub(torch.tensor(expected[0])[:, :4]).abs().max() <= 2e-5


# --- optimize ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [*NAMES, "BertModel", "BertForMaskedLM", "BertForNextSentencePrediction"])
def test_optimize_a_stock_model_in_place(name, flat_calls):
    stock = stock_model(name)
    model = copy.deepcopy(stock)
    weights = {n: id(parameter) for n, parameter in model.named_parameters()}
    assert optimize(model) is model
    assert {n: id(parameter) for n, parameter in model.named_parameters()} == weights
    assert isinstance(model, type(stock))
    assert_equal_results(model, stock)
    classes = [type(module) for module in model.modules()]
    assert optimize(model) is model
    assert [type(module) for module in model.modules()] == classes
    assert len(flat_calls) == 1


class TwoTowers(nn.Module):
    """A model of a user's own."""

    def __init__(self, tower: nn.Module) -> None:
        super().__init__()
        self.tower = tower
        self.head = nn.Linear(32, 3)

    def forward(self, ids: Tensor, attention_mask: Tensor) -> tuple[Tensor]:
        hidden = self.tower(input_ids=ids, attention_mask=attention_mask).last_hidden_state
        return (self.head(hidden[:, 0] - (hidden * attention_mask.unsqueeze(-1)).sum(1)),)


def test_optimize_a_model_around_a_tower(flat_calls):
    stock = TwoTowers(stock_model())
    model = optimize(copy.deepcopy(stock))
    assert type(model) is TwoTowers
    assert_equal_results(model, stock)
    assert flat_calls == [model.tower]


class Scaled(stock_electra.ElectraForSequenceClassification):
    """A subclass of a stock class."""

    def forward(self, *args: object, **kwargs: object) -> tuple[Tensor]:
        return (2 * super().forward(*args, **kwargs).logits,)


class Reversed(stock_electra.ElectraModel):
    """A tower whose forward is a user's own."""

    def forward(self, input_ids: Tensor, **kwargs: object) -> object:
        return super().forward(input_ids.flip(1), **kwargs)


@pytest.mark.parametrize("cls", [Scaled, Reversed])
def test_subclasses_keep_what_they_override(cls):
    torch.manual_seed(0)
    stock = cls(electra_config()).eval()
    initialize_weights(stock, std=0.2)
    model = optimize(copy.deepcopy(stock))
    assert type(model) is cls
    assert type(model.base_model.encoder.layer[0]) in SWAPS.values()
    assert_equal_results(model, stock)


def test_optimize_refuses_what_it_knows_nothing_of():
    with pytest.raises(ValueError, match=r"Linear has no ELECTRA or BERT module .* nothing to optimize"):
        optimize(nn.Linear(2, 2))


# --- Forms of the result ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["ElectraModel", "ElectraForMaskedLM", "BertModel"])
def test_forms_of_the_result_and_the_flat_path_again(name, flat_calls):
    stock = stock_model(name)
    model = optimize(copy.deepcopy(stock))
    ids, mask = ragged()
    with torch.no_grad():
        expected, result = stock(ids, mask), model(ids, mask)
        assert list(result) == list(expected)
        assert type(result) is type(expected)
        as_tuple = model(ids, mask, return_dict=False)
        assert isinstance(as_tuple, tuple)
        assert len(as_tuple) == len(stock(ids, mask, return_dict=False))
        assert all(torch.equal(one, other) for one, other in zip(as_tuple, result.to_tuple(), strict=True))
        assert len(flat_calls) == 2

        for count in (1, 2):  # the hooks of transformers stay on the layers after the first such call
            wide, expected = (m(ids, mask, output_hidden_states=True) for m in (model, stock))
            assert len(flat_calls) == 2 * count
            assert len(wide.hidden_states) == 3
            for one, other in zip(wide.hidden_states, expected.hidden_states, strict=True):
                assert torch.allclose(one, other, rtol=0, atol=2e-5)
            again = model(ids, mask)
            assert torch.equal(again[0], result[0])
            assert model(ids, mask, output_hidden_states=False).hidden_states is None
            assert len(flat_calls) == 2 * count + 2

        for m in (model, stock):
            m.set_attn_implementation("eager")
        wide, expected = (m(ids, mask, output_attentions=True) for m in (model, stock))
        assert len(wide.attentions) == 2
        for one, other in zip(wide.attentions, expected.attentions, strict=True):
            assert torch.allclose(one, other, rtol=0, atol=2e-5)
        assert len(flat_calls) == 6
        model.set_attn_implementation("sdpa")
        assert torch.equal(model(ids, mask)[0], result[0])
        assert len(flat_calls) == 7


def test_results_are_zeros_at_padding():
    ids, mask = ragged()
    hidden = optimize(stock_model())(ids, mask).last_hidden_state
    assert not hidden[mask == 0].any()
    assert hidden[mask == 1].abs().amax(dim=1).all()


# --- Hooks and wrapped layers -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "place",
    ["embeddings", "encoder", "encoder.layer.1", "encoder.layer.0.attention.self.query", "encoder.layer.1.output"],
)
@pytest.mark.parametrize("kind", ["forward", "forward_pre", "full_backward"])
def test_hooks_of_users_see_transformers_shapes(place, kind, flat_calls):
    stock = stock_model()
    model = optimize(copy.deepcopy(stock))
    ids, mask = ragged()
    seen: dict[str, list[torch.Size]] = {}
    handles = []
    for name, m in (("stock", stock), ("ours", model)):

        def hook(module: nn.Module, values: object, *more: object, name: str = name) -> None:
            tensors = more[0] if kind != "forward_pre" and more else values
            tensors = tensors if isinstance(tensors, tuple) else (tensors,)
            seen.setdefault(name, []).extend(t.shape for t in tensors if isinstance(t, Tensor))

        handles.append(getattr(m.get_submodule(place), f"register_{kind}_hook")(hook))
        m(ids, mask).last_hidden_state[mask.bool()].sum().backward()
    assert seen.get("stock") == seen.get("ours")
    assert not flat_calls
    handles[1].remove()
    assert_equal_results(model, stock)
    assert flat_calls == [model]


def test_hooks_on_all_modules_see_transformers_shapes(flat_calls):
    stock = stock_model()
    model = optimize(copy.deepcopy(stock))
    seen: list[tuple[str, torch.Size]] = []

    def hook(module: nn.Module, inputs: object, output: object) -> None:
        if isinstance(output, Tensor):
            seen.append((type(module).__name__, output.shape))  # our classes have the same names

    handle = nn.modules.module.register_module_forward_hook(hook)
    try:
        assert_equal_results(model, stock)
    finally:
        handle.remove()
    half = len(seen) // 2
    assert seen[:half] == seen[half:]
    assert seen
    assert not flat_calls


class WithAdapter(nn.Linear):
    """What LoRA layers are: a Linear that does more."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) + 0.1 * x[..., :1]  # not the mean, which LayerNorm makes nothing of


class Coarse(nn.Module):
    """A quantised layer: int8 weights and a forward of its own, and no `weight` that could be read as one."""

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        self.scale = float(linear.weight.detach().abs().max()) / 127
        self.register_buffer("int8", (linear.weight.detach() / self.scale).round().to(torch.int8))
        self.bias = nn.Parameter(linear.bias.detach())

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.linear(x, self.int8.float() * self.scale, self.bias)


class Larger(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return 1.3 * x


class LouderAttention(stock_electra.ElectraSelfAttention):
    def forward(self, *args: object, **kwargs: object) -> tuple[Tensor, Tensor | None]:
        context, weights = super().forward(*args, **kwargs)
        return 1.5 * context, weights


def replace_linears(model: nn.Module, make: Callable[[nn.Linear], nn.Module]) -> None:
    for layer in model.base_model.encoder.layer:
        attention_ = layer.attention
        for parent, name in (
            *((attention_.self, name) for name in ("query", "key", "value")),
            *((part, "dense") for part in (attention_.output, layer.intermediate, layer.output)),
        ):
            setattr(parent, name, make(getattr(parent, name)))


def adapters(model: nn.Module) -> None:
    def adapted(linear: nn.Linear) -> nn.Linear:
        linear.__class__ = WithAdapter
        return linear

    replace_linears(model, adapted)


def quantised(model: nn.Module) -> None:
    replace_linears(model, Coarse)


def parametrised(model: nn.Module) -> None:
    register = torch.nn.utils.parametrize.register_parametrization
    layer = model.base_model.encoder.layer[0]
    for module in (
        *(layer.attention.self.query, layer.attention.output.LayerNorm, layer.intermediate.dense),
        *(model.base_model.embeddings.word_embeddings, model.base_model.embeddings.LayerNorm),
    ):
        register(module, "weight", Larger())


def another_attention(model: nn.Module) -> None:
    model.base_model.encoder.layer[1].attention.self.__class__ = LouderAttention


def another_forward(part: str) -> Callable[[nn.Module], None]:
    def change(model: nn.Module) -> None:
        module = model.base_model.get_submodule(part)
        before = module.forward

        def forward(*args: object, **kwargs: object) -> object:
            result = before(*args, **kwargs)
            if isinstance(result, Tensor):
                return 1.5 * result
            if isinstance(result, tuple):
                return 1.5 * result[0], *result[1:]
            result.last_hidden_state = 1.5 * result.last_hidden_state
            return result

        module.forward = forward

    return change


def hooks_of_others(model: nn.Module) -> None:
    for module in model.modules():
        if isinstance(module, nn.Linear | nn.LayerNorm | nn.Dropout | nn.Embedding):
            module.register_forward_hook(lambda module, inputs, output: 1.1 * output)


def offloaded(model: nn.Module) -> None:
    accelerate = pytest.importorskip("accelerate", reason="needs accelerate")
    accelerate.cpu_offload(model, execution_device=torch.device("cpu"), offload_buffers=True)


def hooks_of_accelerate_on_layers(model: nn.Module) -> None:
    hooks = pytest.importorskip("accelerate.hooks", reason="needs accelerate")
    for layer in model.base_model.encoder.layer:
        hook = hooks.AlignDevicesHook(execution_device="cpu", io_same_device=True, place_submodules=True)
        hooks.add_hook_to_module(layer, hook)


CHANGES = {
    "adapters": adapters,
    "quantised": quantised,
    "parametrised": parametrised,
    "another attention": another_attention,
    "hooks of others": hooks_of_others,
    "offloaded": offloaded,
    "accelerate on layers": hooks_of_accelerate_on_layers,
    **{
        f"forward of {part}": another_forward(part)
        for part in ("embeddings", "encoder", *(f"encoder.layer.0{p}" for p in ("", ".attention", ".attention.self")))
    },
    **{
        f"forward of {part}": another_forward(f"encoder.layer.1.{part}")
        for part in ("attention.output", "attention.output.dense", "intermediate", "output", "output.LayerNorm")
    },
}


# Changed before or after it is made fast: results are those of the changed stock model.
@pytest.mark.parametrize("order", ["before", "after"])
@pytest.mark.parametrize("change", CHANGES)
def test_changed_models_equal_stock_changed_alike(change, order):
    stock = stock_model("ElectraForSequenceClassification")
    unchanged = real_results(stock)
    model = copy.deepcopy(stock)
    if order == "before":
        CHANGES[change](model)
        optimize(model)
    else:
        optimize(model)
        CHANGES[change](model)
    CHANGES[change](stock)
    assert_equal_results(model, stock)
    if change not in ("offloaded", "accelerate on layers"):
        assert float((real_results(model) - unchanged).abs().max()) > 1e-4  # so that leaving it out would show


def test_adapters_stay_on_the_flat_path(flat_calls):
    for change in (adapters, quantised, parametrised):
        model = optimize(stock_model())
        change(model)
        flat_calls.clear()
        real_results(model)
        assert len(flat_calls) == 1, change.__name__


def test_dynamic_quantisation_of_torch():
    if "fbgemm" not in torch.backends.quantized.supported_engines or not hasattr(
        torch.ao.quantization, "quantize_dynamic"
    ):
        pytest.skip("needs PyTorch's dynamic quantisation (fbgemm)")
    stock = stock_model()
    for model in (stock, quick := optimize(copy.deepcopy(stock))):
        torch.ao.quantization.quantize_dynamic(model, {nn.Linear}, dtype=torch.qint8, inplace=True)
    assert type(quick.encoder.layer[0].attention.self.query) is not nn.Linear
    # No padding: the scales come from all tokens of a call. An activation next to the border of two integers may fall
    # to either side, and others after it: in one batch of 40, but not in all of nine.
    batches = torch.randint(1, 90, (9, 2, 8))
    errors = [(quick(ids).last_hidden_state - stock(ids).last_hidden_state).abs().max() for ids in batches]
    assert float(min(errors)) <= 2e-5


# --- attn_implementation ----------------------------------------------------------------------------------------------


def one_by_one(stock: PreTrainedModel, ids: Tensor) -> Tensor:
    """[21, H]: the real tokens of each row by themselves, through transformers."""
    return torch.cat([stock(ids[row : row + 1, :n]).last_hidden_state[0] for row, n in enumerate(LENGTHS)])


@pytest.fixture
def eager_flex() -> Iterator[None]:
    """flex_attention without the compiler, which takes minutes on a CPU."""
    with torch.compiler.set_stance("force_eager"):
        yield


@pytest.mark.parametrize("when", ["at load", "on the fly"])
@pytest.mark.parametrize("implementation", ["eager", "sdpa", "flex_attention"])
@torch.no_grad()
def test_attn_implementation_on_padded_and_packed_input(implementation, when, tmp_path, flat_calls, eager_flex):
    stock = stock_model()
    if when == "at load":
        stock.save_pretrained(tmp_path)
        model = electra_fast.ElectraModel.from_pretrained(tmp_path, attn_implementation=implementation).eval()
    else:
        model = optimize(copy.deepcopy(stock))
        model.set_attn_implementation("eager")
        model.set_attn_implementation(implementation)
    assert model.config._attn_implementation == implementation
    ids, mask = ragged()
    expected = one_by_one(stock, ids)
    padded = model(ids, mask).last_hidden_state[mask.bool()]
    assert float((padded - expected).abs().max()) <= 2e-5
    together = model(**packed(ids, mask)).last_hidden_state
    assert together.shape == (1, sum(LENGTHS), 32)
    assert float((together[0] - expected).abs().max()) <= 2e-5
    assert len(flat_calls) == (2 if implementation == "sdpa" else 0)


@pytest.mark.skipif(transformers.utils.is_flash_attn_2_available(), reason="flash-attn is installed")
def test_flash_attention_2_without_the_package_is_transformers_own_error(tmp_path):
    stock_model().save_pretrained(tmp_path)
    with pytest.raises(ImportError, match=r"flash_attn|FlashAttention2"):
        electra_fast.ElectraModel.from_pretrained(tmp_path, attn_implementation="flash_attention_2")
    with pytest.raises(ImportError, match=r"flash_attn|FlashAttention2"):
        optimize(stock_model()).set_attn_implementation("flash_attention_2")


@torch.no_grad()
def test_flash_attention_2_calls_the_package(monkeypatch):
    calls = []

    def flash_attn_varlen_func(q, k, v, cu_seqlens_q, cu_seqlens_k, max_seqlen_q, max_seqlen_k, **options):
        calls.append((cu_seqlens_q.tolist(), cu_seqlens_k.tolist(), max_seqlen_q, max_seqlen_k, options["causal"]))
        bounds = cu_seqlens_q.tolist()
        rows = [slice(*pair) for pair in itertools.pairwise(bounds)]
        attend = nn.functional.scaled_dot_product_attention
        heads_first = [[x[row].transpose(0, 1) for x in (q, k, v)] for row in rows]
        return torch.cat([attend(*qkv, scale=options["softmax_scale"]).transpose(0, 1) for qkv in heads_first])

    monkeypatch.setitem(sys.modules, "flash_attn", types.ModuleType("flash_attn"))
    monkeypatch.setattr(sys.modules["flash_attn"], "flash_attn_varlen_func", flash_attn_varlen_func, raising=False)
    missing = attention._missing
    monkeypatch.setattr(
        attention, "_missing", lambda backend, use: None if backend == "flash_attn" else missing(backend, use)
    )
    stock = stock_model()
    model = optimize(copy.deepcopy(stock))
    model.config._attn_implementation_internal = "flash_attention_2"  # past transformers' search for a GPU
    ids, mask = ragged()
    expected = one_by_one(stock, ids)
    padded = model(ids, mask).last_hidden_state[mask.bool()]
    assert float((padded - expected).abs().max()) <= 2e-5
    together = model(**packed(ids, mask)).last_hidden_state[0]
    assert float((together - expected).abs().max()) <= 2e-5
    assert calls == [([0, 9, 13, 20], [0, 9, 13, 20], 9, 9, False)] * 4  # two layers, padded and packed


def test_an_attention_of_a_users_own_is_called(flat_calls):
    calls = []

    def loud(module: nn.Module, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, **kwargs: object) -> tuple:
        calls.append(tuple(q.shape))
        return transformers.integrations.sdpa_attention.sdpa_attention_forward(module, q, k, v, mask, **kwargs)

    transformers.AttentionInterface.register("loud", loud)
    transformers.AttentionMaskInterface.register("loud", transformers.masking_utils.sdpa_mask)
    stock = stock_model()
    model = optimize(copy.deepcopy(stock))
    model.set_attn_implementation("loud")
    assert_equal_results(model, stock)
    assert calls == [(3, 4, 9, 8)] * 2
    assert not flat_calls
