"""What pyproject.toml can't say: the folder of the Triton kernels and the C++ extension."""

from __future__ import annotations

import os
import sys
from glob import glob

from pybind11.setup_helpers import ParallelCompile, Pybind11Extension
from setuptools import find_packages, setup

extension = Pybind11Extension(
    "electra_fast._C",
    sorted(glob("csrc/*.cpp")),
    depends=sorted(glob("csrc/*.h")),
    cxx_std=17,
    # No -march=native, since a wheel must run anywhere: csrc/philox.h chooses instruction sets at run time. No
    # -ffast-math, which may drop NaNs. -fopenmp-simd obeys `omp simd` and links no OpenMP runtime. -fno-trapping-math
    # changes no result; without it GCC makes a branch of `?:` around arithmetic, and no vector code.
    extra_compile_args=["/O2"]
    if sys.platform == "win32"
    else ["-O3", "-fopenmp-simd", "-fno-trapping-math", "-fvisibility=hidden"],
    # Without a compiler the package still installs and runs its references. Not so for wheels to release.
    optional="ELECTRA_FAST_REQUIRE_EXTENSION" not in os.environ,
)

with ParallelCompile("ELECTRA_FAST_BUILD_JOBS"):  # that many files at a time; default: as many as there are cores
    setup(
        packages=[*find_packages(include=["electra_fast", "electra_fast.*"]), "electra_fast.kernels"],
        package_dir={"electra_fast.kernels": "kernels"},
        package_data={"electra_fast": ["py.typed", "_C.pyi", "recipes/*.yaml", "estimation/*.json"]},
        ext_modules=[extension],
    )
