"""Makes an operator: opaque to torch.compile, differentiable, with a shape function, and cheap in eager mode."""

from __future__ import annotations

import functools
import os
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from electra_fast.ops._backends import forced_backend, select


def register(
    name: str,
    implementations: dict[str, Callable[..., Any]],
    *,
    operator: str,
    shapes: Callable[..., Any],
    check_values: Callable[..., None] | None = None,
    setup_context: Callable[[Any, tuple[Any, ...], Any], None] | None = None,
    backward: Callable[..., Any] | None = None,
) -> Callable[..., Any]:
    """Register `torch.ops.electra_fast.<name>`, and return the function that calls it (positional arguments only).

    The implementations see real tensors only, so they may look at values and take addresses; their results may not
    alias the arguments or each other. The first argument is the tensor that the backend is chosen by, when the
    operator runs. Schema and defaults are inferred from the reference's annotations.

    Args:
        implementations: a function of the same arguments for each backend; "reference" must be among them.
        operator: the public operator this belongs to, whose row in `_backends` says what its backends take.
        shapes: takes the same arguments and returns empty tensors like the results; torch.compile traces it.
        check_values: takes the same arguments and raises where values are out of range. On CUDA, where it would wait
            for the device, it runs only under ELECTRA_FAST_DEBUG=1, read at call time.
        setup_context: `(ctx, inputs, output)`; saves what `backward` needs, and marks what is not differentiable.
        backward: `(ctx, *gradients)`, as in `torch.autograd.Function`, one gradient for each argument. It must go
            through an operator registered here, so that the compiler can trace it. It runs on the forward's backend.

    A custom op costs 14 us a call, 20 with autograd (torch 2.13, CPU), and nothing in eager mode needs it: a plain
    `autograd.Function` around the implementation costs a third. The custom op is called only if something watches: the
    compiler, a dispatch mode, a functorch transform (vmap works, `torch.func.grad` does not) or a tensor subclass.
    """
    schema = torch.library.infer_schema(implementations["reference"], mutates_args=())
    if check_values is not None:
        implementations = {key: _checked(body, check_values) for key, body in implementations.items()}

    def choose_and_run(*args: Any) -> Any:
        return implementations[select(operator, args[0])](*args)

    custom_op = torch.library.custom_op(f"electra_fast::{name}", choose_and_run, mutates_args=(), schema=schema)
    custom_op.register_fake(shapes)
    if backward is None:
        function = None
    else:
        custom_op.register_autograd(backward, setup_context=_with_output(setup_context))
        function = _eager_function(name, implementations, setup_context, backward)

    def call(*args: Any) -> Any:
        if torch.compiler.is_compiling() or is_watched():
            return custom_op(*args)
        requires_grad = False
        for value in args:
            if isinstance(value, Tensor):
                if (type(value) is not Tensor and type(value) is not torch.nn.Parameter) or value.is_neg():
                    return custom_op(*args)  # a subclass may want to know; the dispatcher resolves the sign of a view
                if value.is_meta:
                    return custom_op(*args)  # which knows shapes without values
                requires_grad |= value.requires_grad
        backend = select(operator, args[0])
        if requires_grad and function is not None and torch.is_grad_enabled():
            return function.apply(*args, backend)
        return implementations[backend](*args)

    call.__name__ = call.__qualname__ = name
    return call


def float32_under_autocast(*tensors: Tensor) -> tuple[Tensor, ...]:
    """The tensors in float32 where autocast is on, as PyTorch treats normalisations and losses; else as they are."""
    if not is_autocast_enabled(tensors[0].device):
        return tensors
    return tuple(tensor.float() if tensor.is_floating_point() else tensor for tensor in tensors)


def is_autocast_enabled(device: torch.device) -> bool:
    """As torch's own, which knows no meta device."""
    return device.type != "meta" and torch.is_autocast_enabled(device.type)


def _checked(body: Callable[..., Any], check_values: Callable[..., None]) -> Callable[..., Any]:
    @functools.wraps(body)
    def checked(*args: Any) -> Any:
        if not args[0].is_cuda or os.environ.get("ELECTRA_FAST_DEBUG") == "1":
            check_values(*args)
        return body(*args)

    return checked


def _with_output(setup_context: Callable[..., None] | None) -> Callable[..., None]:
    """torch.library passes the results by the keyword `output`."""

    def setup(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        setup_context(ctx, inputs, output)

    return setup


def _eager_function(
    name: str,
    implementations: dict[str, Callable[..., Any]],
    setup_context: Callable[..., None],
    backward: Callable[..., Any],
) -> type[torch.autograd.Function]:
    def eager_forward(ctx: Any, *args: Any) -> Any:
        *inputs, backend = args
        outputs = implementations[backend](*inputs)
        ctx.backend = backend
        setup_context(ctx, inputs, outputs)
        return outputs

    def eager_backward(ctx: Any, *gradients: Tensor | None) -> tuple[Tensor | None, ...]:
        if torch.is_grad_enabled():
            # Not `once_differentiable`: its error stays away where torch.autograd.grad is told what to differentiate.
            raise RuntimeError(
                f"electra_fast::{name} has no second derivative (create_graph=True); torch.func transforms of the "
                "models, and transformers' own classes with attn_implementation='eager', have one"
            )
        context = _Unpacked(ctx)
        # CUDA runs this in a thread of its own, where the caller's `use_backend` is not in force.
        with forced_backend(ctx.backend):
            return *backward(context, *gradients), None

    members = {
        "forward": staticmethod(eager_forward),
        "backward": staticmethod(eager_backward),
    }
    return type(f"{name}_eager", (torch.autograd.Function,), members)


class _Unpacked:
    """The context of a backward, its saved tensors read before a backend is forced.

    Under activation checkpointing reading them runs a layer again, which has to choose its backends as it did before.
    """

    def __init__(self, ctx: Any) -> None:
        self._ctx = ctx
        self.saved_tensors = ctx.saved_tensors

    def __getattr__(self, name: str) -> Any:
        return getattr(self._ctx, name)


def is_watched() -> bool:
    """Whether a dispatch mode or a functorch transform sees what is called."""
    return torch._C._len_torch_dispatch_stack() > 0 or torch._C._functorch.peek_interpreter_stack() is not None
