"""electra-fast: pretrain, fine-tune and run ELECTRA on fused kernels.

Importing this package imports neither torch nor transformers: every public name is loaded when it is first used.
"""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

__version__ = "0.1.0"

_PUBLIC = {
    "ElectraConfig": "electra_fast.models",
    "ElectraModel": "electra_fast.models",
    "ElectraForPreTraining": "electra_fast.models",
    "ElectraForMaskedLM": "electra_fast.models",
    "ElectraForSequenceClassification": "electra_fast.models",
    "ElectraForTokenClassification": "electra_fast.models",
    "ElectraForQuestionAnswering": "electra_fast.models",
    "ElectraForMultipleChoice": "electra_fast.models",
    "ElectraForCausalLM": "electra_fast.models",
    "ElectraForJointPreTraining": "electra_fast.models",
    "FeatureExtractor": "electra_fast.finetuning.features",
    "optimize": "electra_fast.models",
    "patch_transformers": "electra_fast.models",
}
_SUBPACKAGES = {"ops", "models", "data", "pretraining", "finetuning"}

__all__ = ["__version__", *_PUBLIC, *sorted(_SUBPACKAGES)]

# An installed electra_fast holds its Triton kernels as electra_fast/kernels; in a checkout they lie beside it.
_root = Path(__file__).resolve().parent.parent
if (_root / "kernels" / "__init__.py").exists() and not (_root / "electra_fast" / "kernels").exists():
    __path__.append(str(_root))


def __getattr__(name: str) -> Any:
    if name in _PUBLIC:
        return getattr(importlib.import_module(_PUBLIC[name]), name)
    if name in _SUBPACKAGES:
        return importlib.import_module(f"{__name__}.{name}")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
