"""Training on a CPU, where a layer is two autograd functions, against the chain of operators in float64."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from electra_fast.models import blocks
from electra_fast.ops import use_backend
from electra_fast.ops._backends import missing
from tests.models.stock import VOCABULARY, double_copy, fast_copy, stock_model

pytestmark = pytest.mark.skipif(
    missing("bias_gelu", "cpp", torch.device("cpu"), torch.float32) is not None, reason="needs the C++ kernels"
)


@pytest.mark.parametrize("rows_at_once", [1, 3, 1000])
@pytest.mark.parametrize("dropout", [0.0, 0.1])
def test_results_and_gradients_equal_float64(rows_at_once, dropout, rng_seed, monkeypatch):
    """In one part and in several; some parameters frozen; a batch whose rows differ in length."""
    monkeypatch.setattr(blocks, "_NUMBERS_AT_ONCE", rows_at_once * 72)
    used = []
    run = blocks._feed_forward_block
    monkeypatch.setattr(blocks, "_feed_forward_block", lambda *args: used.append(args) or run(*args))
    model = fast_copy(stock_model("ElectraModel", dropout=dropout)).train()
    for parameter in model.parameters():
        parameter.requires_grad_(bool(torch.rand(()) < 0.8))
    model.embeddings.word_embeddings.weight.requires_grad_(True)
    truth = double_copy(model)
    lengths = torch.tensor([[9], [1 + rng_seed % 9], [1]])
    batch = {"input_ids": torch.randint(0, VOCABULARY, (3, 9)), "attention_mask": torch.arange(9) < lengths}
    upstream = torch.randn(3, 9, 32) * batch["attention_mask"].unsqueeze(-1)

    def gradients(model: torch.nn.Module) -> list[Tensor]:
        torch.manual_seed(rng_seed)  # of the dropout
        y = model(**batch).last_hidden_state
        leaves = [parameter for parameter in model.parameters() if parameter.requires_grad]
        found = torch.autograd.grad((y * upstream.to(y.dtype)).sum(), leaves)
        return [y.detach()[batch["attention_mask"]], *found]

    ours = gradients(model)
    assert len(used) == model.config.num_hidden_layers
    with use_backend("reference"):  # else PyTorch's attention would run in float64, with its own dropout
        expected = gradients(truth)
    largest = max(float(each.abs().max()) for each in expected[1:])
    for result, true in zip(ours, expected, strict=True):
        # As in test_equality: a key's bias has no gradient but for the rounding of terms as large as others'.
        bound = 1e-4 * float(true.abs().max()) + 1e-6 * largest
        assert float((result - true).abs().max()) <= bound


def test_what_a_layer_keeps(rng_seed):
    """Of twelve [T, H] eleven: the feed-forward network's input is made again from what was normalised."""
    config = {"hidden_size": 32, "embedding_size": 32, "intermediate_size": 128, "num_attention_heads": 1}
    model = fast_copy(stock_model("ElectraModel", dropout=0.1, **config)).train()
    ids = torch.randint(0, VOCABULARY, (8, 500))
    parameters = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
    kept: dict[int, Tensor] = {}

    def pack(tensor: Tensor) -> Tensor:
        if tensor.untyped_storage().data_ptr() not in parameters:
            kept[tensor.untyped_storage().data_ptr()] = tensor  # alive, so that its address is not given again
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        loss = model(ids).last_hidden_state.sum()
    assert loss.requires_grad
    numbers = sum(tensor.untyped_storage().nbytes() for tensor in kept.values()) / 4
    layers = model.config.num_hidden_layers
    # Beside them: ids, statistics of four rows a token, and what the embeddings keep.
    assert numbers <= ids.numel() * (11 * 32 * layers + 8 * layers + 32 + 16)
