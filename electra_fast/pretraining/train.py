"""The pretraining loop, top to bottom.

Everything random in step t, and the data it sees, come from (seed, t) alone, so a run that was interrupted and resumed
computes the same bits as one that was not.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Collection
from contextlib import nullcontext
from dataclasses import asdict, dataclass, fields
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from electra_fast.data.loader import Batch
from electra_fast.data.prefetch import Prefetcher
from electra_fast.data.tokenizer import save_tokenizer
from electra_fast.models import ElectraForJointPreTraining
from electra_fast.ops.random import masking_seed, step_seed
from electra_fast.pretraining.accumulation import Share, SharedLoader, count_predicted, micro_batches, model_inputs
from electra_fast.pretraining.build import (
    build_model,
    checkpoint_activations,
    compiled,
    copy_generator_to_discriminator,
)
from electra_fast.pretraining.cards import Facts, last_evaluation, state_card, write_cards
from electra_fast.pretraining.checkpoint import (
    DamagedCheckpoint,
    check_state,
    list_checkpoints,
    save_checkpoint,
)
from electra_fast.pretraining.config import ConfigError, PretrainConfig
from electra_fast.pretraining.curves import plot_curves
from electra_fast.pretraining.distributed import Ranks, open_ranks
from electra_fast.pretraining.evaluation import HeldOut, Loader
from electra_fast.pretraining.finite import FiniteWatch, NonFiniteLoss, cause, not_finite
from electra_fast.pretraining.initialize import start_model
from electra_fast.pretraining.metrics import MetricsLog
from electra_fast.pretraining.optimizer import build_optimizer, learning_rate, state_tensors
from electra_fast.pretraining.parallel import Plain, Replicas, load_for_all
from electra_fast.pretraining.phases import Phase, Progress, resolve_phases
from electra_fast.pretraining.precision import LossScale, MasterWeights
from electra_fast.pretraining.probe import Probe
from electra_fast.pretraining.run_folder import (
    check_output,
    claim_output,
    delete_run,
    settings_of_all_ranks,
    settings_sha256,
)
from electra_fast.pretraining.runtime import deferred_signals, open_data, repeatable
from electra_fast.pretraining.sharding import ShardedWeights
from electra_fast.pretraining.sources import resolve_on_first
from electra_fast.pretraining.throughput import peak_flops, step_flops
from electra_fast.pretraining.trackers import open_trackers
from electra_fast.pretraining.window import StepTotals, Window, show


@dataclass(frozen=True)
class PretrainResult:
    """How a run ended."""

    output: Path
    step: int  # updates done
    interrupted_by: str | None  # "SIGINT" or "SIGTERM"; None when all steps are done
    metrics: dict[str, float] | None  # of the last evaluation of this call
    rank: int = 0
    world_size: int = 1


def pretrain(
    config: PretrainConfig, *, resume: bool = False, overwrite: bool = False, progress: bool = True
) -> PretrainResult:
    """Train generator and discriminator as `config` says and write the run to `config.output`.

    The folder then holds `discriminator/` and `generator/` (checkpoints of transformers, with the tokenizer),
    `electra_fast.json`, `metrics.jsonl`, `curves.png`, `config.yaml`, `checkpoints/` and model cards. Ctrl-C and
    SIGTERM finish the step, or of a step in micro-batches the micro-batch, save a checkpoint and return.

    Started by torchrun, every process calls it and has a share of each batch; rank 0 alone writes and prints. A signal
    to one rank stops all, after the same step.

    Args:
        config: the run.
        resume: go on from the newest checkpoint in `config.output`; start anew where there is none.
        overwrite: delete a run that is in `config.output` already.
        progress: show a progress bar (on a terminal) or lines.

    Raises:
        ConfigError: settings that don't fit the data, or an output folder that holds another run.
        NonFiniteLoss: a loss or gradient became NaN or infinite.
        RankLost, RankStopped: see `open_ranks`.
    """
    with open_ranks(config.training) as ranks, repeatable(ranks.device, config.training.deterministic):
        return _pretrain(config, ranks, resume=resume, overwrite=overwrite, shows=progress and ranks.is_first)


def _pretrain(config: PretrainConfig, ranks: Ranks, *, resume: bool, overwrite: bool, shows: bool) -> PretrainResult:
    output, settings, device = Path(config.output), config.training, ranks.device
    config = resolve_on_first(config, ranks, resume=resume, overwrite=overwrite)
    loader, valid_loader = open_data(config, verify=ranks.local_rank == 0)  # once a machine
    loader.check_world(ranks.world_size)
    tokenizer = loader.corpora[0].load_tokenizer()  # a damaged one is better noticed now than after the training
    ranks.check_same({"corpus": loader.content_hash, "device": device.type} | settings_of_all_ranks(config))
    goes_on = ranks.from_first(lambda: check_output(output, config, resume=resume, overwrite=overwrite))
    phases = resolve_phases(config, loader.steps_per_epoch)
    probe = Probe.open(settings.probe, tokenizer, config.data.longest) if settings.probe.train else None

    torch.manual_seed(settings.seed)
    model = build_model(config, loader.corpora[0].meta)
    started: list[str] = []
    if ranks.from_first(lambda: not (goes_on and list_checkpoints(output / "checkpoints"))):
        config, started = start_model(model, config, loader.corpora, tokenizer, ranks)
    model = model.to(device).train()
    if settings.activation_checkpointing:
        checkpoint_activations(model)
    precision = getattr(torch, settings.precision)
    if ranks.is_grouped and settings.parallel == "fsdp":
        masters = ShardedWeights(model, precision, ranks)
    else:
        masters = MasterWeights(model, precision)
    optimizer = build_optimizer(masters, config.optimizer)
    scale = LossScale(device, is_dynamic=settings.precision == "float16")
    check = partial(_check_checkpoint, config, phases, loader.content_hash)
    checkpoint = load_for_all(output / "checkpoints", masters, optimizer, check, ranks) if goes_on else None
    now = Progress()
    if checkpoint is not None:
        now = _progress(checkpoint[1])
        scale.load(checkpoint[1])
        masters.give_weights()

    # Only now, when nothing of the user's can be wrong any more, is anything deleted or written.
    resume_step = now.step if goes_on else None
    log: MetricsLog | None = None
    ranks.wait()
    if ranks.is_first:
        if overwrite:
            delete_run(output)
        claim_output(output, config)
        trackers = open_trackers(config, output, resume_step)
        log = MetricsLog(output / "metrics.jsonl", resume_step=resume_step, trackers=trackers)
    held_out = HeldOut(config, loader, valid_loader, device) if valid_loader else None
    run = _Gradients(model, masters, config, ranks)
    watch, window = FiniteWatch(device), Window()
    peak = peak_flops(device, settings)
    metrics: dict[str, float] | None = None
    saved_step = -1

    def stop_if_not_finite(*, before: int) -> None:
        failed = watch.failed_step(before=before)
        if failed is not None:
            raise NonFiniteLoss(run.explain(failed, scale.scale))

    def save() -> None:
        nonlocal saved_step
        if saved_step == now.step:
            return
        stop_if_not_finite(before=now.step)
        bad = not_finite(state_tensors(masters, optimizer))
        if bad:
            raise NonFiniteLoss(f"after step {now.step} {bad[0]} is no number and is not saved: lower optimizer.lr")
        facts = {"corpus": loader.content_hash, "settings": settings_sha256(config)}
        state = {**facts, **asdict(now), **scale.state()}
        whole = masters.whole_state(optimizer)
        if ranks.is_first:
            keep, card = settings.keep_checkpoints, state_card(config, now.step)
            save_checkpoint(output / "checkpoints", now.step, *whole, state, keep=keep, card=card)
        saved_step = now.step

    def record(kind: str, values: dict[str, Any]) -> None:
        if log is not None:
            log.write(kind, now.step, values)

    def place() -> dict[str, Any]:
        """What names the phase in a row of the metrics."""
        return {"phase": now.phase + 1, "objective": phases[now.phase].objective}

    def report(lr: float) -> None:
        row = window.read(ranks, peak)
        steps_left = now.steps_left(phases)
        row |= {"lr": lr, "eta_seconds": round(steps_left * row.pop("seconds_per_step"), 1), **scale.state(), **place()}
        record("train", row)
        bar.total = now.step + steps_left  # a phase may have ended early
        if shows:
            show(bar, {"step": now.step} | row)

    if shows:
        if resume:
            print(f"Resuming from {checkpoint[0]}" if checkpoint else f"No checkpoint in {output}: starting at step 0")
        print(*started, _headline(model, device, phases, loader, now), sep="\n", flush=True)
    bar = tqdm(
        total=now.step + now.steps_left(phases),
        initial=now.step,
        unit="step",
        disable=None if shows else True,
        dynamic_ncols=True,
    )
    place_of_rank = {"rank": ranks.rank, "world_size": ranks.world_size}
    shared = SharedLoader(loader, run.count_predicted, config.objectives)
    batches = Prefetcher(shared, start=now.step, pin_memory=device.type == "cuda", **place_of_rank)
    stopped = None  # by a signal
    signals = deferred_signals(until_error_is_told=ranks.is_grouped)
    with signals as received, bar, log or nullcontext(), batches:
        if started and held_out and not goes_on:  # what the weights are worth on this text
            with masters.whole_model() as judged:
                record("eval", ranks.from_first(partial(held_out.evaluate, judged, phases[0].objective)) | place())
        while not (stopped := ranks.agree(received)):
            phase = phases[now.phase]
            if now.is_over(phase):
                if phase is phases[-1]:
                    break
                now.enter_next_phase()
                continue
            if now.step_in_phase == 0 and phase.discriminator_from_generator:
                copy_generator_to_discriminator(model, masters, optimizer)

            # The update. `optimizer` divides the gradients by grad_scale, and does nothing where found_inf is 1.
            objective = phase.objective_at(now.step_in_phase)
            lr = learning_rate(now.step_in_phase, phase.steps, phase.optimizer)
            for group in optimizer.param_groups:
                group["lr"] = lr
            _, share = next(batches)
            totals = run.compute(now.step, share, objective, scale.scale, give_up=received)
            if totals is None:  # a signal between two micro-batches: the step is done again when the run goes on
                stopped = received[0]
                break
            norm = masters.norm() / scale.scale
            skips, overflowed = watch.judge(now.step, ranks.sum(totals.losses.values()), norm, scale.scale)
            optimizer.found_inf = skips.float()
            optimizer.grad_scale = scale.scale * ((norm + 1e-6) / config.optimizer.clip_norm).clamp(min=1)
            optimizer.step()
            masters.give_weights()
            scale.update(overflowed)
            now.step += 1
            now.step_in_phase += 1
            bar.update()

            ends = now.step_in_phase >= phase.steps
            logs = now.step % settings.log_every == 0 or ends
            evaluates = held_out and ((settings.eval_every and now.step % settings.eval_every == 0) or ends)
            saves = (settings.save_every and now.step % settings.save_every == 0) or ends
            probes = probe and (now.step % settings.probe.every == 0 or ends)
            # What follows waits for the device anyway; any other step looks at the answer of the one before.
            waits = bool(logs or evaluates or probes or saves)
            stop_if_not_finite(before=now.step if waits else now.step - 1)
            flops = step_flops(model, share.batch, objective) if peak else None
            window.add(totals, norm, overflowed, tokens=share.num_tokens, flops=flops)

            if logs:
                report(lr)
            pause = time.perf_counter()
            with masters.whole_model() if evaluates or probes else nullcontext() as judged:
                if evaluates:
                    metrics = ranks.from_first(partial(held_out.evaluate, judged, phase.objective))
                    record("eval", metrics | place())
                    now.observe(metrics[phase.watched_loss])
                if probes and ranks.is_first:
                    record("probe", probe.measure(judged.discriminator) | place())
            window.skip(time.perf_counter() - pause)
            if now.is_over(phase) and not logs:  # stopped by its patience: the next phase's sums are its own
                report(lr)
            if saves or now.is_over(phase):
                save()
        if stopped:
            save()

    if now.steps_left(phases):
        return PretrainResult(output, now.step, stopped, metrics, ranks.rank, ranks.world_size)
    with deferred_signals():  # what is left takes seconds: who asks to stop gets a finished run
        if metrics is None and held_out:  # resumed after the last step
            with masters.whole_model() as judged:
                metrics = ranks.from_first(partial(held_out.evaluate, judged, phases[-1].objective))
        trained = masters.export()
        if ranks.is_first:
            for folder in trained.save_pretrained(output):
                save_tokenizer(tokenizer, folder)
            evaluation = last_evaluation(output / "metrics.jsonl", now.step)
            corpora = [corpus.meta for corpus in loader.corpora]
            write_cards(output, Facts(config, trained, corpora, now.step, evaluation))
            plot_curves(output / "metrics.jsonl", output / "curves.png")
    return PretrainResult(output, now.step, None, metrics, ranks.rank, ranks.world_size)


class _Gradients:
    """The gradients of an update, in micro-batches where the run asks for them; once more where they went wrong."""

    def __init__(
        self,
        model: ElectraForJointPreTraining,
        masters: MasterWeights | ShardedWeights,
        config: PretrainConfig,
        ranks: Ranks,
    ) -> None:
        self.model, self.masters, self.ranks = model, masters, ranks
        self.seed, self.max_tokens = config.training.seed, config.training.micro_batch_tokens
        forward = compiled(model, config) if config.training.compile else model
        uses_all = config.objectives == {"joint"}
        self.shards = isinstance(masters, ShardedWeights)
        copies = ranks.is_grouped and not self.shards
        self.model_of_ranks = (
            Replicas(model, forward, masters, ranks, uses_all=uses_all) if copies else Plain(forward, masters)
        )
        self._recent: deque[tuple[int, Share, str]] = deque(maxlen=2)

    def compute(
        self, step: int, share: Share, objective: str, scale: Tensor, *, give_up: Collection[Any] = ()
    ) -> StepTotals | None:
        """Put the gradients of `scale` times the loss, of all ranks, into the masters; give this rank's totals.

        Losses are divided by the counts of the whole batch, and random numbers follow the names of sequences, so
        the sum does not depend on how the batch is cut, but for rounding.

        None if `give_up` fills between micro-batches; not of several ranks, which have to do a step all together.
        """
        self._recent.append((step, share, objective))
        device = self.ranks.device
        seeds = {"seed": step_seed(self.seed, step), "mask_seed": masking_seed(self.seed, share.batch.epoch)}
        pieces = micro_batches(share.batch, self.max_tokens)
        # With FSDP all ranks compute equally often: those with fewer pieces do their last again, for nothing.
        times = self.ranks.most(len(pieces)) if self.shards and self.max_tokens else len(pieces)
        counts: dict[str, Any] = {}
        if len(pieces) > 1 or self.ranks.is_grouped:
            predicted = share.predicted or {objective: self.count_predicted(share.batch, objective)}
            counts = {"masked_count": predicted[objective].to(device), "token_count": float(share.num_tokens)}
        # A vendor's attention draws its dropout from it: on each rank another.
        torch.manual_seed(seeds["seed"] ^ self.ranks.rank)
        self.masters.clear_gradients()
        totals = StepTotals()
        for index in range(times):
            if index and give_up and not self.ranks.is_grouped:
                return None
            counts_for_something = index < len(pieces)
            with self.model_of_ranks.exchanging(is_last=index == times - 1):
                inputs = model_inputs(pieces[min(index, len(pieces) - 1)].to(device), **seeds)
                out = self.model_of_ranks.forward(**inputs, **counts, objective=objective)
                (out.loss * (scale if counts_for_something else 0.0)).backward()
            self.model_of_ranks.take_gradients()
            if counts_for_something:
                totals.add(out)
        self.masters.complete_gradients()
        return totals

    def count_predicted(self, batch: Batch, objective: str) -> Tensor:
        """How many tokens of a whole batch the generator's loss is over."""
        return count_predicted(self.model, batch, objective, masking_seed(self.seed, batch.epoch))

    def explain(self, step: int, scale: Tensor) -> str:
        """What went wrong in `step`, which is computed once more: no update has followed it."""
        share, objective = next((share, objective) for at, share, objective in self._recent if at == step)
        totals = self.compute(step, share, objective, scale)
        assert totals is not None
        gradients = ((name, master.grad) for name, master in self.masters.named_parameters())
        weights = self.masters if self.shards else self.model
        losses = zip(totals.losses, self.ranks.sum(totals.losses.values()), strict=True)
        found = cause(weights.named_parameters(), losses, gradients)
        return (
            f"step {step + 1} ({objective}) is not finite: {found}. Its update was not made, and the checkpoints are "
            "from before. Lower optimizer.lr or raise optimizer.warmup_steps, and go on with --resume from the newest "
            "checkpoint; where it happens at once, look at the weights and the data"
        )


def _headline(
    model: ElectraForJointPreTraining, device: torch.device, phases: list[Phase], loader: Loader, now: Progress
) -> str:
    sizes = " + ".join(
        f"{sum(p.numel() for p in tower.parameters()):,}" for tower in (model.generator, model.discriminator)
    )
    left = now.steps_left(phases)
    text = (
        f"Pretraining on {device}: {sizes} parameters (generator + discriminator, embeddings in both), "
        f"{loader.num_sequences:,} sequences, {left / loader.steps_per_epoch:.2f} epochs to go"
    )
    if len(phases) > 1:
        names = ", ".join(f"{phase.objective} (at most {phase.steps:,} steps)" for phase in phases)
        text += f"\nPhases: {names}; this is phase {now.phase + 1}"
    return text


def _progress(state: dict[str, Any]) -> Progress:
    """Where the run of a checkpoint is."""
    return Progress(**{field.name: state[field.name] for field in fields(Progress)})


def _check_checkpoint(
    config: PretrainConfig, phases: list[Phase], corpus_hash: str, path: Path, state: dict[str, Any]
) -> None:
    """Raises ConfigError where the run can't go on from a checkpoint, DamagedCheckpoint where nobody could."""
    check_state(path, state, corpus=str, step=int, phase=int, step_in_phase=int, evaluations_since_best=int)
    check_state(path, state, best_loss=(int, float, type(None)))
    if config.training.precision == "float16":
        check_state(path, state, loss_scale=(int, float), loss_scale_steps=(int, float))
    if state["phase"] >= len(phases):
        raise DamagedCheckpoint(f"{path / 'state.json'} is damaged: it is of phase {state['phase'] + 1}")
    if state["corpus"] != corpus_hash:
        raise ConfigError(
            f"{', '.join(config.data.train_corpora)}: not what {path} was trained on; give that, or another output"
        )
    now = _progress(state)
    if now.step_in_phase > phases[now.phase].steps:
        limit = f"schedule[{now.phase}]" if config.schedule else "training.steps"
        raise ConfigError(f"{path} is past {limit} ({phases[now.phase].steps}): raise it, or give another output")
