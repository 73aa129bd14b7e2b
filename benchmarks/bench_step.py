"""A pretraining step of ELECTRA-small, forward and backward: ours beside plain, strong and floor (DESIGN, section 7).

`plain` is benchmarks/plain.py, `strong` the same with the vocabulary projection at masked positions only, compiled by
torch.compile, and `floor` the step's matrix products alone, into memory that is there already. No optimizer.

    python -m pytest benchmarks/bench_step.py -s

also shows the ratios that are asked for, page faults, where ours spends its time, and what a step takes at its peak.
"""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from typing import Any, NamedTuple

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.profiler import ProfilerActivity

from benchmarks import timing
from benchmarks.plain import Losses, PlainElectra, choose_masks, from_joint, gumbel_sample
from electra_fast import ElectraConfig, ElectraForJointPreTraining
from electra_fast.allocator import keep_freed_memory

try:
    import resource
except ImportError:  # Windows
    resource = None

Step = Callable[[Tensor], Tensor]

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
SHAPES = {"cpu": [(16, 128)], "cuda": [(128, 128)]}  # sequences, tokens in each
CLS, SEP, MASK = 101, 102, 103
MASKED = 19  # of 128 tokens, int((0.15 + 0.005) * 128)


def small_configs(dropout: float = 0.1) -> list[ElectraConfig]:
    """Generator and discriminator of ELECTRA-small."""
    rates = {"hidden_dropout_prob": dropout, "attention_probs_dropout_prob": dropout}
    return [
        ElectraConfig(hidden_size=64, num_attention_heads=1, intermediate_size=256, **rates),
        ElectraConfig(hidden_size=256, num_attention_heads=4, intermediate_size=1024, **rates),
    ]


def make_text(sequences: int, length: int) -> tuple[Tensor]:
    ids = torch.randint(1000, 30522, (sequences, length), device=DEVICE)
    ids[:, 0], ids[:, -1] = CLS, SEP
    return (ids,)


class StrongElectra(PlainElectra):
    """Plain, but the generator's head sees the masked positions only."""

    def forward(self, input_ids: Tensor, attention_mask: Tensor, *, is_masked: Tensor, masked_ids: Tensor) -> Losses:
        token_type_ids = torch.zeros_like(input_ids)
        x = self.generator(masked_ids, attention_mask, token_type_ids)
        columns = is_masked.int().topk(MASKED, dim=1).indices  # [B, M / B]
        x = x.gather(1, columns.unsqueeze(-1).expand(-1, -1, x.shape[-1]))
        x = self.generator_norm(F.gelu(self.generator_dense(x)))
        logits = F.linear(x, self.generator.embeddings.word_embeddings.weight, self.generator_bias)
        generator_loss = F.cross_entropy(logits.flatten(0, 1).float(), input_ids.gather(1, columns).flatten())
        corrupted_ids = input_ids.scatter(1, columns, gumbel_sample(logits.detach().float()))
        is_replaced = (corrupted_ids != input_ids).float()
        scores = self.discriminator_logits(corrupted_ids, attention_mask, token_type_ids)
        discriminator_loss = F.binary_cross_entropy_with_logits(scores.float(), is_replaced)
        return Losses(generator_loss + 50 * discriminator_loss, generator_loss, discriminator_loss)


def train_step(model: torch.nn.Module, loss_of: Callable[[Tensor], Tensor], input_ids: Tensor) -> Tensor:
    """Gradients are fresh each time, as after `optimizer.zero_grad()`."""
    for parameter in model.parameters():
        parameter.grad = None
    loss = loss_of(input_ids)
    loss.backward()
    return loss.detach()


def plain_loss(forward: Callable[..., Losses], input_ids: Tensor) -> Tensor:
    attention_mask = torch.ones_like(input_ids, dtype=torch.bool)
    never = (CLS, SEP, MASK)
    is_masked, masked_ids = choose_masks(input_ids, attention_mask, mask_token_id=MASK, never_mask_ids=never)
    return forward(input_ids, attention_mask, is_masked=is_masked, masked_ids=masked_ids).loss


class Floor:
    """Every matrix product of the step, forward and backward, into buffers made once."""

    def __init__(self, configs: list[ElectraConfig], sequences: int, length: int) -> None:
        tokens = sequences * length
        self._products: list[Callable[[], Any]] = []
        for config in configs:
            hidden = config.hidden_size
            self._linear(tokens, config.embedding_size, hidden)
            for _ in range(config.num_hidden_layers):
                self._linear(tokens, hidden, 3 * hidden)
                self._attention(sequences, config.num_attention_heads, length, hidden // config.num_attention_heads)
                self._linear(tokens, hidden, hidden)
                self._linear(tokens, hidden, config.intermediate_size)
                self._linear(tokens, config.intermediate_size, hidden)
        masked, generator, discriminator = sequences * MASKED, *configs
        self._linear(masked, generator.hidden_size, generator.embedding_size)
        self._linear(masked, generator.embedding_size, generator.vocab_size)
        self._linear(tokens, discriminator.hidden_size, discriminator.hidden_size)

    def _linear(self, rows: int, width: int, outputs: int) -> None:
        x, weight = (torch.randn(shape, device=DEVICE) for shape in ((rows, width), (outputs, width)))
        y, dy = torch.randn(2, rows, outputs, device=DEVICE).unbind()
        self._products += [
            partial(torch.mm, x, weight.T, out=y),
            partial(torch.mm, dy, weight, out=torch.empty_like(x)),
            partial(torch.mm, dy.T, x, out=torch.empty_like(weight)),
        ]

    def _attention(self, sequences: int, heads: int, length: int, dim: int) -> None:
        q, dq = torch.randn(2, sequences * heads, length, dim, device=DEVICE).unbind()
        scores, d_scores = torch.randn(2, sequences * heads, length, length, device=DEVICE).unbind()
        self._products += [
            partial(torch.bmm, q, q.mT, out=scores),
            partial(torch.bmm, d_scores, q, out=dq),
            partial(torch.bmm, d_scores.mT, q, out=dq),
            partial(torch.bmm, q, q.mT, out=scores),
            partial(torch.bmm, d_scores, q, out=dq),
            partial(torch.bmm, d_scores.mT, q, out=dq),
        ]

    def __call__(self, input_ids: Tensor) -> None:
        for product in self._products:
            product()


def page_faults(step: Callable[[], Any], steps: int = 3) -> float:
    """Minor page faults a step of this process, once it holds what a step needs."""
    step()  # the measurement before this one may have given all memory back
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(steps):
        step()
    return (resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before) / steps


def profile(step: Callable[[], Any], rows: int = 15) -> str:
    """A table of where one step's time goes, by operator, without the operators that it calls."""
    on_gpu = DEVICE == "cuda"
    activities = [ProfilerActivity.CPU] + [ProfilerActivity.CUDA] * on_gpu
    with torch.profiler.profile(activities=activities) as profiler:
        step()
    sort_by = "self_cuda_time_total" if on_gpu else "self_cpu_time_total"
    return profiler.key_averages().table(sort_by=sort_by, row_limit=rows, max_name_column_width=48)


class Contestants(NamedTuple):
    """Steps that take token ids [B, S]: forward, backward, fresh gradients."""

    ours: Step
    plain: Step
    strong: Step

    @classmethod
    def make(cls, *, compiled: bool) -> Contestants:
        """With the same weights; `strong` is compiled by inductor, or for a quick look not at all."""
        configs = small_configs()
        joint = ElectraForJointPreTraining(*configs).to(DEVICE).train()
        plain = from_joint(joint).train()
        strong = StrongElectra(*configs).to(DEVICE).train()
        strong.load_state_dict(plain.state_dict())
        forward = torch.compile(strong, backend="inductor" if compiled else "eager")
        return cls(
            partial(train_step, joint, lambda ids: joint(ids).loss),
            partial(train_step, plain, partial(plain_loss, plain)),
            partial(train_step, strong, partial(plain_loss, forward)),
        )


@pytest.mark.timeout(900)
@pytest.mark.parametrize(("sequences", "length"), SHAPES[DEVICE])
def test_pretraining_step(compare, copies, benchmark, sequences, length):
    steps = Contestants.make(compiled=benchmark.enabled)
    inputs = copies(partial(make_text, sequences, length))
    comparison = compare(
        "pretraining step",
        ours=steps.ours,
        plain=steps.plain,
        rivals={"strong": steps.strong, "floor": Floor(small_configs(), sequences, length)},
        inputs=inputs,
        shape=f"ELECTRA-small, {sequences} x {length}, dropout 0.1",
        direction="forward + backward",
        target=2.5,
    )
    times = comparison.medians
    print(f"{times['plain'] / times['ours']:.2f} times as fast as plain; 2.5 asked")
    print(f"{times['strong'] / times['ours']:.2f} times as fast as strong; 1.5 asked")
    print(f"{times['ours'] / times['floor']:.2f} times the floor; at most 1.35 asked")
    if resource is not None and DEVICE == "cpu":
        for name, step in steps._asdict().items():
            print(f"{page_faults(partial(step, *inputs[0])):,.0f} page faults a step of {name}")
    print(profile(partial(steps.ours, *inputs[0])))


def peak_of(name: str, sequences: int, length: int, compiled: bool) -> int | None:
    """Bytes that a step of one contestant takes at its peak. For a process of its own: in one that has run other steps
    it would also count the holes that they left in the heap."""
    keep_freed_memory()
    step = getattr(Contestants.make(compiled=compiled), name)
    step(*make_text(sequences, length))  # compiles, starts the threads
    step.args[0].zero_grad()
    return timing.peak_memory(DEVICE, partial(step, *make_text(sequences, length)))


@pytest.mark.timeout(900)
def test_peak_memory(benchmark):
    """What a step of 64 x 128 takes at its peak, gradients included."""
    sequences, length = 64 if benchmark.enabled else 2, 128
    peaks = {}
    for name in Contestants._fields:
        with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as process:
            peaks[name] = process.submit(peak_of, name, sequences, length, benchmark.enabled).result()
    benchmark.pedantic(Contestants.make(compiled=False).ours, make_text(sequences, length))
    if None in peaks.values():
        pytest.skip("this system does not tell its peak")
    print({name: f"{peak / 2**20:,.0f} MiB" for name, peak in peaks.items()}, f"a step of {sequences} x {length}")
    print(f"{peaks['ours'] / peaks['plain']:.2f} of plain's; at most 0.33 asked")
    print(f"{peaks['ours'] / peaks['strong']:.2f} of strong's; at most 0.70 asked")
    benchmark.extra_info["peak_memory"] = peaks
