"""What surrounds a forward: dropout, torch's transforms and modes, meta tensors, and waiting for the device."""

from __future__ import annotations

import ctypes
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.autograd import forward_ad
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

from electra_fast import ElectraConfig, ElectraForPreTraining
from electra_fast.models import blocks
from tests.models.stock import HEADS, VOCABULARY, choices, double_copy, fast_copy, labels_for, stock_model
from tests.ops.backends import needs_cpp

RESULT, GRADIENT, ROUNDING = 2e-5, 1e-4, 1e-6  # see test_equality.py
P = 0.25


def ragged_batch(name: str, *, give_mask: bool = True) -> dict[str, Tensor]:
    mask = torch.arange(17) < torch.tensor((17, 3, 9, 12))[:, None]
    batch = {"input_ids": torch.randint(0, VOCABULARY, mask.shape)}
    if give_mask:
        batch["attention_mask"] = mask.long()
    return choices(name, batch) | labels_for(name, mask)


# --- dropout ----------------------------------------------------------------------------------------------------------


def model_of_zeros(**config: Any) -> nn.Module:
    """One layer, all weights zero: uniform attention, and each sublayer adds its bias."""
    fast = fast_copy(stock_model("ElectraModel", num_hidden_layers=1, **config)).train()
    for parameter in fast.parameters():
        nn.init.zeros_(parameter)
    return fast


def assert_rate(dropped: float, draws: int) -> None:
    """Within seven deviations of a binomial distribution: one failure in 4e11."""
    assert abs(dropped - P) <= 7 * (P * (1 - P) / draws) ** 0.5


def test_attention_drops_as_often_as_it_should(rng_seed):
    fast = model_of_zeros(attention_probs_dropout_prob=P)
    layer = fast.encoder.layer[0]
    nn.init.ones_(layer.attention.self.value.bias)
    nn.init.eye_(layer.attention.output.dense.weight)
    layer.attention.output.LayerNorm = layer.output.LayerNorm = nn.Identity()
    context = fast(torch.ones(16, 64, dtype=torch.long)).last_hidden_state.detach()  # what attention gave
    kept = context[:, :, ::8] * (1 - P) * 64  # of 64 keys, for each query and head
    assert float((kept - kept.round()).abs().max()) <= 1e-3
    assert_rate(1 - float(kept.mean()) / 64, kept.numel() * 64)


def test_layers_drop_as_often_as_they_should(rng_seed):
    fast = model_of_zeros(hidden_dropout_prob=P)
    layer = fast.encoder.layer[0]
    nn.init.ones_(layer.output.dense.bias)
    nn.init.ones_(layer.output.LayerNorm.weight)
    hidden_states = fast(torch.ones(64, 64, dtype=torch.long)).last_hidden_state  # normalised ones and zeros
    assert_rate(float((hidden_states < 0).float().mean()), hidden_states.numel())


def test_embeddings_drop_as_often_as_they_should(rng_seed):
    fast = model_of_zeros(hidden_dropout_prob=P)
    nn.init.ones_(fast.embeddings.LayerNorm.bias)
    embeddings = fast.embeddings(torch.ones(64, 64, dtype=torch.long))
    assert_rate(float((embeddings == 0).float().mean()), embeddings.numel())
    assert torch.allclose(embeddings.max(), torch.tensor(1 / (1 - P)))


@pytest.mark.parametrize("name", ["ElectraForPreTraining", "BertForSequenceClassification"])
def test_one_seed_one_result_and_none_in_eval_mode(name, rng_seed):
    fast = fast_copy(stock_model(name, dropout=P))
    batch = ragged_batch(name)
    assert torch.equal(fast(**batch).logits, fast(**batch).logits)
    fast.train()
    first, second = fast(**batch).logits, fast(**batch).logits
    assert not torch.equal(first, second)
    torch.manual_seed(rng_seed)
    first = fast(**batch).logits
    torch.manual_seed(rng_seed)
    assert torch.equal(fast(**batch).logits, first)


def test_the_mean_over_dropout_is_stocks(rng_seed):
    """4,000 rows of one text: the mean of the logits of each model within seven deviations of both."""
    stock = stock_model("ElectraForSequenceClassification", dropout=0.1)
    fast = fast_copy(stock).train()
    stock.train()
    ids = torch.randint(0, VOCABULARY, (1, 12)).expand(4000, -1)
    with torch.no_grad():
        ours, theirs = (model(ids).logits.double() for model in (fast, stock))
    deviation = (ours.var(0) / 4000 + theirs.var(0) / 4000).sqrt()
    assert float(((ours.mean(0) - theirs.mean(0)) / deviation).abs().max()) <= 7
    assert float((ours.std(0) / theirs.std(0)).log().abs().max()) <= 0.2  # each deviation is known to about 1 %


# --- torch's transforms -----------------------------------------------------------------------------------------------


def loss_of(model: nn.Module, batch: dict[str, Any]) -> Any:
    return lambda parameters: torch.func.functional_call(model, parameters, (), batch).loss


def parameters_of(model: nn.Module) -> dict[str, Tensor]:
    return {name: parameter.detach() for name, parameter in model.named_parameters()}


@pytest.mark.parametrize("return_logits", [True, False])
@pytest.mark.parametrize("name", ["ElectraForMaskedLM", "ElectraForPreTraining", "BertForQuestionAnswering"])
def test_transforms_give_stocks_results(name, return_logits, rng_seed):
    """`functional_call` runs ours; `grad`, `vmap` and `jvp` run transformers' own operators."""
    stock = stock_model(name, attn_implementation="eager")
    fast = fast_copy(stock)
    fast.set_attn_implementation("sdpa")
    batch = ragged_batch(name)
    ours = dict(batch)
    if not return_logits:
        if name != "ElectraForMaskedLM":
            pytest.skip("it always returns its logits")
        ours["return_logits"] = False
    parameters = parameters_of(stock)

    expected = loss_of(stock, batch)(parameters)
    assert abs(float(loss_of(fast, ours)(parameters_of(fast)) - expected)) <= RESULT
    gradients = torch.func.grad(loss_of(fast, ours))(parameters_of(fast))
    expected_gradients = torch.func.grad(loss_of(stock, batch))(parameters)
    largest = max(1.0, *(float(gradient.abs().max()) for gradient in expected_gradients.values()))
    for key, gradient in expected_gradients.items():
        allowed = GRADIENT * float(gradient.abs().max()) + ROUNDING * largest
        assert float((gradients[key] - gradient).abs().max()) <= allowed, key

    fast.set_attn_implementation("eager")
    tangents = {key: torch.randn_like(value) for key, value in parameters.items()}
    _, slope = torch.func.jvp(loss_of(fast, ours), (parameters,), (tangents,))
    _, expected_slope = torch.func.jvp(loss_of(stock, batch), (parameters,), (tangents,))
    # The slope itself may be next to nothing: it is normal, with a deviation of the gradient's norm.
    norm = torch.cat([gradient.flatten() for gradient in expected_gradients.values()]).norm()
    assert float((slope - expected_slope).abs()) <= GRADIENT * float(norm)


def test_vmap_over_rows_and_over_models(rng_seed):
    stock = stock_model("ElectraForSequenceClassification")
    fast = fast_copy(stock)
    ids = torch.randint(0, VOCABULARY, (5, 9))
    expected = stock(ids).logits
    assert float((torch.vmap(lambda row: fast(row[None]).logits[0])(ids) - expected).abs().max()) <= RESULT

    models = [stock_model("ElectraForSequenceClassification") for _ in range(2)]
    stacked = {key: torch.stack([parameters_of(model)[key] for model in models]) for key in parameters_of(stock)}
    both = torch.vmap(lambda parameters: torch.func.functional_call(fast, parameters, (ids,)).logits)(stacked)
    for model, logits in zip(models, both, strict=True):
        assert float((logits - model(ids).logits).detach().abs().max()) <= RESULT


def test_forward_mode_is_stocks(rng_seed):
    stock = stock_model("ElectraForSequenceClassification", attn_implementation="eager")
    fast = fast_copy(stock)
    embeddings, direction = torch.randn(2, 3, 9, 24)

    def slope(model: nn.Module) -> Tensor:
        with forward_ad.dual_level():
            return forward_ad.unpack_dual(model(inputs_embeds=forward_ad.make_dual(embeddings, direction)).logits)[1]

    assert float((slope(fast) - slope(stock)).detach().abs().max()) <= GRADIENT * float(slope(stock).abs().max())


@pytest.mark.parametrize("name", ["ElectraForPreTraining", "ElectraForMaskedLM"])
@pytest.mark.parametrize("attn_implementation", ["sdpa", "eager"])
def test_a_second_derivative_raises_and_never_is_wrong(name, attn_implementation, rng_seed):
    """Stock has one with eager attention; ours only through torch.func, which runs transformers' operators."""
    fast = fast_copy(stock_model(name))
    fast.set_attn_implementation(attn_implementation)
    loss = fast(**ragged_batch(name)).loss
    with pytest.raises(RuntimeError, match="no second derivative"):
        torch.autograd.grad(loss, list(fast.parameters()), create_graph=True)


def test_a_second_derivative_by_torch_func_is_stocks(rng_seed):
    stock = stock_model("ElectraForSequenceClassification", attn_implementation="eager")
    fast = fast_copy(stock)
    embeddings, direction = torch.randn(2, 2, 5, 24)

    def curvature(model: nn.Module) -> Tensor:
        def slope(x: Tensor) -> Tensor:
            return (torch.func.grad(lambda y: model(inputs_embeds=y).logits.sum())(x) * direction).sum()

        return torch.func.grad(slope)(embeddings)

    expected = curvature(double_copy(stock).float())
    assert float((curvature(fast) - expected).abs().max()) <= GRADIENT * float(expected.abs().max())


# --- modes, wrappers, devices -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["ElectraForPreTraining", "ElectraForMaskedLM", "BertForSequenceClassification"])
def test_counters_profilers_and_data_parallel(name, rng_seed):
    fast = fast_copy(stock_model(name))
    batch = ragged_batch(name)
    expected = fast(**batch).loss
    with FlopCounterMode(display=False) as counter:
        loss = fast(**batch).loss
        loss.backward()
    assert counter.get_total_flops() > 0
    assert abs(float(loss - expected)) <= RESULT
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], record_shapes=True):
        fast(**batch).loss.backward()
    with torch.autograd.set_detect_anomaly(True):
        fast(**batch).loss.backward()
    assert torch.equal(nn.DataParallel(fast)(**batch).loss, expected)


@pytest.mark.parametrize("name", HEADS)
@pytest.mark.parametrize("training", [False, True])
def test_meta_tensors_have_shapes(name, training, rng_seed):
    fast = fast_copy(stock_model(name, dropout=P)).train(training)
    batch = ragged_batch(name, give_mask=False)
    expected = fast(**batch)
    fast.to("meta")
    output = fast(**{key: value.to("meta") for key, value in batch.items()})
    assert output.keys() == expected.keys()
    assert all(output[key].shape == expected[key].shape for key in output)
    if "loss" in output:
        output.loss.backward()


# --- waiting for the device -------------------------------------------------------------------------------------------


class Waits(TorchDispatchMode):
    """Counts operators whose result the host needs; our own operators are opaque to it, as on a GPU."""

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        aten = torch.ops.aten
        boolean_index = function is aten.index.Tensor and any(
            index is not None and index.dtype in (torch.bool, torch.uint8) for index in args[1]
        )
        if function in (aten._local_scalar_dense.default, aten.nonzero.default) or boolean_index:
            self.names.append(str(function))
        return function(*args, **(kwargs or {}))


@contextmanager
def waits(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """The names of all waits inside the block, `tolist` among them, which no dispatch mode sees."""
    tolist = Tensor.tolist
    with Waits() as mode, monkeypatch.context() as patch:
        patch.setattr(Tensor, "tolist", lambda tensor: (mode.names.append("tolist"), tolist(tensor))[1])
        yield mode.names


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("name", HEADS)
def test_a_forward_waits_once_if_it_has_a_mask(name, training, monkeypatch, rng_seed):
    fast = fast_copy(stock_model(name, dropout=P)).train(training)
    batch = ragged_batch(name, give_mask=False)
    with waits(monkeypatch) as found:
        fast(**batch)
    assert found == []
    batch = ragged_batch(name)
    if "QuestionAnswering" in name or name in ("ElectraForCausalLM", "BertLMHeadModel"):
        batch = {key: batch[key] for key in ("input_ids", "attention_mask")}  # labels would keep it padded
    if name == "ElectraForMultipleChoice":
        fast.sequence_summary.summary_type = "first"
    with waits(monkeypatch) as found:
        fast(**batch)
    assert found == ["tolist"]


@pytest.mark.parametrize("name", ["ElectraModel", "ElectraForPreTraining", "ElectraForSequenceClassification"])
def test_packed_input_never_waits(name, monkeypatch, rng_seed):
    fast = fast_copy(stock_model(name, dropout=P)).train()
    bounds = torch.tensor((0, 5, 12, 20), dtype=torch.int32)
    ids = torch.randint(0, VOCABULARY, (1, 20))
    with waits(monkeypatch) as found:
        fast(ids, cu_seq_lens_q=bounds, max_length_q=8)
    assert found == []


def test_the_private_names_that_transforms_rely_on():
    """`needs_plain_operators` would not see export, forward mode or functorch if torch renamed these."""
    assert torch.compiler._is_exporting_flag is False
    assert isinstance(forward_ad._current_level, int)
    assert callable(torch._C._functorch.peek_interpreter_stack)


@needs_cpp
@pytest.mark.parametrize("name", ["ElectraForPreTraining", "BertForMaskedLM"])
def test_inference_takes_the_blocks_and_gives_stocks_results(name, rng_seed, monkeypatch):
    stock = stock_model(name)
    fast, batch = fast_copy(stock), ragged_batch(name)
    real = batch["attention_mask"] == 1
    truth = double_copy(stock)(**batch).logits
    monkeypatch.setattr(blocks, "_NUMBERS_AT_ONCE", 7 * 64)  # in parts, the last of them smaller
    with_gradients = fast(**batch).logits
    calls = []
    for of_blocks in ("bias_gelu_cpp", "varlen_attention_cpp"):
        run = getattr(blocks, of_blocks)
        monkeypatch.setattr(blocks, of_blocks, lambda *a, run=run, **k: calls.append(run) or run(*a, **k))
    for mode in (torch.no_grad(), torch.inference_mode()):
        calls.clear()
        with mode:
            logits = fast(**batch).logits
        assert calls.count(run) == 2  # one a layer
        assert len(calls) > 4  # and several parts
        assert torch.equal(logits, with_gradients)
        assert float((logits - truth)[real].abs().max()) <= 2e-5


@needs_cpp
@pytest.mark.parametrize("train", [True, False], ids=["train", "infer"])
def test_biases_that_do_not_lie_in_a_row(train, rng_seed):
    """C++ would read what lies between their numbers, or beyond them."""
    stock = stock_model("ElectraForPreTraining")
    fast, batch = fast_copy(stock), ragged_batch("ElectraForPreTraining")
    real = batch["attention_mask"] == 1
    for module in fast.electra.encoder.modules():
        if isinstance(module, (nn.Linear, nn.LayerNorm)):
            module.bias.data = module.bias.detach().repeat_interleave(2)[::2]
            assert not module.bias.is_contiguous()
    with torch.set_grad_enabled(train):
        logits = fast(**batch).logits
    assert float((logits - double_copy(stock)(**batch).logits)[real].detach().abs().max()) <= 1e-4


@needs_cpp
def test_a_bias_of_another_dtype_is_stocks_error(rng_seed):
    fast, batch = fast_copy(stock_model("ElectraModel")), torch.ones(1, 5, dtype=torch.long)
    dense = fast.encoder.layer[0].intermediate.dense
    dense.bias = nn.Parameter(dense.bias.detach().bfloat16())
    for context in (torch.no_grad(), torch.enable_grad()):
        with context, pytest.raises(RuntimeError, match="dtype"):
            fast(batch)


class _Heap(ctypes.Structure):
    """glibc's mallinfo2."""

    _fields_ = [(f"unused_{index}", ctypes.c_size_t) for index in range(7)] + [
        ("uordblks", ctypes.c_size_t),  # bytes in use
        ("fordblks", ctypes.c_size_t),
        ("keepcost", ctypes.c_size_t),
    ]


@pytest.mark.skipif(not hasattr(ctypes.CDLL(None), "mallinfo2"), reason="counts the heap by glibc's mallinfo2")
def test_memory_does_not_grow_with_the_numbers_of_tokens_seen():
    """A service sees every number of tokens; oneDNN's linear with GELU kept the weights, here 1 MiB, for each."""
    sizes = {"embedding_size": 64, "hidden_size": 256, "num_hidden_layers": 1, "intermediate_size": 1024}
    config = ElectraConfig(vocab_size=64, **sizes)
    model = ElectraForPreTraining(config).eval()
    libc = ctypes.CDLL(None)
    libc.mallinfo2.restype = _Heap

    def run(lengths: range) -> None:
        for length in lengths:
            model(torch.ones(1, length, dtype=torch.long))

    with torch.inference_mode():
        run(range(300, 310))
        before = libc.mallinfo2().uordblks
        run(range(310, 340))
        grown = libc.mallinfo2().uordblks - before
    assert grown < 4 * 2**20, f"{grown / 2**20:.1f} MiB"
