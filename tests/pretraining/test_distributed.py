"""Runs of several ranks follow the run of one process, load each other's checkpoints, and end together.

`make test-all` takes 1, 2 and 4 ranks over 50 steps, every objective and tie, and more ways to be interrupted.
"""

from __future__ import annotations

import os
import re
import shlex
import shutil
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from electra_fast.data.prepare import prepare
from electra_fast.data.tokenizer import train_wordpiece
from electra_fast.pretraining.checkpoint import list_checkpoints
from electra_fast.pretraining.metrics import read_metrics
from tests.follow import write_text
from tests.pretraining.faults import Ended, Machine
from tests.pretraining.ranks import IMPORTS, RECORD, RankMachine, counted, read_passes, sequences
from tests.pretraining.test_faults import NO_PICTURE
from tests.small import pretrain_arguments, write_small

ALL = bool(os.environ.get("ELECTRA_FAST_TEST_ALL"))
STRATEGIES = ("ddp", "fsdp")
LOSSES = ("loss", "generator_loss", "discriminator_loss", "mlm_loss")
FIRST_STEPS, AT_50 = 1e-5, 1e-3  # relative differences of the loss that are asked for
# So hot that every token is equally likely: rounding moves no sample over a step of the CDF.
SAMPLES_WITHOUT_LOGITS = {"objective.temperature": 1e9}
SETTINGS = {
    "model.hidden_dropout_prob": 0.1,
    "model.attention_probs_dropout_prob": 0.1,
    "data.batch_size": 9,  # not the same number for each rank
    "optimizer.lr": 2e-3,
    "optimizer.warmup_steps": 2,
    "training.log_every": 1,
    "training.eval_every": 3,
    "training.eval_batches": 2,
    "training.save_every": 2,
    "training.timeout_seconds": 100,  # far more than a busy machine needs, and less than the limit of a test
}

slow = pytest.mark.skipif(not ALL, reason="slow: set ELECTRA_FAST_TEST_ALL=1")
pytestmark = [
    pytest.mark.skipif(not hasattr(os, "fork"), reason="Windows forks no process"),
    pytest.mark.timeout(3600 if ALL else 300),
]


class Run(NamedTuple):
    """A finished run, and what `record` saw of it."""

    output: Path
    rows: list[dict[str, Any]]  # of the training steps
    passes: list[list[list[dict[str, Any]]]]  # of each step, of each rank
    ended: list[Ended]

    @property
    def sequences(self) -> list[list[dict[str, Any]]]:
        return [sequences(step) for step in self.passes]


@pytest.fixture(scope="module")
def ranks(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RankMachine]:
    machine = Machine(tmp_path_factory.mktemp("ranks"), setup=NO_PICTURE + "\n", imports=IMPORTS)
    yield RankMachine(machine)
    machine.close()


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_small(tmp_path_factory.mktemp("distributed"))


@pytest.fixture(scope="module")
def finished(ranks: RankMachine, made: Path) -> Callable[..., Run]:
    """Makes a run of 6 steps, or gives it again: finished(2, "ddp", **{"training.micro_batch_tokens": 30})."""
    runs: dict[str, Run] = {}

    def finish(world_size: int, parallel: str = "auto", **more: Any) -> Run:
        key = f"{world_size} {parallel} {more}"
        if key not in runs:
            runs[key] = train(ranks, made, made / f"run{len(runs)}", world_size, parallel, **more)
        return runs[key]

    return finish


def arguments(made: Path, output: Path, parallel: str = "auto", *more: str, **settings: Any) -> list[str]:
    corpus = made / "corpus"
    given = {"data.valid": corpus} | SETTINGS | SAMPLES_WITHOUT_LOGITS | {"training.parallel": parallel} | settings
    return [*pretrain_arguments(corpus, output, given.pop("training.steps", 6), **given), *more]


def train(ranks: RankMachine, made: Path, output: Path, world_size: int, parallel: str = "auto", **more: Any) -> Run:
    record = Path(f"{output}.passes")
    ended = ranks.run(arguments(made, output, parallel, **more), world_size, setup=RECORD.format(str(record)))
    assert [end.code for end in ended] == [0] * world_size, ended
    rows = [row for row in read_metrics(output / "metrics.jsonl") if row["kind"] == "train"]
    return Run(output, rows, read_passes(record, world_size), ended)


def deviation(run: Run, alone: Run, steps: slice = slice(None), names: Sequence[str] = LOSSES) -> float:
    """The largest relative difference of a loss over some steps."""
    pairs = list(zip(run.rows, alone.rows, strict=True))[steps]
    assert pairs
    assert all(theirs.keys() - {"mfu"} == ours.keys() - {"mfu"} for ours, theirs in pairs)
    return max(abs(ours[name] / theirs[name] - 1) for ours, theirs in pairs for name in names if name in theirs)


def check_shares(run: Run, alone: Run) -> None:
    """Every rank has a share; together they have the batch, its masks and its samples; all know its counts."""
    assert run.sequences == alone.sequences
    for step in run.passes:
        sizes = [sum(len(facts["sequences"]) for facts in counted(passes)) for passes in step]
        assert max(sizes) - min(sizes) <= 1
        masks = sum(len(sequence["masks"]) for sequence in sequences(step))
        tokens = sum(len(sequence["tokens"]) for sequence in sequences(step))
        assert {(facts["masked_count"], facts["token_count"]) for passes in step for facts in passes} == {
            (masks, tokens)
        }


def test_the_oracle_sees_masks(finished: Callable[..., Run]) -> None:
    alone = finished(1)
    assert len(alone.sequences) == 6
    for step in alone.sequences:
        assert len(step) == 9
        assert all(sequence["masks"] for sequence in step)
        positions = [position for sequence in step for position, _, _ in sequence["masks"]]
        assert len(set(positions)) > 1
    assert all(first != second for first, second in zip(alone.sequences, alone.sequences[1:], strict=False))


@pytest.mark.parametrize(
    ("parallel", "more"),
    [
        ("ddp", {}),
        ("fsdp", {}),
        ("fsdp", {"training.micro_batch_tokens": 24}),
        pytest.param("ddp", {"training.micro_batch_tokens": 24}, marks=slow),
    ],
    ids=str,
)
def test_two_ranks_follow_one_process(finished: Callable[..., Run], parallel: str, more: dict[str, Any]) -> None:
    alone, run = finished(1), finished(2, parallel, **more)
    check_shares(run, alone)
    counts = [[len(counted(passes)) for passes in step] for step in run.passes]
    if more:  # one rank has more micro-batches than the other
        assert any(min(of_step) < max(of_step) for of_step in counts), counts
    else:
        assert counts == [[1, 1]] * 6
    found = deviation(run, alone)
    print(f"2 ranks, {parallel} {more}: at most {found:.1e}")
    assert found <= FIRST_STEPS
    assert deviation(run, alone, names=["gradient_norm"]) <= 1e-4
    evaluations = [
        [row for row in read_metrics(r.output / "metrics.jsonl") if row["kind"] == "eval"] for r in (run, alone)
    ]
    for ours, theirs in zip(*evaluations, strict=True):
        assert ours["loss"] == pytest.approx(theirs["loss"], rel=FIRST_STEPS)


# Stops a resumed run before its first step, so that it saves what it has loaded.
STOP_AT_ONCE = """
import os, signal
from electra_fast.pretraining import train
class Stopping(train.Prefetcher):
    def __enter__(self):
        os.kill(os.getpid(), signal.SIGTERM)
        return super().__enter__()
train.Prefetcher = Stopping
"""


def weights(checkpoint: Path) -> dict[str, torch.Tensor]:
    """Weights and moments."""
    return {
        f"{file} {name}": tensor
        for file in ("model", "optimizer")
        for name, tensor in load_file(checkpoint / f"{file}.safetensors").items()
    }


def check_same_bits(ours: Path, theirs: Path) -> None:
    found, expected = weights(ours), weights(theirs)
    assert found.keys() == expected.keys()
    assert [name for name in expected if not torch.equal(found[name], expected[name])] == []


def check_same_end(output: Path, whole: Path) -> None:
    """The last checkpoints, the models and the evaluations are the same bits."""
    last = [list_checkpoints(folder / "checkpoints")[-1] for folder in (output, whole)]
    assert last[0].name == last[1].name
    check_same_bits(*last)
    for tower in ("generator", "discriminator"):
        assert (output / tower / "model.safetensors").read_bytes() == (whole / tower / "model.safetensors").read_bytes()
    rows = [
        [row for row in read_metrics(folder / "metrics.jsonl") if row["kind"] == "eval"] for folder in (output, whole)
    ]
    assert rows[0] == rows[1]


@pytest.mark.parametrize("parallel", [pytest.param("ddp", marks=slow), "fsdp"])
def test_a_checkpoint_of_two_ranks_loads_on_any_number(
    finished: Callable[..., Run], ranks: RankMachine, made: Path, tmp_path: Path, parallel: str
) -> None:
    """Loaded and saved again, no bit of the weights and moments is another; and the run goes on from them."""
    run = finished(2, parallel)
    (other,) = set(STRATEGIES) - {parallel}
    cases = [(1, "auto"), (2, other), (4, "fsdp"), (4, "ddp"), (3, parallel)] if ALL else [(1, "auto"), (2, other)]
    for world_size, strategy in cases:
        output = tmp_path / f"{world_size} {strategy}"
        shutil.copytree(run.output, output)
        again = arguments(made, output, strategy, "--resume", **{"training.steps": 8, "training.save_every": 0})
        ended = ranks.run(again, world_size, setup=STOP_AT_ONCE)
        assert [end.code for end in ended] == [0] * world_size, ended
        assert "after step 6;" in ended[0].out, ended
        check_same_bits(output / "checkpoints" / "step-00000006", run.output / "checkpoints" / "step-00000006")
        if ALL or world_size == 1:
            ended = ranks.run(again, world_size)
            assert [end.code for end in ended] == [0] * world_size, ended
            assert list_checkpoints(output / "checkpoints")[-1].name == "step-00000008"


# At the start of update number STEP, of rank RANK.
AT_A_STEP = """
import os, signal, time
from electra_fast.pretraining.train import _Gradients as place
compute, calls = place.compute, []
def failing(*args, **kwargs):
    calls.append(1)
    if len(calls) == STEP:
        happen()
    return compute(*args, **kwargs)
place.compute = failing
"""


def at_step(step: int, happens: str) -> str:
    return f"def happen():\n    {happens}\n" + AT_A_STEP.replace("STEP", str(step))


KILL, TERMINATE = (f"os.kill(os.getpid(), signal.SIG{name})" for name in ("KILL", "TERM"))


@pytest.mark.parametrize(
    ("parallel", "lost"),
    [("fsdp", 1), *(pytest.param(*case, marks=slow) for case in (("ddp", 0), ("ddp", 1), ("fsdp", 0)))],
)
def test_where_a_rank_is_killed_the_other_ends_and_says_how_to_go_on(
    finished: Callable[..., Run], ranks: RankMachine, made: Path, tmp_path: Path, parallel: str, lost: int
) -> None:
    output = tmp_path / "run"
    ended = ranks.run(arguments(made, output, parallel), 2, of={lost: at_step(4, KILL)})
    assert ended[lost].code == -signal.SIGKILL, ended
    left = ended[1 - lost]
    assert left.code == 2, ended
    check_one_error(ended, "--resume")
    assert [path.name for path in list_checkpoints(output / "checkpoints")] == ["step-00000002"]
    ended = ranks.run(arguments(made, output, parallel, "--resume"), 2)
    assert [end.code for end in ended] == [0, 0], ended
    check_same_end(output, finished(2, parallel).output)


def check_one_error(ended: list[Ended], *words: str) -> None:
    """All ranks together say one message of one line, with these words in it, and no more."""
    errors = [line for end in ended for line in end.err.splitlines() if not is_of_gloo(line)]
    assert len(errors) == 1, ended
    assert errors[0].startswith("error: "), ended
    assert all(word in errors[0] for word in words), ended


def is_of_gloo(line: str) -> bool:
    """PyTorch's C++ code writes lines of its own."""
    return bool(re.match(r"\[\w?\d{4} |\[/|\[rank\d\]:\[", line))


@pytest.mark.parametrize("parallel", ["ddp", pytest.param("fsdp", marks=slow)])
def test_sigterm_to_one_rank_stops_all_after_the_same_step(
    finished: Callable[..., Run], ranks: RankMachine, made: Path, tmp_path: Path, parallel: str
) -> None:
    output = tmp_path / "a run"
    ended = ranks.run(arguments(made, output, parallel, **{"training.save_every": 0}), 2, of={1: at_step(3, TERMINATE)})
    assert [end.code for end in ended] == [0, 0], ended
    assert ended[1].out == ""
    (stopped,) = re.findall(r"^Stopped by SIGTERM after step (\d+); saved in (.*)$", ended[0].out, re.MULTILINE)
    assert stopped == ("3", str(output / "checkpoints"))
    assert [path.name for path in list_checkpoints(output / "checkpoints")] == ["step-00000003"]
    (command,) = re.findall(r"^Go on with: (.*)$", ended[0].out, re.MULTILINE)
    words = shlex.split(command)
    assert words[0] == "torchrun"
    ended = ranks.run(words[words.index("electra-fast") + 1 :], 2)
    assert [end.code for end in ended] == [0, 0], ended
    check_same_end(output, finished(2, parallel).output)


SPOIL = """
import torch
from electra_fast.pretraining import train
build = train.build_model
def built(*args, **kwargs):
    global model
    model = build(*args, **kwargs)
    return model
train.build_model = built
"""


@pytest.mark.parametrize("parallel", ["ddp", pytest.param("fsdp", marks=slow)])
def test_a_loss_that_is_no_number_on_one_rank_stops_all(
    ranks: RankMachine, made: Path, tmp_path: Path, parallel: str
) -> None:
    """From step 4 on the losses of rank 1 are infinite; checkpoints are of steps 2 and, at most, 4."""
    output = tmp_path / "run"
    ended = ranks.run(
        arguments(made, output, parallel), 2, of={1: at_step(4, "model.discriminator_weight = float('inf')") + SPOIL}
    )
    assert [end.code for end in ended] == [2, 2], ended
    check_one_error(ended, "step 4 ", "not finite", "--resume")
    assert [path.name for path in list_checkpoints(output / "checkpoints")] == ["step-00000002"]


def test_mistakes_are_told_once_and_no_rank_hangs(ranks: RankMachine, made: Path, tmp_path: Path) -> None:
    output = tmp_path / "run"
    cases = [
        ({"data.batch_size": 1}, "batch_size=1 is less than one sequence for each of 2 ranks"),
        ({"optimizer.lr": -1}, "optimizer.lr must be positive"),
        ({"data.train": tmp_path / "nowhere"}, "nowhere"),
        ({"training.parallel": "both"}, "training.parallel must be auto, ddp or fsdp"),
    ]
    for settings, message in cases if ALL else cases[:2]:
        ended = ranks.run(arguments(made, output, **settings), 2)
        assert [end.code for end in ended] == [2, 2], ended
        check_one_error(ended, message)
    assert not output.exists()
    output.mkdir()
    (output / "config.yaml").write_text("training: {}")
    ended = ranks.run(arguments(made, output), 2)
    assert [end.code for end in ended] == [2, 2], ended
    check_one_error(ended, "holds a run already")


ENGLISH = {"model.hidden_size": 64, "model.embedding_size": 32, "model.num_hidden_layers": 2, "data.max_length": 64}
ENGLISH |= {"data.batch_size": 18, "training.steps": 50, "training.eval_every": 25, "training.save_every": 25}


@pytest.fixture(scope="module")
def english(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("english")
    text = write_text(folder / "text.txt")
    train_wordpiece([text], folder / "tokenizer", vocab_size=1000)
    prepare([text], folder / "tokenizer", folder / "corpus", progress=False)
    return folder


@slow
@pytest.mark.parametrize("temperature", [1e9, 1.0])
def test_fifty_steps_on_1_2_and_4_ranks(ranks: RankMachine, english: Path, tmp_path: Path, temperature: float) -> None:
    """What is asked: masks exactly, losses to 1e-5 over the first 5 steps and to 1e-3 at step 50.

    At temperature 1 a sample whose random number lies within rounding of a step of the CDF may be another token, which
    is then another text for the discriminator. Such steps are counted.
    """
    settings = ENGLISH | {"objective.temperature": temperature}
    alone = train(ranks, english, tmp_path / "1", 1, **settings)
    for world_size in (2, 4):
        for parallel in STRATEGIES:
            run = train(ranks, english, tmp_path / f"{world_size} {parallel}", world_size, parallel, **settings)
            pairs = list(zip(run.sequences, alone.sequences, strict=True))
            assert len(pairs) == 50
            assert all(without_samples(ours) == without_samples(theirs) for ours, theirs in pairs)
            other = sum(ours != theirs for ours, theirs in pairs)
            first, last = deviation(run, alone, slice(5)), deviation(run, alone, slice(49, 50))
            print(f"{world_size} ranks, {parallel}, temperature {temperature}: {first:.1e} over 5 steps, ", end="")
            print(f"{last:.1e} at step 50, at most {deviation(run, alone):.1e}; {other} steps with another sample")
            if temperature > 1:
                check_shares(run, alone)
            assert first <= FIRST_STEPS
            assert last <= AT_50


def without_samples(step: list[dict[str, Any]]) -> list[Any]:
    """The masked positions and what stands there, of each sequence."""
    return [(of["id"], of["tokens"], [mask[:2] for mask in of["masks"]]) for of in step]


TIES = ("shared", "untied", "all", "gdes")
OBJECTIVES = ("joint", "generator", "discriminator", "mlm", "electric", "adversarial")
VARIANTS = [*((objective, tie) for objective in OBJECTIVES for tie in TIES), ("alternate", "untied")]
EQUAL_TOWERS = {"model.generator.hidden_size": 16, "model.generator.num_attention_heads": 2}
EQUAL_TOWERS |= {"model.generator.intermediate_size": 32}


@slow
@pytest.mark.parametrize(("objective", "tie"), VARIANTS)
def test_objectives_and_ties_on_two_ranks(
    ranks: RankMachine, made: Path, tmp_path: Path, objective: str, tie: str
) -> None:
    phase = f"{{objective: {objective}{', turn_steps: 2' if objective == 'alternate' else ''}}}"
    settings: dict[str, Any] = {"schedule": f"[{phase}]", "model.tie": tie, "training.steps": 4}
    settings |= EQUAL_TOWERS if tie == "all" else {}
    needs_samples = objective in ("electric", "adversarial")
    settings |= {"objective.temperature": 1.0} if needs_samples else {}
    for seed in range(3 if needs_samples else 1):  # a thousandth of the runs has a sample that rounding moves
        settings["training.seed"] = seed
        alone = train(ranks, made, tmp_path / f"1 {seed}", 1, **settings)
        runs = [train(ranks, made, tmp_path / f"{parallel} {seed}", 2, parallel, **settings) for parallel in STRATEGIES]
        if all(run.sequences == alone.sequences for run in runs):
            break
    for parallel, run in zip(STRATEGIES, runs, strict=True):
        assert run.sequences == alone.sequences
        norm = deviation(run, alone, names=["gradient_norm"])
        print(f"{objective}, {tie}, {parallel}: {deviation(run, alone):.1e}, gradient's norm {norm:.1e}")
        assert deviation(run, alone) <= FIRST_STEPS
        assert norm <= 1e-4  # summed over parts, of which some cancel


@slow
@pytest.mark.parametrize("precision", ["bfloat16", "float16"])
def test_16_bits_on_two_ranks(ranks: RankMachine, made: Path, tmp_path: Path, precision: str) -> None:
    """Gradients of parts of a batch are rounded to 8 or 11 bits before they are added up.

    In float16 a whole batch's gradient overflows before its halves do, so one process leaves out more updates; but two
    ranks leave out the same, whatever the strategy.
    """
    settings = {"training.precision": precision, "training.steps": 10}
    alone = train(ranks, made, tmp_path / "alone", 1, **settings)
    ddp, fsdp = (train(ranks, made, tmp_path / parallel, 2, parallel, **settings) for parallel in STRATEGIES)
    for run in (ddp, fsdp):
        check_shares(run, alone)
        assert run.rows[0]["loss"] == pytest.approx(alone.rows[0]["loss"], rel=1e-3)  # of one forward pass
    assert [row.get("loss_scale") for row in fsdp.rows] == [row.get("loss_scale") for row in ddp.rows]
    pairs = [(fsdp, ddp), *(((ddp, alone), (fsdp, alone)) if precision == "bfloat16" else ())]
    for run, other in pairs:
        found = max(abs(ours["loss"] / theirs["loss"] - 1) for ours, theirs in zip(run.rows, other.rows, strict=True))
        print(f"{precision}: {found:.1e}")
        assert found <= 1e-2


COUNT_MOMENTS = """
import pathlib, torch
real = torch.optim.AdamW.step
def step(self, *args, **kwargs):
    held = sum(state["exp_avg"].numel() for state in self.state.values())
    pathlib.Path(PATH).write_text(str(held))
    return real(self, *args, **kwargs)
torch.optim.AdamW.step = step
"""


@slow
def test_fsdp_shares_the_moments_out(ranks: RankMachine, made: Path, tmp_path: Path) -> None:
    held: dict[str, list[int]] = {}
    for parallel in STRATEGIES:
        paths = [tmp_path / f"{parallel} {rank}" for rank in range(4)]
        of = {rank: f"PATH = {str(path)!r}\n" + COUNT_MOMENTS for rank, path in enumerate(paths)}
        given = arguments(made, tmp_path / parallel, parallel, **{"model.hidden_size": 64, "training.steps": 1})
        assert [end.code for end in ranks.run(given, 4, of=of)] == [0] * 4
        held[parallel] = [int(path.read_text()) for path in paths]
    print(f"moments of each rank: {held}")
    (whole,) = set(held["ddp"])
    assert sum(held["fsdp"]) >= whole
    assert max(held["fsdp"]) <= 0.4 * whole  # a quarter, rounded up row by row, and LayerNorm


@slow
@pytest.mark.parametrize("parallel", STRATEGIES)
def test_where_a_rank_hangs_the_other_ends_after_the_time_out(
    finished: Callable[..., Run], ranks: RankMachine, made: Path, tmp_path: Path, parallel: str
) -> None:
    output = tmp_path / "run"
    given = arguments(made, output, parallel, **{"training.timeout_seconds": 30})
    started = ranks.start(given, 2, of={1: at_step(4, "os.kill(os.getpid(), signal.SIGSTOP)")})
    try:
        left = ranks.machine.wait(started.pids[0], " of rank 0", 150)
    finally:
        started.kill(1)
    assert left.code == 2, left
    check_one_error([left], "rank 0", "within 30 s", "--resume")
    ended = ranks.run(arguments(made, output, parallel, "--resume"), 2)
    assert [end.code for end in ended] == [0, 0], ended
    check_same_end(output, finished(2, parallel).output)


@slow
@pytest.mark.parametrize("parallel", STRATEGIES)
def test_kill_9_of_any_rank_at_random_moments(
    ranks: RankMachine, made: Path, tmp_path: Path, rng_seed: int, parallel: str
) -> None:
    """Whoever is killed, before the ranks know each other or while a checkpoint is written: the run goes on."""
    g = np.random.default_rng(rng_seed)
    settings = {"training.steps": 40, "training.timeout_seconds": 30}
    started_at = time.monotonic()
    whole = train(ranks, made, tmp_path / "whole", 2, parallel, **settings)
    length = time.monotonic() - started_at
    output, kills = tmp_path / "run", 0
    again = arguments(made, output, parallel, "--resume", **settings)
    for _ in range(10):
        started = ranks.start(again, 2)
        time.sleep(g.uniform(0, length))
        lost = int(g.integers(2))
        os.kill(started.pids[lost], signal.SIGKILL)  # no other process: nobody has waited for this one yet
        ended = started.wait()
        assert ended[lost].code in (0, -signal.SIGKILL), ended
        assert ended[1 - lost].code in (0, 2), ended
        assert "Traceback" not in ended[1 - lost].err, ended
        kills += ended[lost].code != 0
        if [end.code for end in ended] == [0, 0]:  # they were quicker
            check_same_end(output, whole.output)
            shutil.rmtree(output)
    ended = ranks.run(again, 2)
    assert [end.code for end in ended] == [0, 0], ended
    check_same_end(output, whole.output)
    print(f"{parallel}: {kills} kills")
