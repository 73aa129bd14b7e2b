"""How many bytes a run needs on each device: a formula, which tests hold against peaks measured on the CPU.

T tokens at once, H hidden, I intermediate, E embedding, V vocabulary, P parameters.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass

from electra_fast.estimation.work import Work
from electra_fast.models import ElectraConfig
from electra_fast.pretraining.config import PretrainConfig

TOLERANCE = 0.2  # of the sum, which tests/estimation/test_memory.py holds against real peaks on the CPU
_ROWS_OF_LOGITS = 192  # of [M, V] that the generator's head has at once
_NUMBERS_AT_ONCE = 2**21  # of [T, I] that the feed-forward block of a CPU has at once, see models/blocks.py
_BOTH_TOWERS = ("joint", "adversarial", "electric")


@dataclass(frozen=True)
class Memory:
    """Bytes on one device, beside what the process itself and the device's libraries take.

    Attributes:
        weights: of the model as it computes.
        masters: float32 weights beside those of 16 bits.
        moments: Adam's two, float32.
        gradients: of all parameters.
        activations: what is kept of the forward pass for the backward pass.
        workspace: what is there for the moment only.
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
    shares = gpus if settings.parallel == "fsdp" else 1
    count = math.ceil(work.parameters / shares)
    in_pieces = any(math.ceil(part.tokens_per_step / gpus) > limit for part in work.parts)
    in_blocks = on_cpu and size == 4
    kept, passing, tokens = 0, 0, 0
    for part in work.parts:
        here = int(min(math.ceil(part.tokens_per_step / gpus), limit))
        towers = _towers(work, part.objective)
        bytes_kept = here * sum(_kept(config, tower, in_blocks) for tower in towers)
        bytes_passing = max(_passing(here, tower, work.vocab_size, size, in_blocks) for tower in towers)
        if bytes_kept + bytes_passing >= kept + passing:
            kept, passing, tokens = bytes_kept, bytes_passing, here
    gradients = count * size  # while activations are there
    if size == 2 and in_pieces:
        gradients += count * 4  # float32 sums of the micro-batches before
    elif size == 2:
        gradients = max(gradients, count * 6 - kept)  # once the activations are gone, in float32 too
    return Memory(
        weights=count * size,
        masters=count * 4 if size == 2 else 0,
        moments=count * 8,
        gradients=gradients,
        activations=kept,
        workspace=passing,
        tokens=tokens,
    )


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
    if config.training.activation_checkpointing:  # each layer's input, and all of the one that is computed again
        return ends + tower.num_hidden_layers * hidden * size + layer
    return ends + tower.num_hidden_layers * layer


def _layer_kept(tower: ElectraConfig, size: int, in_blocks: bool) -> int:
    """Bytes that a layer keeps of a token: by models/blocks.py on a CPU in float32, else by a chain of operators.

    Both keep the input, queries, keys, values, context, the sums of both LayerNorms and the inner product; a chain also
    the output of the attention's half and the activation. Statistics, of attention a head, are float32.
    """
    hidden, inner = tower.hidden_size, tower.intermediate_size
    numbers = 7 * hidden + inner if in_blocks else 8 * hidden + 2 * inner
    return numbers * size + 4 * (tower.num_attention_heads + 4)


def _passing(tokens: int, tower: ElectraConfig, vocab_size: int, size: int, in_blocks: bool) -> int:
    """Gradients on their way through a layer, and the logits that the generator's head has at once."""
    inner = tokens * tower.intermediate_size
    if in_blocks:
        inner = min(inner, _NUMBERS_AT_ONCE)
    logits = min(tokens, _ROWS_OF_LOGITS) * vocab_size * 4
    head = vocab_size * tower.embedding_size * size  # the gradient of the projection, made in the forward pass
    return (2 * inner + 6 * tokens * tower.hidden_size) * size + logits + head
