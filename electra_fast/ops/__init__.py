"""The fused operators. Each is a PyTorch operator with up to three backends: reference, cpp (CPU) and triton (CUDA)."""

from __future__ import annotations

# Imported here and not on demand: `ops.rtd_bce` is the function, and whoever imported the module of that name later
# would put the module in its place.
from electra_fast.ops import random
from electra_fast.ops._backends import Availability, availability, use_backend
from electra_fast.ops.attention import varlen_attention
from electra_fast.ops.embedding import embedding_layer_norm
from electra_fast.ops.gelu import bias_gelu
from electra_fast.ops.generator_head import (
    GeneratorSample,
    GeneratorSampleWithArgmax,
    linear_cross_entropy_sample,
    linear_cross_entropy_sample_with_argmax,
)
from electra_fast.ops.layer_norm import dropout_add_layer_norm, layer_norm
from electra_fast.ops.masking_sampling import MaskedTokens, corrupt_tokens, mask_tokens, mask_tokens_padded
from electra_fast.ops.rtd_bce import RTDLoss, rtd_bce
from electra_fast.ops.sampling import sample_tokens

__all__ = [
    "Availability",
    "GeneratorSample",
    "GeneratorSampleWithArgmax",
    "MaskedTokens",
    "RTDLoss",
    "availability",
    "bias_gelu",
    "corrupt_tokens",
    "dropout_add_layer_norm",
    "embedding_layer_norm",
    "layer_norm",
    "linear_cross_entropy_sample",
    "linear_cross_entropy_sample_with_argmax",
    "mask_tokens",
    "mask_tokens_padded",
    "random",
    "rtd_bce",
    "sample_tokens",
    "use_backend",
    "varlen_attention",
]
