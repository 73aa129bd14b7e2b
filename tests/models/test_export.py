"""Graphs for other programs: torch.export, ONNX and torch.jit.trace give what stock transformers computes, padded."""

from __future__ import annotations

import copy
import os

import pytest
import torch
import transformers
from torch import Tensor

from electra_fast import optimize
from electra_fast.models.swap import SWAPS

STOCK = {cls.__name__: cls for cls in SWAPS if issubclass(cls, transformers.PreTrainedModel)}
SLOW = pytest.mark.skipif(os.environ.get("ELECTRA_FAST_TEST_ALL") != "1", reason="runs with ELECTRA_FAST_TEST_ALL=1")
ONE = "ElectraForPreTraining"  # what takes seconds runs for this one, and for all with ELECTRA_FAST_TEST_ALL
ONE_OR_ALL = [pytest.param(name, marks=[] if name == ONE else SLOW) for name in STOCK]
# Each head is exported, and every other one traced: both switch to the same code.
TRACED = [pytest.param(name, marks=[] if index % 2 == 0 else SLOW) for index, name in enumerate(STOCK)]


def models(name: str) -> tuple[transformers.PreTrainedModel, transformers.PreTrainedModel]:
    """Stock, and the same made fast."""
    sizes = {"embedding_size": 24} if name.startswith("Electra") else {}
    config = STOCK[name].config_class(
        vocab_size=150,
        hidden_size=32,
        num_hidden_layers=1,
        num_attention_heads=4,
        intermediate_size=48,
        max_position_embeddings=40,
        initializer_range=0.2,
        use_cache=False,
        **sizes,
    )
    stock = STOCK[name](config).eval()
    return stock, optimize(copy.deepcopy(stock))


def inputs(name: str, lengths: tuple[int, ...]) -> dict[str, Tensor]:
    mask = (torch.arange(max(lengths)) < torch.tensor(lengths)[:, None]).long()
    made = {
        "input_ids": torch.randint(0, 150, mask.shape),
        "attention_mask": mask,
        "token_type_ids": torch.randint(0, 2, mask.shape),
    }
    if name.endswith("MultipleChoice"):
        made = {key: torch.stack([value, value.roll(1, 0)], dim=1) for key, value in made.items()}
    return made


def dynamic(arguments: dict[str, Tensor]) -> dict[str, dict[int, object]]:
    """Batch and length."""
    anything = torch.export.Dim.DYNAMIC
    return {key: {0: anything, value.dim() - 1: anything} for key, value in arguments.items()}


def tensors(outputs: object) -> list[Tensor]:
    return [x for x in (outputs.values() if hasattr(outputs, "values") else outputs) if isinstance(x, Tensor)]


def assert_same(outputs: object, expected: object) -> None:
    outputs, expected = tensors(outputs), tensors(expected)
    assert len(outputs) == len(expected) > 0
    for got, want in zip(outputs, expected, strict=True):
        assert got.shape == want.shape
        assert float((got - want).abs().max()) <= 1e-5


@pytest.mark.parametrize("name", STOCK)
@torch.no_grad()
def test_torch_export(name: str, rng_seed: int) -> None:
    check_torch_export(name, strict=False)


@pytest.mark.parametrize("name", ONE_OR_ALL)
@torch.no_grad()
def test_strict_torch_export(name: str, rng_seed: int) -> None:
    check_torch_export(name, strict=True)


def check_torch_export(name: str, *, strict: bool) -> None:
    stock, fast = models(name)
    example, other = inputs(name, (11, 4, 7)), inputs(name, (23, 4, 7, 1, 9))
    program = torch.export.export(fast, (), example, dynamic_shapes=dynamic(example), strict=strict)
    targets = {str(node.target) for node in program.graph.nodes if node.op == "call_function"}
    assert not [target for target in targets if "electra_fast" in target]  # another program has no operators of ours
    for arguments in (example, other):
        assert_same(program.module()(**arguments), stock(**arguments))
    left, reference = fast(**other), stock(**other)  # and the model is as before
    for got, want in zip(tensors(left), tensors(reference), strict=True):
        if got.shape[:2] == other["attention_mask"].shape:
            got, want = got[other["attention_mask"] == 1], want[other["attention_mask"] == 1]
        assert float((got - want).abs().max()) <= 2e-5


@torch.no_grad()
def test_torch_export_without_a_mask(rng_seed: int) -> None:
    stock, fast = models("ElectraForTokenClassification")
    ids, other = ({"input_ids": torch.randint(0, 150, shape)} for shape in ((3, 8), (2, 19)))
    program = torch.export.export(fast, (), ids, dynamic_shapes=dynamic(ids), strict=False)
    assert_same(program.module()(**other), stock(**other))


@pytest.mark.parametrize("name", TRACED)
@torch.no_grad()
def test_torch_jit_trace(name: str, rng_seed: int) -> None:
    stock, fast = models(name)

    class Tuples(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model = fast

        def forward(self, input_ids: Tensor, attention_mask: Tensor, token_type_ids: Tensor) -> tuple[Tensor, ...]:
            return tuple(tensors(self.model(input_ids, attention_mask, token_type_ids)))

    # Its own check would compare padding, where the model it traces gives zeros.
    traced = torch.jit.trace(Tuples(), tuple(inputs(name, (11, 4, 7)).values()), check_trace=False)
    other = inputs(name, (23, 4, 7, 1, 9))
    assert_same(traced(*other.values()), stock(**other))


@pytest.mark.parametrize("name", ONE_OR_ALL)
@torch.no_grad()
def test_onnx(name: str, rng_seed: int) -> None:
    for package in ("onnx", "onnxscript", "onnxruntime"):
        pytest.importorskip(package, reason=f"needs {package}: pip install onnx onnxscript onnxruntime")
    stock, fast = models(name)
    example, other = inputs(name, (11, 4, 7)), inputs(name, (23, 4, 7, 1, 9))
    program = torch.onnx.export(fast, (), kwargs=example, dynamic_shapes=dynamic(example), dynamo=True, verbose=False)
    domains = {node.domain for node in program.model.graph}
    assert domains <= {"", "ai.onnx", "pkg.onnxscript.torch_lib", "pkg.onnxscript.torch_lib.common"}
    for arguments in (example, other):
        assert_same(program(**arguments), stock(**arguments))  # in ONNX Runtime
