"""Makes an operator: opaque to torch.compile, differentiable, with a shape function, and cheap in eager mode."""

from __future__ import annotations

import functools
import os
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn import Parameter

from electra_fast.ops._backends import select


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
    """Register `torch.ops.electra_fast.<name>`, and return the function that calls it.

    It takes the operator's arguments by position, and `backend=`, for the backward pass alone: `ctx.backend`, which has
    been chosen in the forward pass. Without it the function chooses.

    The implementations see real tensors only, so they may look at values and take addresses; their results may not
    alias the arguments or each other. Tensors come before all other arguments; the first of them is the one that the
    backend is chosen by, when the operator runs. Schema and defaults are inferred from the reference's annotations.

    Args:
        implementations: a function of the same arguments for each backend; "reference" must be among them.
        operator: the public operator this belongs to, whose row in `_backends` says what its backends take.
        shapes: takes the same arguments and returns empty tensors like the results; torch.compile traces it.
        check_values: takes the same arguments and raises where values are out of range. On CUDA, where it would wait
            for the device, it runs only under ELECTRA_FAST_DEBUG=1, read at call time.
        setup_context: `(ctx, inputs, output)`; saves what `backward` needs, and marks what is not differentiable.
            `ctx.backend` is the backend that ran, or None where the custom op did and will choose again.
        backward: `(ctx, *gradients)`, as in `torch.autograd.Function`, one gradient for each argument. It must go
            through an operator registered here, so that the compiler can trace it, and gives it `ctx.backend`: in the
            thread that runs it on CUDA, the caller's `use_backend` is not in force.

    A custom op costs 14 us a call, 20 with autograd (torch 2.13, CPU), and nothing in eager mode needs it: a plain
    `autograd.Function` around the implementation costs 5. The custom op is called only if something watches: the
    compiler, a dispatch mode, a functorch transform (vmap works, `torch.func.grad` does not) or a tensor subclass.
    """
    schema = torch.library.infer_schema(implementations["reference"], mutates_args=())
    if check_values is not None:
        implementations = {key: _checked(body, check_values) for key, body in implementations.items()}

    def choose_and_run(*args: Any) -> Any:
        return implementations[select(operator, args[0])](*args)

    custom_op = torch.library.custom_op(f"electra_fast::{name}", choose_and_run, mutates_args=(), schema=schema)
    custom_op.register_fake(shapes)
    num_tensors = _count_tensors(name, schema)
    if backward is None:
        apply = None
    else:
        custom_op.register_autograd(backward, setup_context=_with_output(setup_context))
        apply = _eager_apply(name, num_tensors, implementations, setup_context, backward)

    def call(*args: Any, backend: str | None = None) -> Any:
        if torch.compiler.is_compiling() or is_watched():
            return custom_op(*args)
        tensors = args[:num_tensors]
        requires_grad = False
        for tensor in tensors:
            if tensor is not None:
                kind = type(tensor)
                if (kind is not Tensor and kind is not Parameter) or tensor.is_neg():
                    return custom_op(*args)  # a subclass may want to know; the dispatcher resolves the sign of a view
                if tensor.is_meta:
                    return custom_op(*args)  # which knows shapes without values
                requires_grad = requires_grad or tensor.requires_grad
        if backend is None:
            backend = select(operator, args[0])
        if requires_grad and apply is not None and torch.is_grad_enabled():
            return apply(*tensors, args, backend)
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
        ctx.backend = None
        setup_context(ctx, inputs, output)

    return setup


def _count_tensors(name: str, schema: str) -> int:
    """How many arguments are tensors, or None in place of one."""
    arguments = torch._C.parse_schema(name + schema).arguments
    are_tensors = [str(argument.type) in ("Tensor", "Optional[Tensor]") for argument in arguments]
    if are_tensors != sorted(are_tensors, reverse=True):
        raise TypeError(f"{name}: tensors must come before all other arguments; got {schema}")
    return sum(are_tensors)


def _eager_apply(
    name: str,
    num_tensors: int,
    implementations: dict[str, Callable[..., Any]],
    setup_context: Callable[..., None],
    backward: Callable[..., Any],
) -> Callable[..., Any]:
    """The `apply` of a function of the tensors, which autograd looks at one by one, all arguments, and the backend."""

    def eager_forward(ctx: Any, *tensors_args_backend: Any) -> Any:
        args, backend = tensors_args_backend[num_tensors:]
        outputs = implementations[backend](*args)
        ctx.backend = backend
        setup_context(ctx, args, outputs)
        return outputs

    def eager_backward(ctx: Any, *gradients: Tensor | None) -> tuple[Tensor | None, ...]:
        if torch.is_grad_enabled():
            # Not `once_differentiable`: its error stays away where torch.autograd.grad is told what to differentiate.
            raise RuntimeError(
                f"electra_fast::{name} has no second derivative (create_graph=True); torch.func transforms of the "
                "models, and transformers' own classes with attn_implementation='eager', have one"
            )
        return *backward(ctx, *gradients)[:num_tensors], None, None

    members = {"forward": staticmethod(eager_forward), "backward": staticmethod(eager_backward)}
    function = type(f"{name}_eager", (torch.autograd.Function,), members)
    # Its base class's `apply`, in C++. Function's own first asks about functorch, as `call` has: 2.6 us.
    return super(torch.autograd.Function, function).apply


def is_watched() -> bool:
    """Whether a dispatch mode or a functorch transform sees what is called."""
    return torch._C._len_torch_dispatch_stack() > 0 or torch._C._functorch.peek_interpreter_stack() is not None
