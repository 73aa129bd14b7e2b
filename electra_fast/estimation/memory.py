"""How many bytes a run needs on each device: a formula, which tests hold against peaks measured on the CPU.

T tokens at once, H hidden, I intermediate, E embedding, V vocabulary, P parameters.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass

from electra_fast.estimation.work import Part, Work
from electra_fast.models import ElectraConfig
from electra_fast.pretraining.config import PretrainConfig

TOLERANCE = 0.2  # of the sum, which tests/estimation/test_memory.py holds against real peaks on the CPU
_ROWS_OF_LOGITS = 192  # of [M, V] that the generator's head has at once
_NUMBERS_AT_ONCE = 2**21  # of [T, I] that the feed-forward block of a CPU has at once, see models/blocks.py
# Of what is kept, on a CPU from the second micro-batch on: gradients that stay lie among what the first one kept, and
# into glibc's holes between them not all of the next fits (measured: 0.73 and 0.70 of it, docs/log.md).
_HOLES = 0.7
_BOTH_TOWERS = ("joint", "adversarial", "electric")


@dataclass(frozen=True)
class Memory:
    """Bytes on one device, beside what the process itself and the device's libraries take.

    Attributes:
        weights: of the model as it computes.
        masters: float32 weights beside those of 16 bits.
        moments: Adam's two, float32.
        gradients: of all parameters; with activation checkpointing what they need beyond the activations' place.
        activations: what is kept of the forward pass for the backward pass.
        workspace: what is there for the moment only, and on a CPU holes in its heap.
        tokens: at once, so many.
    """

    weights: int
    masters: int
    moments: int
    gradients: int
    activations: int
    workspace: int
    tokens: int

    @property
    def total(self) -> int:
        return sum(asdict(self).values()) - self.tokens


def memory_of(
    config: PretrainConfig, work: Work, *, gpus: int = 1, on_cpu: bool = False, micro_batch_tokens: int | None = None
) -> Memory:
    """The most that a step of the run needs.

    Args:
        config: the run.
        work: its work.
        gpus: devices that share each batch, and with training.parallel fsdp the weights too.
        on_cpu: whether the CPU's own functions for layers run, which keep less.
        micro_batch_tokens: instead of the run's own setting.
    """
    settings = config.training
    limit = micro_batch_tokens or settings.micro_batch_tokens or math.inf
    size = _size(config)
    count = math.ceil(work.parameters / (gpus if settings.parallel == "fsdp" else 1))
    per_device = [math.ceil(part.tokens_per_step / gpus) for part in work.parts]
    in_pieces = max(per_device) > limit
    most = (0, 0, 0)  # kept, passing, tokens
    for part, all_tokens in zip(work.parts, per_device, strict=True):
        tokens = int(min(all_tokens, limit))
        kept, passing = _of_part(config, work, part, tokens, on_cpu=on_cpu, in_pieces=in_pieces)
        most = max(most, (kept, passing, tokens), key=lambda each: each[0] + each[1])
    kept, passing, tokens = most
    return Memory(
        weights=count * size,
        masters=count * 4 if size == 2 else 0,
        moments=count * 8,
        gradients=_gradients(config, count, kept, in_pieces=in_pieces),
        activations=kept,
        workspace=passing,
        tokens=tokens,
    )


def _of_part(
    config: PretrainConfig, work: Work, part: Part, tokens: int, *, on_cpu: bool, in_pieces: bool
) -> tuple[int, int]:
    """Bytes that are kept for the backward pass, and those that are there for the moment."""
    size, again = _size(config), config.training.activation_checkpointing
    in_blocks = on_cpu and size == 4
    towers = _towers(work, part.objective)
    kept = tokens * sum(_kept(config, tower, in_blocks) for tower in towers)
    if again:  # all of a layer, which is there for the time of its backward pass
        kept += tokens * max(_layer_kept(tower, size, in_blocks) for tower in towers)
    passing = max(_passing(tokens, tower, work.vocab_size, config, in_blocks) for tower in towers)
    if on_cpu and in_pieces and not again:
        passing += int(_HOLES * kept)
    return kept, passing


def _gradients(config: PretrainConfig, count: int, kept: int, *, in_pieces: bool) -> int:
    """Bytes of the gradients of `count` parameters, as far as they come beside what is `kept` of the forward pass."""
    gradients = count * _size(config)
    if (
        config.training.activation_checkpointing and not in_pieces
    ):  # freed memory is given back, and they take its place
        gradients = max(gradients - kept, 0)
    if _size(config) == 4:
        return gradients
    if in_pieces:  # float32 sums of the micro-batches before
        return gradients + count * 4
    return max(gradients, count * 6 - kept)  # once the activations are gone, in float32 too


def fitting_micro_batch(config: PretrainConfig, work: Work, available: float, *, gpus: int, on_cpu: bool) -> int | None:
    """The largest power of two of tokens with which the run fits into `available` bytes; None where none is."""
    tokens = 2 ** int(math.log2(max(part.tokens_per_step for part in work.parts)))
    while tokens >= max(config.data.longest, 2):
        if memory_of(config, work, gpus=gpus, on_cpu=on_cpu, micro_batch_tokens=tokens).total <= available:
            return tokens
        tokens //= 2
    return None


def _towers(work: Work, objective: str) -> list[ElectraConfig]:
    """The towers whose activations are kept."""
    generator, discriminator = work.model.generator.config, work.model.discriminator.config
    if objective == "generator":
        return [generator]
    if objective == "electric":
        return [generator, generator, discriminator]
    return [generator, discriminator] if objective in _BOTH_TOWERS else [discriminator]


def _size(config: PretrainConfig) -> int:
    """Bytes of a number in the model."""
    return 4 if config.training.precision == "float32" else 2


def _kept(config: PretrainConfig, tower: ElectraConfig, in_blocks: bool) -> int:
    """Bytes that a tower keeps of a token: of each layer, and of the embeddings and the head at its ends."""
    layer, hidden, size = _layer_kept(tower, _size(config), in_blocks), tower.hidden_size, _size(config)
    ends = (2 * tower.embedding_size + 3 * hidden) * size
    if config.training.activation_checkpointing:  # of each layer its input
        return ends + tower.num_hidden_layers * hidden * size
    return ends + tower.num_hidden_layers * layer


def _layer_kept(tower: ElectraConfig, size: int, in_blocks: bool) -> int:
    """Bytes that a layer keeps of a token: by models/blocks.py on a CPU in float32, else by a chain of operators.

    Both keep the input, queries, keys, values, context, the sums of both LayerNorms and the inner product; a chain also
    the output of the attention's half and the activation. Statistics, of attention a head, are float32.
    """
    hidden, inner = tower.hidden_size, tower.intermediate_size
    numbers = 7 * hidden + inner if in_blocks else 8 * hidden + 2 * inner
    return numbers * size + 4 * (tower.num_attention_heads + 4)


def _passing(tokens: int, tower: ElectraConfig, vocab_size: int, config: PretrainConfig, in_blocks: bool) -> int:
    """Gradients on their way through a layer, and the logits that the generator's head has at once."""
    inner, size = tokens * tower.intermediate_size, _size(config)
    if in_blocks:
        inner = min(inner, _NUMBERS_AT_ONCE)
    logits = min(tokens, _ROWS_OF_LOGITS) * vocab_size * 4
    head = vocab_size * tower.embedding_size * size  # the gradient of the projection, made in the forward pass
    through_layer = (2 * inner + 6 * tokens * tower.hidden_size) * size
    if config.training.activation_checkpointing:  # freed memory is given back: not both
        return max(through_layer, logits) + head
    return through_layer + logits + head
