"""Runs of several ranks follow the run of one process, load each other's checkpoints, and end together.

`make test-all` takes 1, 2 and 4 ranks over 50 steps, every objective and tie, and more ways to be interrupted.
"""

from __future__ import annotations

import os
import re
import shlex
import shutil
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from safetensors.torch import load_file

from electra_fast.pretraining.checkpoint import list_checkpoints
from electra_fast.pretraining.metrics import read_metrics
from tests.pretraining.faults import Ended, Machine
from tests.pretraining.ranks import IMPORTS, RECORD, RankMachine, read_passes, sequences
from tests.pretraining.test_faults import NO_PICTURE
from tests.small import pretrain_arguments, write_small

ALL = bool(os.environ.get("ELECTRA_FAST_TEST_ALL"))
STRATEGIES = ("ddp", "fsdp")
LOSSES = ("loss", "generator_loss", "discriminator_loss", "mlm_loss", "gradient_norm")
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


def deviation(run: Run, alone: Run, steps: slice = slice(None)) -> float:
    """The largest relative difference of a loss or of the gradient's norm over some steps."""
    pairs = list(zip(run.rows, alone.rows, strict=True))[steps]
    assert pairs
    assert all(theirs.keys() - {"mfu"} == ours.keys() - {"mfu"} for ours, theirs in pairs)
    return max(abs(ours[name] / theirs[name] - 1) for ours, theirs in pairs for name in LOSSES if name in theirs)


def check_shares(run: Run, alone: Run) -> None:
    """Every rank has a share; together they have the batch, its masks and its samples; all know its counts."""
    assert run.sequences == alone.sequences
    for step in run.passes:
        sizes = [sum(len(facts["sequences"]) for facts in passes) for passes in step]
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


@pytest.mark.parametrize("more", [{}, {"training.micro_batch_tokens": 24}], ids=["whole", "micro-batches"])
@pytest.mark.parametrize("parallel", STRATEGIES)
def test_two_ranks_follow_one_process(finished: Callable[..., Run], parallel: str, more: dict[str, Any]) -> None:
    alone, run = finished(1), finished(2, parallel, **more)
    check_shares(run, alone)
    counts = [[len(passes) for passes in step] for step in run.passes]
    if more:  # ranks of which one has more micro-batches than the other
        assert any(min(of_step) < max(of_step) for of_step in counts), counts
    else:
        assert counts == [[1, 1]] * 6
    found = deviation(run, alone)
    print(f"2 ranks, {parallel} {more}: at most {found:.1e}")
    assert found <= FIRST_STEPS
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


@pytest.mark.parametrize("parallel", STRATEGIES)
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


@pytest.mark.parametrize("lost", [0, 1])
@pytest.mark.parametrize("parallel", STRATEGIES)
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


@pytest.mark.parametrize("parallel", STRATEGIES)
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


@pytest.mark.parametrize("parallel", STRATEGIES)
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
        ({"data.train": tmp_path / "nowhere"}, "nowhere"),
        ({"optimizer.lr": -1}, "optimizer.lr must be positive"),
        ({"training.parallel": "both"}, "training.parallel must be auto, ddp or fsdp"),
    ]
    for settings, message in cases:
        ended = ranks.run(arguments(made, output, **settings), 2)
        assert [end.code for end in ended] == [2, 2], ended
        check_one_error(ended, message)
    assert not output.exists()
    output.mkdir()
    (output / "config.yaml").write_text("training: {}")
    ended = ranks.run(arguments(made, output), 2)
    assert [end.code for end in ended] == [2, 2], ended
    check_one_error(ended, "holds a run already")
