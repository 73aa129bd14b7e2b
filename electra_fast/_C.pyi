from collections.abc import Sequence

MAX_SEQUENCE_LENGTH: int

def has_openmp() -> bool: ...
def mask_tokens(
    *,
    input_ids: int,
    cu_seqlens: int,
    row_ids: int,
    num_tokens: int,
    num_sequences: int,
    seed: int,
    mask_token_id: int,
    never_mask_ids: Sequence[int],
    num_masked: int,
    mask_prob: float,
    replace_below: int,
    max_per_sequence: int,
    masked_ids: int,
    positions: int,
    labels: int,
    weights: int,
    threads: int,
) -> None: ...

class Attention:
    def __init__(
        self,
        *,
        q: tuple[int, int, int],
        k: tuple[int, int, int],
        v: tuple[int, int, int],
        cu_seqlens: int,
        row_ids: int,
        num_tokens: int,
        num_sequences: int,
        heads: int,
        head_dim: int,
        scale: float,
        drop_below: int,
        keep_scale: float,
        seed: int,
        stream: int,
    ) -> None: ...

def attention(
    arguments: Attention, *, out: tuple[int, int, int], lse: int, is_bfloat16: bool, threads: int
) -> None: ...
def attention_backward(
    arguments: Attention,
    *,
    lse: int,
    d_out: tuple[int, int, int],
    dq: tuple[int, int, int],
    dk: tuple[int, int, int],
    dv: tuple[int, int, int],
    is_bfloat16: bool,
    threads: int,
) -> None: ...
