"""The pretraining loop, top to bottom.

Everything random in step t, and the data it sees, come from (seed, t) alone, so a run that was interrupted and resumed
computes the same bits as one that was not.
"""

from __future__ import annotations

import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from electra_fast.data.corpus import Corpus, CorpusMeta
from electra_fast.data.loader import BatchLoader
from electra_fast.data.tokenizer import save_tokenizer
from electra_fast.models import ElectraConfig, ElectraForJointPreTraining, initialize_weights
from electra_fast.ops.random import masking_seed, step_seed
from electra_fast.ops.rtd_bce import auc
from electra_fast.pretraining.checkpoint import load_newest, save_checkpoint
from electra_fast.pretraining.config import ConfigError, PretrainConfig
from electra_fast.pretraining.curves import plot_curves
from electra_fast.pretraining.evaluation import evaluate, unigram_log_probabilities
from electra_fast.pretraining.metrics import MetricsLog
from electra_fast.pretraining.optimizer import build_optimizer, learning_rate
from electra_fast.pretraining.run_folder import check_output, claim_output, delete_run
from electra_fast.pretraining.trackers import open_trackers


class NonFiniteLoss(RuntimeError):
    """The loss is no longer a number; the last checkpoint is intact."""


@dataclass(frozen=True)
class PretrainResult:
    """How a run ended."""

    output: Path
    step: int  # updates done
    interrupted_by: str | None  # "SIGINT" or "SIGTERM"; None when all steps are done
    metrics: dict[str, float] | None  # of the last evaluation of this call


def build_model(config: PretrainConfig, corpus: CorpusMeta) -> ElectraForJointPreTraining:
    """The joint model of a run, freshly initialised from torch's default generator; vocabulary and special tokens are
    those of the corpus."""
    model, objective = config.model, config.objective
    shared = {
        "vocab_size": corpus.vocab_size,
        "embedding_size": model.embedding_size,
        "max_position_embeddings": model.max_position_embeddings,
        "hidden_dropout_prob": model.hidden_dropout_prob,
        "attention_probs_dropout_prob": model.attention_probs_dropout_prob,
        "initializer_range": model.initializer_range,
        "pad_token_id": corpus.pad_token_id,
    }
    sizes = ("hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size")
    joint = ElectraForJointPreTraining(
        ElectraConfig(**shared, **{name: getattr(model.generator, name) for name in sizes}),
        ElectraConfig(**shared, **{name: getattr(model, name) for name in sizes}),
        mask_token_id=corpus.mask_token_id,
        never_mask_ids=(corpus.cls_token_id, corpus.sep_token_id, corpus.mask_token_id),
        mask_prob=objective.mask_prob,
        replace_prob=objective.replace_prob,
        max_per_sequence=config.max_per_sequence,
        temperature=objective.temperature,
        disallow_correct=objective.disallow_correct,
        generator_weight=objective.generator_weight,
        discriminator_weight=objective.discriminator_weight,
        tie=model.tie,
    )
    initialize_weights(joint, std=model.initializer_range, glorot=model.glorot)
    return joint


def pretrain(
    config: PretrainConfig, *, resume: bool = False, overwrite: bool = False, progress: bool = True
) -> PretrainResult:
    """Train generator and discriminator as `config` says and write the run to `config.output`.

    The folder then holds `discriminator/` and `generator/` (checkpoints of transformers, with the tokenizer),
    `electra_fast.json`, `metrics.jsonl`, `curves.png`, `config.yaml` and `checkpoints/`. Ctrl-C and SIGTERM finish the
    step, save a checkpoint and return.

    Args:
        config: the run.
        resume: go on from the newest checkpoint in `config.output`; start anew where there is none.
        overwrite: delete a run that is in `config.output` already.
        progress: show a progress bar (on a terminal) or lines.

    Raises:
        ConfigError: settings that don't fit the data, or an output folder that holds another run.
        NonFiniteLoss: the loss became NaN or infinite.
    """
    output = Path(config.output)
    train_corpus, valid_corpus = _open_corpora(config)
    tokenizer = train_corpus.load_tokenizer()  # a damaged one is better noticed now than after the training
    device = _device(config.training.device)
    goes_on = check_output(output, config, resume=resume, overwrite=overwrite)

    torch.manual_seed(config.training.seed)
    model = build_model(config, train_corpus.meta)
    model.to(device).train()
    optimizer = build_optimizer(model, config.optimizer)
    parameters = list(model.parameters())
    corpus_hash = train_corpus.meta.content_hash()
    check = partial(_check_checkpoint, config, corpus_hash)
    checkpoint = load_newest(output / "checkpoints", model, optimizer, check) if goes_on else None
    start = 0 if checkpoint is None else checkpoint[1]["step"]

    # Only now, when nothing of the user's can be wrong any more, is anything deleted or written.
    if overwrite:
        delete_run(output)
    claim_output(output, config)
    loader = BatchLoader(
        train_corpus, batch_size=config.data.batch_size, max_length=config.data.max_length, seed=config.training.seed
    )
    held_out = _HeldOut(config, train_corpus, valid_corpus, device) if valid_corpus else None
    resume_step = start if goes_on else None
    trackers = open_trackers(config, output, resume_step)
    log = MetricsLog(output / "metrics.jsonl", resume_step=resume_step, trackers=trackers)
    steps, settings = config.training.steps, config.training
    window = _Window()
    metrics: dict[str, float] | None = None

    if progress:
        if resume:
            print(f"Resuming from {checkpoint[0]}" if checkpoint else f"No checkpoint in {output}: starting at step 0")
        sizes = " + ".join(
            f"{sum(p.numel() for p in tower.parameters()):,}" for tower in (model.generator, model.discriminator)
        )
        print(
            f"Pretraining on {device}: {sizes} parameters (generator + discriminator, embeddings in both), "
            f"{loader.num_sequences:,} sequences, {(steps - start) / loader.steps_per_epoch:.2f} epochs to go",
            flush=True,
        )
    bar = tqdm(total=steps, initial=start, unit="step", disable=None if progress else True, dynamic_ncols=True)
    with _deferred_signals() as received, bar, log:
        step, stop = start, False
        while step < steps and not stop:
            lr = learning_rate(step, steps, config.optimizer)
            for group in optimizer.param_groups:
                group["lr"] = lr
            batch = loader.batch(step).to(device)
            seed = step_seed(settings.seed, step)
            torch.manual_seed(seed)  # dropout
            out = model(
                batch.input_ids,
                cu_seqlens=batch.cu_seqlens,
                max_seqlen=batch.max_seqlen,
                sequence_ids=batch.sequence_ids,
                seed=seed,
                mask_seed=masking_seed(settings.seed, batch.epoch),
            )
            optimizer.zero_grad()
            out.loss.backward()
            norm = torch.nn.utils.clip_grad_norm_(parameters, config.optimizer.clip_norm)
            optimizer.step()
            step += 1
            window.add(out, norm, tokens=batch.input_ids.shape[0])
            bar.update()

            stop = bool(received)
            logs = step % settings.log_every == 0 or step == steps
            saves = (settings.save_every and step % settings.save_every == 0) or step == steps or stop
            if (logs or saves) and not window.is_finite():
                raise NonFiniteLoss(
                    f"loss or gradient is not finite at step {step} or up to {window.steps - 1} before; "
                    "lower optimizer.lr or raise optimizer.warmup_steps. The checkpoints are from before."
                )
            if logs:
                row = window.read()
                eta = (steps - step) * row["seconds"] / row["steps"]
                log.write("train", step, _reported(row) | {"lr": lr, "eta_seconds": round(eta, 1)})
                shown = {"gen": f"{row['generator_loss']:.3f}", "disc": f"{row['discriminator_loss']:.4f}"}
                shown |= {"auc": f"{row['auc']:.3f}", "tok/s": f"{row['tokens_per_second']:,.0f}"}
                bar.set_postfix(shown)
                if progress and bar.disable:
                    line = "  ".join(f"{name} {value}" for name, value in shown.items())
                    print(f"step {step:,}/{steps:,}  {line}  ETA {tqdm.format_interval(eta)}", flush=True)
            due = settings.eval_every and step % settings.eval_every == 0
            if held_out and (due or step == steps):
                pause = time.perf_counter()
                metrics = held_out.evaluate(model)
                log.write("eval", step, metrics)
                window.skip(time.perf_counter() - pause)
            if saves:
                _save(output, step, model, optimizer, config, corpus_hash)

    if step < steps:
        return PretrainResult(output, step, received[0], metrics)
    if metrics is None and held_out:  # resumed after the last step
        metrics = held_out.evaluate(model)
    model.save_pretrained(output)
    for tower in ("discriminator", "generator"):
        save_tokenizer(tokenizer, output / tower)
    plot_curves(output / "metrics.jsonl", output / "curves.png")
    return PretrainResult(output, step, None, metrics)


class _HeldOut:
    """The held-out corpus: its first whole batches, or what there is of one."""

    def __init__(self, config: PretrainConfig, train: Corpus, valid: Corpus, device: torch.device) -> None:
        data = config.data
        self.loader = BatchLoader(valid, batch_size=data.batch_size, max_length=data.max_length, shuffle=False)
        self.batches = max(1, min(config.training.eval_batches, int(self.loader.steps_per_epoch)))
        self.unigram = unigram_log_probabilities(train, train.meta.vocab_size)
        self.device = device

    def evaluate(self, model: ElectraForJointPreTraining) -> dict[str, float]:
        return evaluate(model, self.loader, self.unigram, batches=self.batches, device=self.device)


class _Window:
    """Sums since the last report, on the device: reading them is the loop's only wait."""

    def __init__(self) -> None:
        self._reset()

    def _reset(self) -> None:
        self.steps = self.tokens = 0
        self.sums: list[torch.Tensor] | None = None
        self.started = time.perf_counter()

    def add(self, out: Any, norm: torch.Tensor, *, tokens: int) -> None:
        weights = out.masked.weights
        hits = (weights * (out.sampled_ids == out.masked.labels)).sum()
        values = [out.generator_loss, out.discriminator_loss, norm, hits, weights.sum(), *out.rtd]
        values = [value.detach().double() for value in values]
        self.sums = values if self.sums is None else [a + b for a, b in zip(self.sums, values, strict=True)]
        self.steps += 1
        self.tokens += tokens

    def skip(self, seconds: float) -> None:
        """Leave time that was not training out of the speed."""
        self.started += seconds

    def is_finite(self) -> bool:
        """Whether losses and gradient norms since the last report are all numbers."""
        assert self.sums is not None
        return bool(torch.isfinite(torch.stack(self.sums[:3])).all())

    def read(self) -> dict[str, Any]:
        assert self.sums is not None
        generator, discriminator, norm, hits, masked, _, count, tp, fp, tn, fn, histogram = (t.cpu() for t in self.sums)
        seconds = time.perf_counter() - self.started
        row = {
            "steps": self.steps,
            "seconds": seconds,
            "generator_loss": float(generator) / self.steps,
            "discriminator_loss": float(discriminator) / self.steps,
            "gradient_norm": float(norm) / self.steps,
            "sampled_accuracy": float(hits / masked.clamp(min=1)),
            "accuracy": float((tp + tn) / count.clamp(min=1)),
            "precision": float(tp / (tp + fp).clamp(min=1)),
            "recall": float(tp / (tp + fn).clamp(min=1)),
            "auc": float(auc(histogram)),
            "tokens_per_second": self.tokens / max(seconds, 1e-9),
        }
        self._reset()
        return row


def _reported(row: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in row.items() if name not in ("steps", "seconds")}


@contextmanager
def _deferred_signals() -> Iterator[list[str]]:
    """Within the block ctrl-C and SIGTERM are noted in the list instead of raised; a second ctrl-C stops at once."""
    received: list[str] = []

    def note(number: int, frame: Any) -> None:
        if received and number == signal.SIGINT:
            raise KeyboardInterrupt
        received.append(signal.Signals(number).name)

    try:
        before = {number: signal.signal(number, note) for number in (signal.SIGINT, signal.SIGTERM)}
    except ValueError:  # not the main thread, where no handler can be set: signals go to whoever runs us
        yield received
        return
    try:
        yield received
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _check_checkpoint(config: PretrainConfig, corpus_hash: str, path: Path, state: dict[str, Any]) -> None:
    """Raises ConfigError where the run can't go on from a checkpoint."""
    if state["corpus"] != corpus_hash:
        raise ConfigError(
            f"{config.data.train} is not the corpus that {path} was trained on: give that one, or another output"
        )
    if state["step"] > config.training.steps:
        raise ConfigError(f"{path} is past training.steps ({config.training.steps}): raise it, or give another output")


def _device(name: str) -> torch.device:
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    if name.startswith("cuda") and not torch.cuda.is_available():
        raise ConfigError(f"training.device is {name}, but this PyTorch sees no CUDA GPU: use cpu or auto")
    device = torch.device(name)
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise ConfigError(
            f"training.device is {name}, but there are {torch.cuda.device_count()} GPUs: cuda:0 is the first"
        )
    return device


def _open_corpora(config: PretrainConfig) -> tuple[Corpus, Corpus | None]:
    if not config.data.train:
        raise ConfigError(
            "data.train is not set: give the folder that `electra-fast prepare` wrote (--data.train FOLDER)"
        )
    train = Corpus.open(config.data.train, verify=True)
    if config.data.valid is None:
        return train, None
    valid = Corpus.open(config.data.valid, verify=True)
    if valid.meta.tokenizer_sha256 != train.meta.tokenizer_sha256:
        raise ConfigError(
            f"{config.data.valid} was prepared with another tokenizer than {config.data.train}: prepare it again with "
            f"--tokenizer {train.tokenizer_folder}"
        )
    return train, valid


def _save(
    output: Path,
    step: int,
    model: ElectraForJointPreTraining,
    optimizer: torch.optim.Optimizer,
    config: PretrainConfig,
    corpus_hash: str,
) -> None:
    state = {"corpus": corpus_hash}
    save_checkpoint(output / "checkpoints", step, model, optimizer, state, keep=config.training.keep_checkpoints)
