"""The kernels of the generator head as their launchers compile them: widths of ELECTRA-small and -base, every dtype."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from electra_fast.kernels import generator_head as kernels
from electra_fast.kernels import generator_head_chunks as chunks
from electra_fast.kernels.generator_head import Launch
from electra_fast.kernels.sampling import blocks
from tests.kernels.ahead_of_time import FLOATS, TARGETS, Case

_AMD = tuple(target for target in TARGETS if target.startswith("gfx"))
_NVIDIA = tuple(target for target in TARGETS if target not in _AMD)

_VOCAB_SIZE, _TILES = 30522, 256
_POINTERS = {
    "p_labels": "*i64",
    "p_label_logit": "*fp32",
    "p_largest": "*fp32",
    "p_mass": "*fp32",
    "p_law_largest": "*fp32",
    "p_law_mass": "*fp32",
    "p_argmax": "*i32",
    "p_tile_argmax": "*i32",
    "p_seed": "*i64",
    "p_row_ids": "*i64",
    "p_nll": "*fp32",
    "p_lse": "*fp32",
    "p_sampled": "*i64",
    "p_coefficients": "*fp32",
    "p_parts": "*fp32",
    "p_logits": "*fp32",
    "p_log_total": "*fp32",
}
_SCALARS = {
    "first_row": "i32",
    "num_rows": "i32",
    "vocab_size": "i32",
    "num_tiles": "i32",
    "tokens_per_split": "i32",
    "inverse_temperature": "fp32",
    "stream": "i32",
}


def cases() -> list[Case]:
    return [
        case
        for width in (128, 768)
        for dtype in FLOATS
        for targets, is_amd in ((_NVIDIA, False), (_AMD, True))
        for case in _cases(width, dtype, targets, is_amd)
    ] + [case for dtype in FLOATS for case in _chunk_cases(dtype)]


def _chunk_cases(dtype: str) -> list[Case]:
    rows, block, tiles = blocks(_VOCAB_SIZE)
    flags = dict.fromkeys(("HAS_ROW_IDS", "OWN_LAW", "DISALLOW", "HAS_ARGMAX"), True)
    described = [
        (chunks.rows_kernel, flags | {"ROWS": rows, "BLOCK": block, "TILES": tiles}, 4 * rows),
        (chunks.gradient_kernel, {"BLOCK": chunks._BLOCK}, None),
    ]
    known = _POINTERS | _SCALARS | {"p_bias": f"*{dtype}", "p_argmax": "*i64"}
    return [
        Case(
            name=f"{kernel.__name__.removesuffix('_kernel')}-of-chunks-{dtype}",
            kernel=kernel,
            signature={argument: known[argument] for argument in kernel.arg_names if argument not in constants},
            constants=constants,
            options={"num_warps": chunks._WARPS},
            aligned=tuple(argument for argument in kernel.arg_names if argument.startswith("p_")),
            philox_elements=philox_elements,
        )
        for kernel, constants, philox_elements in described
    ]


def _cases(width: int, dtype: str, targets: tuple[str, ...], is_amd: bool) -> list[Case]:
    size = 4 if dtype == "fp32" else 2
    measure, finish = kernels._MEASURE[size], kernels._FINISH[size]
    sampling: dict[str, Any] = {"DISALLOW": True, "HAS_ARGMAX": True}
    product = {"PRECISION": kernels.precision(is_amd)}
    slices = {"SLICE": kernels._SLICE}
    described = [
        _case("measure", kernels.measure_kernel, width, dtype, measure, {"OWN_LAW": True, **sampling, **product}),
        _case(
            "finish",
            kernels.finish_kernel,
            width,
            dtype,
            finish,
            {"HAS_ROW_IDS": True, "TILES": _TILES, **sampling},
            {"p_argmax": "*i64"},
            philox_elements=4 * finish.rows,  # two words of each call are used
        ),
        _case("d_weight", kernels.d_weight_kernel, width, dtype, kernels._D_WEIGHT[size], {**product, **slices}),
        _case("d_hidden", kernels.d_hidden_kernel, width, dtype, kernels._D_HIDDEN[size], {**product, **slices}),
    ]
    vendor = "-amd" if is_amd else ""
    return [replace(case, name=case.name + vendor, targets=targets) for case in described]


def _case(
    name: str,
    kernel: Any,
    width: int,
    dtype: str,
    launch: Launch,
    constants: dict[str, Any],
    types: dict[str, str] | None = None,
    philox_elements: int | None = None,
) -> Case:
    constants = constants | {"E": width, "ROWS": launch.rows, "BLOCK": launch.block, "BLOCK_E": launch.block_e}
    floats = dict.fromkeys(("p_hidden", "p_weight", "p_bias", "p_d_weight", "p_d_bias"), f"*{dtype}")
    known = floats | _POINTERS | _SCALARS | (types or {})
    signature = {argument: known[argument] for argument in kernel.arg_names if argument not in constants}
    return Case(
        name=f"{name}-{width}-{dtype}",
        kernel=kernel,
        signature=signature,
        constants=constants,
        options={"num_warps": launch.warps, "num_stages": launch.stages},
        aligned=tuple(argument for argument in signature if argument.startswith("p_")),
        philox_elements=philox_elements,
        tensor_cores="PRECISION" in constants,
    )
