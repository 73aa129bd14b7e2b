from collections.abc import Sequence

MAX_SEQUENCE_LENGTH: int
HEAD_BLOCKS: int

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
def sample_tokens(
    *,
    logits: int,
    bfloat16: bool,
    num_rows: int,
    vocab_size: int,
    row_stride: int,
    row_ids: int,
    disallow: int,
    seed: int,
    stream: int,
    inverse_temperature: float,
    sampled_ids: int,
    threads: int,
) -> None: ...
def head_rows(
    *,
    logits: int,
    num_rows: int,
    vocab_size: int,
    bias: int,
    labels: int,
    coefficients: int = 0,
    nll: int = 0,
    largest: int = 0,
    log_total: int = 0,
    sampled_ids: int = 0,
    row_ids: int = 0,
    first_row: int = 0,
    seed: int = 0,
    stream: int = 0,
    inverse_temperature: float = 1.0,
    disallow_correct: bool = False,
    argmax_ids: int = 0,
    partial_sums: int = 0,
    d_bias: int = 0,
    threads: int,
) -> None: ...
