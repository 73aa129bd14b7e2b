"""Models as packages for other programs, checked against the model, and a way to run them: see docs/deploy.md.

`export_model` writes a folder, `load` opens one. What runs an ONNX package imports neither PyTorch nor transformers.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from electra_fast.deployment.export import Exported, export_model
    from electra_fast.deployment.runtime import Deployed, load

__all__ = ["FORMATS", "Deployed", "Exported", "export_model", "load"]

# What `--format` takes, apart from "transformers", and what each is.
FORMATS = {
    "onnx": "ONNX in float32, for ONNX Runtime",
    "onnx-int8": "ONNX with weights in 8 bits, for CPUs",
    "torch-export": "a program of torch.export in float32",
}
_HOMES = {"export_model": "export", "Exported": "export", "load": "runtime", "Deployed": "runtime"}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
