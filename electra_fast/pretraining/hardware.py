"""GPUs by name: what their makers' data sheets say that a run must know beforehand."""

from __future__ import annotations

import re
from dataclasses import dataclass


@dataclass(frozen=True)
class Gpu:
    """A kind of GPU.

    Args:
        name: as the command line takes it.
        model: the words that the driver's name of it holds.
        half_tflops: dense TFLOP/s in 16 bits with float32 sums.
        single_tflops: TFLOP/s in float32 without tensor cores, which is how PyTorch multiplies float32 by default.
        memory_gb: gigabytes, 10^9 bytes.
        has_bfloat16: whether its tensor cores know bfloat16; else half_tflops is float16's.
    """

    name: str
    model: str
    half_tflops: float
    single_tflops: float
    memory_gb: int
    has_bfloat16: bool = True

    def peak_flops(self, precision: str) -> float:
        """FLOP/s it could do in float32, bfloat16 or float16."""
        return (self.single_tflops if precision == "float32" else self.half_tflops) * 1e12


GPUS = (
    Gpu("V100", "V100", 125.0, 15.7, 16, has_bfloat16=False),
    Gpu("T4", "T4", 65.0, 8.1, 16, has_bfloat16=False),
    Gpu("A100-40GB", "A100", 312.0, 19.5, 40),
    Gpu("A100-80GB", "A100", 312.0, 19.5, 80),
    Gpu("L40S", "L40S", 362.0, 91.6, 48),
    Gpu("L4", "L4", 121.0, 30.3, 24),
    Gpu("RTX-3090", "RTX 3090", 71.0, 35.6, 24),
    Gpu("RTX-4090", "RTX 4090", 165.2, 82.6, 24),
    Gpu("H100-PCIe", "H100 PCIe", 756.0, 51.0, 80),
    Gpu("H100", "H100", 989.0, 67.0, 80),
    Gpu("H200", "H200", 989.0, 67.0, 141),
)


def find_gpu(driver_name: str) -> Gpu | None:
    """The GPU that the driver calls so, e.g. "NVIDIA H100 80GB HBM3"; of several sizes of memory the first."""
    return next((gpu for gpu in GPUS if re.search(rf"\b{gpu.model}\b", driver_name)), None)
