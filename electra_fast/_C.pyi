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
def find_outside(ids: int, n: int, size: int, /) -> int: ...

class EmbeddingRows:
    def __init__(
        self,
        word: int,
        token_type: int,
        position: int,
        is_bfloat16: bool,
        weight: int,
        input_ids: int,
        token_type_ids: int,
        position_ids: int,
        row_ids: int,
        num_tokens: int,
        width: int,
        seed: int,
        stream: int,
        drop_below: int,
        scale: float,
        /,
    ) -> None: ...

def embedding_layer_norm(rows: EmbeddingRows, bias: int, eps: float, y: int, stats: int, threads: int, /) -> None: ...
def embedding_layer_norm_backward(
    rows: EmbeddingRows,
    dy: int,
    stats: int,
    num_words: int,
    num_types: int,
    num_positions: int,
    padding_idx: int,
    dword: int,
    dtoken_type: int,
    dposition: int,
    dweight: int,
    dbias: int,
    threads: int,
    /,
) -> None: ...
