from collections.abc import Sequence

MAX_SEQUENCE_LENGTH: int

def has_openmp() -> bool: ...
def has_wide_registers() -> bool: ...

# masking_sampling
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

# generator_head, sampling
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
def head_stride(width: int) -> int: ...
def generator_head(
    *,
    hidden: int,
    weight: int,
    bfloat16: bool,
    num_rows: int,
    vocab_size: int,
    width: int,
    chunk: int,
    bias: int,
    labels: int,
    nll: int = 0,
    largest: int = 0,
    log_total: int = 0,
    sampled_ids: int = 0,
    row_ids: int = 0,
    seed: int = 0,
    stream: int = 0,
    inverse_temperature: float = 1.0,
    disallow_correct: bool = False,
    argmax_ids: int = 0,
    coefficients: int = 0,
    d_hidden: int = 0,
    d_weight: int = 0,
    d_bias: int = 0,
    threads: int,
) -> None: ...

# rtd_bce, gelu
def rtd_bce_float32(
    *,
    logits: int,
    is_replaced: int,
    mask: int,
    num_tokens: int,
    loss_sum: int,
    counts: int,
    histogram: int,
    gradient: int,
    threads: int,
) -> None: ...
def rtd_bce_bfloat16(
    *,
    logits: int,
    is_replaced: int,
    mask: int,
    num_tokens: int,
    loss_sum: int,
    counts: int,
    histogram: int,
    gradient: int,
    threads: int,
) -> None: ...
def bias_gelu_float32(*, x: int, bias: int, rows: int, width: int, y: int, threads: int) -> None: ...
def bias_gelu_bfloat16(*, x: int, bias: int, rows: int, width: int, y: int, threads: int) -> None: ...
def bias_gelu_backward_float32(
    *, dy: int, x: int, bias: int, rows: int, width: int, dx: int, dbias: int, y: int = 0, threads: int
) -> None: ...
def bias_gelu_backward_bfloat16(
    *, dy: int, x: int, bias: int, rows: int, width: int, dx: int, dbias: int, y: int = 0, threads: int
) -> None: ...

# layer_norm
def layer_norm(
    x: int,
    residual: int,
    row_ids: int,
    num_rows: int,
    width: int,
    x_is_bfloat16: bool,
    y_is_bfloat16: bool,
    drop_below: int,
    seed: int,
    stream: int,
    scale: float,
    weight: int,
    bias: int,
    eps: float,
    y: int,
    stats: int,
    x_bias: int,
    sum: int,
    threads: int,
    /,
) -> None: ...
def layer_norm_backward(
    x: int,
    residual: int,
    row_ids: int,
    num_rows: int,
    width: int,
    x_is_bfloat16: bool,
    y_is_bfloat16: bool,
    drop_below: int,
    seed: int,
    stream: int,
    scale: float,
    dy: int,
    weight: int,
    stats: int,
    dx: int,
    dresidual: int,
    dweight: int,
    dbias: int,
    dx_bias: int,
    threads: int,
    /,
) -> None: ...

# embedding
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

# attention
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
        bias: int,
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
    dbias: int,
    is_bfloat16: bool,
    threads: int,
) -> None: ...

# weight_gradient
def weight_gradient(
    dy: int,
    x: int,
    dy_stride: int,
    x_stride: int,
    tokens: int,
    outputs: int,
    inputs: int,
    accumulate: bool,
    dweight: int,
    threads: int,
    /,
) -> None: ...
