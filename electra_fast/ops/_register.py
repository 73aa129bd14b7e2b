"""Makes an operator: opaque to torch.compile, with a shape function, and free of dispatch in eager mode."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import ParamSpec, TypeVar

import torch

P = ParamSpec("P")
R = TypeVar("R")


def register(name: str, *, shapes: Callable[P, R]) -> Callable[[Callable[P, R]], Callable[P, R]]:
    """Decorator: register a function of tensors and numbers as `torch.ops.electra_fast.<name>`.

    The body sees real tensors only, so it may look at values, take addresses and choose a backend. `shapes` takes the
    same arguments and returns empty tensors like the results; torch.compile traces it in place of the body. Schema and
    defaults are inferred from the body's annotations. The results may not alias the arguments.

    A custom op costs 14 us a call (torch 2.13, CPU) and nothing in eager mode needs it, so the body is called directly
    unless something watches: the compiler, a dispatch mode, a functorch transform or a tensor subclass.
    """

    def decorate(body: Callable[P, R]) -> Callable[P, R]:
        custom_op = torch.library.custom_op(f"electra_fast::{name}", body, mutates_args=())
        custom_op.register_fake(shapes)

        @functools.wraps(body)
        def call(*args: P.args, **kwargs: P.kwargs) -> R:
            if torch.compiler.is_compiling() or _is_watched((*args, *kwargs.values())):
                return custom_op(*args, **kwargs)
            return body(*args, **kwargs)

        return call

    return decorate


def _is_watched(values: tuple[object, ...]) -> bool:
    return (
        torch._C._len_torch_dispatch_stack() > 0
        or torch._C._functorch.peek_interpreter_stack() is not None
        or any(isinstance(value, torch.Tensor) and type(value) not in _PLAIN for value in values)
    )


_PLAIN = (torch.Tensor, torch.nn.Parameter)
