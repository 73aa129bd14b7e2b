"""A model whose weights, gradients and moments are shared out among the ranks (FSDP2)."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor
from torch.nn.utils import get_total_norm

from electra_fast.models import ElectraForJointPreTraining
from electra_fast.models.layers import FlatLayer
from electra_fast.pretraining.distributed import Ranks


class ShardedWeights:
    """This rank's part of the float32 weights of a model, with the interface of `MasterWeights`.

    Each layer is a unit, and the joint model is one of all the rest: the towers are none, since they may share their
    embeddings. In 16 bits FSDP gathers rounded copies of the weights and sums gradients in float32. LayerNorm's few
    weights stay whole, and float32 everywhere. Gradients are summed over the ranks after each micro-batch, so that
    training holds nothing whole but the layer at work and what is in no layer.

    Args:
        model: float32, on the ranks' device, the same on all ranks; it is sharded in place.
        dtype: of the computation: float32, bfloat16 or float16.
    """

    def __init__(self, model: ElectraForJointPreTraining, dtype: torch.dtype, ranks: Ranks) -> None:
        self._ranks, self._dtype = ranks, dtype
        self._unsharded = copy.deepcopy(model)  # in whose place the whole weights are put where they are needed
        self._empty()
        norms = {p for module in model.modules() if isinstance(module, nn.LayerNorm) for p in module.parameters()}
        options: dict[str, Any] = {
            "mesh": init_device_mesh(ranks.device.type, (ranks.world_size,)),
            "mp_policy": MixedPrecisionPolicy(param_dtype=dtype, reduce_dtype=torch.float32, cast_forward_inputs=False),
            "ignored_params": norms,
        }
        for module in list(model.modules()):
            if isinstance(module, FlatLayer):
                fully_shard(module, **options)
        fully_shard(model, **options)
        for module in model.modules():
            if isinstance(module, FSDPModule):  # sums, not means: losses are divided by the global batch's counts
                module.set_gradient_divide_factor(1.0)
                module.set_force_sum_reduction_for_comms(True)
        self._parameters = dict(model.named_parameters())
        self._local = {
            name: nn.Parameter(parameter.to_local().detach()) if isinstance(parameter, DTensor) else parameter
            for name, parameter in self._parameters.items()
        }

    def named_parameters(self) -> Iterator[tuple[str, nn.Parameter]]:
        """This rank's part of each parameter; names as in the model."""
        return iter(self._local.items())

    def clear_gradients(self) -> None:
        for parameter in (*self._parameters.values(), *self._local.values()):
            parameter.grad = None

    def take_gradients(self) -> None:
        """After each micro-batch: FSDP has added it to what there was."""
        for name, parameter in self._parameters.items():
            if isinstance(parameter, DTensor) and parameter.grad is not None:
                self._local[name].grad = parameter.grad.to_local()

    def complete_gradients(self) -> None:
        """After the last micro-batch: sum over the ranks what FSDP does not."""
        whole = [p for p in self._parameters.values() if not isinstance(p, DTensor) and p.grad is not None]
        for parameter, total in zip(whole, self._ranks.sum([p.grad for p in whole]), strict=True):
            parameter.grad = total

    def norm(self) -> Tensor:
        """Of the gradient of all parameters."""
        parts: tuple[list[Tensor], list[Tensor]] = [], []
        for name, local in self._local.items():
            if local.grad is not None:
                parts[isinstance(self._parameters[name], DTensor)].append(local.grad)
        whole, shards = (get_total_norm(part).to(self._ranks.device).square() for part in parts)
        return (whole + self._ranks.sum([shards])[0]).sqrt()

    def give_weights(self) -> None:
        """The model computes with the weights themselves."""

    def whole_state(self, optimizer: torch.optim.Optimizer) -> tuple[WholeState, WholeState]:
        """What a checkpoint holds, gathered on the CPU of rank 0: in place of the weights, and of their optimizer."""
        state = WholeState()
        for name, local in self._local.items():
            weight = self._gather(name, local)
            state.weights[name] = weight
            moments = optimizer.state[local].items()
            state.state[weight] = {key: self._gather(name, v) if v.dim() else v.cpu() for key, v in moments}
        return state, state

    @torch.no_grad()
    def load_state(self, whole: tuple[WholeState, WholeState], optimizer: torch.optim.Optimizer) -> None:
        """Give each rank its part of what rank 0 has put into its `whole_state`."""
        state = whole[0]
        for name, local in self._local.items():
            weight = state.weights[name]
            self._scatter(name, local, weight)
            for key, moment in state.state[weight].items():
                self._scatter(name, optimizer.state[local][key], moment)

    @contextmanager
    def whole_model(self) -> Iterator[ElectraForJointPreTraining]:
        """The model as it computes, with the weights of now, for evaluation within the block: rank 0's, elsewhere it
        holds nothing."""
        try:
            yield self._fill(self._dtype)
        finally:
            self._empty()

    def export(self) -> ElectraForJointPreTraining:
        """The whole model in float32; of rank 0."""
        return self._fill(torch.float32)

    def _fill(self, dtype: torch.dtype) -> ElectraForJointPreTraining:
        for name, parameter in self._unsharded.named_parameters():
            whole = self._gather(name, self._local[name])
            if self._ranks.is_first:
                is_rounded = isinstance(self._parameters[name], DTensor)
                parameter.data = whole.to(self._ranks.device, dtype if is_rounded else torch.float32)
        return self._unsharded

    def _empty(self) -> None:
        for parameter in self._unsharded.parameters():
            parameter.data = parameter.data.new_empty(0)

    @torch.no_grad()
    def _gather(self, name: str, local: Tensor) -> Tensor:
        """On rank 0 the whole of what is cut like parameter `name`, on the CPU; elsewhere nothing."""
        like = self._parameters[name]
        whole = local.detach()
        if isinstance(like, DTensor):
            layout = {"shape": like.shape, "stride": like.stride()}
            whole = DTensor.from_local(
                whole, like.device_mesh, like.placements, run_check=False, **layout
            ).full_tensor()
        return whole.cpu().clone() if self._ranks.is_first else torch.empty(0)

    def _scatter(self, name: str, target: Tensor, source: Tensor) -> None:
        like = self._parameters[name]
        shape = like.shape if target.dim() else target.shape
        whole = source.to(target.device) if self._ranks.is_first else target.new_empty(shape)
        dist.broadcast(whole, 0)
        if isinstance(like, DTensor) and target.dim():
            whole = distribute_tensor(whole, like.device_mesh, like.placements, src_data_rank=None).to_local()
        target.copy_(whole)


class WholeState:
    """Weights by their names and moments by weights, in the places where a checkpoint looks for them."""

    def __init__(self) -> None:
        self.weights: dict[str, Tensor] = {}
        self.state: dict[Tensor, Mapping[str, Tensor]] = {}

    def named_parameters(self) -> Iterator[tuple[str, Tensor]]:
        return iter(self.weights.items())
