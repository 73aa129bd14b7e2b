"""Where a step's time goes: seconds by group of operators, from PyTorch's profiler.

Self times: what an operator takes without those that it calls. So the matrix products of the generator's head or of a
layer count as products, and "generator head" is what is left of it.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from types import ModuleType
from typing import Any

import torch
from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity, profile, record_function

from benchmarks.rows import REST
from electra_fast.models import blocks, joint

# Group -> names of operators as the profiler has them, matched from the start to the end. Ours are the classes of
# electra_fast.models.blocks and the operators of electra_fast.ops; a backward pass is named after its forward. What
# plain PyTorch does in pieces, such as dropout, ours does within a block.
GROUPS: dict[str, str] = {
    "matrix products": r"aten::(mm|addmm_?|bmm|baddbmm_?|mv|addmv_?)|mkl::.*|mkldnn::.*|weight_gradient",
    "attention, dropout, add, LayerNorm (a block)": r"_AttentionBlock",
    "GELU, dropout, add, LayerNorm (a block)": r"_FeedForwardBlock",
    "attention": r"varlen_attention.*|aten::_softmax(_backward_data)?|aten::masked_fill_?|aten::.*scaled_dot_product.*",
    "LayerNorm": r"(dropout_add_)?layer_norm.*|aten::native_layer_norm(_backward)?",
    "GELU": r"(linear_)?bias_gelu.*|aten::gelu(_backward)?",
    "dropout": r"aten::(bernoulli_?|native_dropout(_backward)?)",
    "embedding": r"embedding_layer_norm.*|aten::embedding(_dense_backward)?|aten::index_select",
    "generator head": r"linear_cross_entropy_sample.*|sample_tokens.*|"
    r"aten::(_log_softmax(_backward_data)?|nll_loss_(forward|backward)|uniform_|exponential_|log_?|argmax|clamp_?|neg)",
    "masking": r"mask_tokens.*|corrupt_tokens.*|aten::(sort|argsort|topk|isin|cumsum|where|_index_put_impl_|nonzero)",
    "RTD loss": r"rtd_bce.*|aten::binary_cross_entropy_with_logits.*",
    "optimizer": r"Optimizer\..*|aten::_fused_adamw_?",
    "copies and zeros": r"aten::(copy_|fill_|zero_)",
}
_SUFFIX = re.compile(r"(_eager)?(Backward)?\d*$")
_LAUNCHES = re.compile(r"(cuda|cu)(LaunchKernel|LaunchCooperativeKernel|GraphLaunch).*")


def group_of(name: str) -> str:
    """The group of an operator by the profiler's name of it."""
    own = _SUFFIX.sub("", name.removeprefix("electra_fast::"))
    for group, pattern in GROUPS.items():
        if re.fullmatch(pattern, own) or re.fullmatch(pattern, name):
            return group
    return REST


def seconds_by_group(step: Callable[[], Any], device: str, steps: int = 2) -> dict[str, float]:
    """Seconds a step, groups in the order above; on CUDA those of the device. `step` has been run before.

    What no operator accounts for, Python's time among it, is "rest".
    """
    seconds = dict.fromkeys([*GROUPS, REST], 0.0)
    for name, taken in _self_seconds(step, device, steps).items():
        seconds[group_of(name)] += taken
    return {group: taken for group, taken in seconds.items() if taken}


def _self_seconds(step: Callable[[], Any], device: str, steps: int) -> dict[str, float]:
    activities = [ProfilerActivity.CPU] + [ProfilerActivity.CUDA] * (device == "cuda")
    with _recorded(), profile(activities=activities) as profiler:
        for _ in range(steps):
            with record_function("step"):
                step()
        if device == "cuda":
            torch.cuda.synchronize()
    seconds: dict[str, float] = {}
    for event in profiler.key_averages():
        if event.device_type == DeviceType.CPU:  # a kernel's own line would count its time twice
            taken = event.self_device_time_total if device == "cuda" else event.self_cpu_time_total
            seconds[event.key] = seconds.get(event.key, 0.0) + taken / 1e6 / steps
    return seconds


@contextmanager
def _recorded() -> Iterator[None]:
    """Lets the profiler see what is called without PyTorch: the joint model's operators that have no gradients, and the
    blocks' own products."""
    places = (joint, "mask_tokens"), (joint, "corrupt_tokens"), (blocks, "weight_gradient")
    functions = {place: getattr(*place) for place in places}

    def recorded(place: tuple[ModuleType, str], *args: Any, **kwargs: Any) -> Any:
        with record_function(place[1]):
            return functions[place](*args, **kwargs)

    for place in functions:
        setattr(*place, partial(recorded, place))
    try:
        yield
    finally:
        for place, function in functions.items():
            setattr(*place, function)


def launches(step: Callable[[], Any]) -> int:
    """CUDA kernels and graphs that the host launches in one step."""
    torch.cuda.synchronize()
    with profile(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA]) as profiler:
        step()
        torch.cuda.synchronize()
    return sum(event.count for event in profiler.key_averages() if _LAUNCHES.fullmatch(event.key))
