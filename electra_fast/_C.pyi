from collections.abc import Sequence

MAX_SEQUENCE_LENGTH: int

def has_openmp() -> bool: ...
def mask_tokens(
    *,
    input_ids: int,
    cu_seqlens: int,
    row_ids: int,
    unit_starts: int,
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
def corrupt_tokens(
    *,
    input_ids: int,
    positions: int,
    sampled_ids: int,
    weights: int,
    num_tokens: int,
    num_slots: int,
    corrupted_ids: int,
    is_replaced: int,
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
