"""The schedule of a run: its phases, and where in them it is."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

from electra_fast.pretraining.config import OptimizerConfig, PretrainConfig

# The held-out loss that a phase of each objective waits on; all others: the weighted sum that training minimises.
_WATCHED = {"generator": "generator_loss", "discriminator": "discriminator_loss"}


@dataclass(frozen=True)
class Phase:
    """A part of a run with one objective."""

    objective: str
    steps: int  # at most
    patience: int | None  # evaluations in a row without a lower loss
    optimizer: OptimizerConfig  # the run's, with this phase's rate and warm-up
    turn_steps: float  # of alternate; an epoch need not be a whole number of steps
    discriminator_from_generator: bool

    def objective_at(self, step: int) -> str:
        """The objective of update number `step` (from 0) of the phase: whose turn it is, generator first."""
        if self.objective != "alternate":
            return self.objective
        return "discriminator" if int(step / self.turn_steps) % 2 else "generator"

    @property
    def watched_loss(self) -> str:
        """The metric of an evaluation that decides whether the phase still improves."""
        return _WATCHED.get(self.objective, "loss")


@dataclass
class Progress:
    """Where a run is; together with weights, moments and loss scale all it needs to go on."""

    step: int = 0  # updates of the run
    phase: int = 0
    step_in_phase: int = 0
    best_loss: float | None = None  # of the phase's evaluations
    evaluations_since_best: int = 0

    def is_over(self, phase: Phase) -> bool:
        is_stuck = phase.patience is not None and self.evaluations_since_best >= phase.patience
        return self.step_in_phase >= phase.steps or is_stuck

    def observe(self, loss: float) -> None:
        """Take note of an evaluation."""
        if math.isfinite(loss) and (self.best_loss is None or loss < self.best_loss):
            self.best_loss, self.evaluations_since_best = loss, 0
        else:
            self.evaluations_since_best += 1

    def enter_next_phase(self) -> None:
        self.phase += 1
        self.step_in_phase, self.best_loss, self.evaluations_since_best = 0, None, 0

    def steps_left(self, phases: list[Phase]) -> int:
        """The most updates that may follow."""
        if self.phase >= len(phases):
            return 0
        now = phases[self.phase]
        here = 0 if self.is_over(now) else now.steps - self.step_in_phase
        return here + sum(phase.steps for phase in phases[self.phase + 1 :])


def resolve_phases(config: PretrainConfig, steps_per_epoch: float) -> list[Phase]:
    """The phases of a run, with lengths in steps and what they leave to the run's settings filled in."""
    phases = []
    for phase in config.phases:
        limits = [] if phase.steps is None else [phase.steps]
        if phase.epochs is not None:
            limits.append(max(1, math.ceil(phase.epochs * steps_per_epoch)))
        given = {name: getattr(phase, name) for name in ("lr", "warmup_steps") if getattr(phase, name) is not None}
        phases.append(
            Phase(
                objective=phase.objective,
                steps=min(limits or [config.training.steps]),
                patience=phase.patience,
                optimizer=replace(config.optimizer, **given),
                turn_steps=phase.turn_steps or max(1.0, steps_per_epoch),
                discriminator_from_generator=phase.discriminator_from_generator,
            )
        )
    return phases
