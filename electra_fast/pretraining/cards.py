"""Model cards: the README.md that the Hugging Face Hub shows, beside every model and checkpoint of a run.

A card says what the run knows and names what it does not; it holds no path and no time, so that the same run writes the
same bytes anywhere.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

from huggingface_hub import ModelCardData

import electra_fast
from electra_fast.data.corpus import CorpusMeta
from electra_fast.files import write_whole
from electra_fast.models import ElectraForJointPreTraining
from electra_fast.pretraining.config import InitConfig, PretrainConfig
from electra_fast.pretraining.metrics import read_metrics

CARD_FILE = "README.md"
MARK = "<!-- electra-fast wrote this card and will write it anew; without this line it keeps yours. -->"
_PAPER = "[ELECTRA](https://arxiv.org/abs/2003.10555)"


@dataclass(frozen=True)
class Facts:
    """What a run knows of its models.

    Args:
        config: its settings.
        model: the models.
        corpora: what they learned from.
        step: updates done.
        evaluation: the last row of kind "eval" up to then; None where nothing was held out.
    """

    config: PretrainConfig
    model: ElectraForJointPreTraining
    corpora: Sequence[CorpusMeta]
    step: int
    evaluation: dict[str, Any] | None


def last_evaluation(metrics: Path, step: int) -> dict[str, Any] | None:
    """The last held-out evaluation in metrics.jsonl that is not after `step`. Raises ValueError for a damaged file."""
    rows = read_metrics(metrics) if metrics.is_file() else []
    return next((row for row in reversed(rows) if row["kind"] == "eval" and row["step"] <= step), None)


def write_cards(folder: Path, facts: Facts) -> None:
    """Write the cards of a saved joint model: of `folder` and of the checkpoints in it. Cards of others stay."""
    for name, make in _CARDS.items():
        if name == "." or (folder / name).is_dir():
            _write_card(folder / name / CARD_FILE, make(facts))


def is_ours(card: Path) -> bool:
    """Whether electra-fast wrote the card, and nobody claimed it since. A link is not followed."""
    return not card.is_symlink() and card.is_file() and MARK in card.read_text(encoding="utf-8", errors="replace")


def state_card(config: PretrainConfig, step: int) -> str:
    """The card of a training checkpoint, which is no model that transformers loads."""
    text = f"""# Training state after step {step:,}

What `electra-fast pretrain --resume` goes on from: both towers' float32 weights (`model.safetensors`), the optimizer's
moments (`optimizer.safetensors`), and where the run was (`state.json`). Objective: {_objectives(config)}.

transformers can't load this folder. `electra-fast export RUN --step {step} --output DIR` writes its models, each with a
card of its own, to publish or to fine-tune.
"""
    return _card(text, library_name="electra-fast")


def _write_card(path: Path, content: str) -> None:
    if is_ours(path) or not (path.exists() or path.is_symlink()):
        write_whole(path, content)


def _card(text: str, **data: Any) -> str:
    tags = ["electra", "electra-fast", "replaced-token-detection"]
    front = ModelCardData(tags=tags, **data).to_yaml()
    return f"---\n{front}\n---\n{MARK}\n\n{text}"


def _discriminator(facts: Facts) -> str:
    text = f"""# ELECTRA discriminator, {facts.model.discriminator.num_parameters():,} parameters

For every token of a text, how likely it is that it replaces the original one ({_PAPER}'s replaced-token detection). Its
encoder is what people fine-tune for classification, tagging and question answering.

## Use

```python
from transformers import AutoTokenizer, ElectraForPreTraining  # the same class from electra_fast is faster

name = "."  # this folder, or the repository's name
tokenizer = AutoTokenizer.from_pretrained(name)
model = ElectraForPreTraining.from_pretrained(name)
logits = model(**tokenizer("A text to look at.", return_tensors="pt")).logits
probabilities = logits.sigmoid()  # [B, S], of each token: that it was replaced
```

To fine-tune, load the folder as another class, e.g. `ElectraForSequenceClassification`; its head is then new.
"""
    return _card(text + _about(facts), library_name="transformers")


def _masked_lm(title: str, about: str) -> str:
    return f"""# {title}

{about}

## Use

```python
from transformers import AutoModelForMaskedLM, AutoTokenizer, pipeline

name = "."  # this folder, or the repository's name
tokenizer = AutoTokenizer.from_pretrained(name)
fill = pipeline("fill-mask", model=AutoModelForMaskedLM.from_pretrained(name), tokenizer=tokenizer)
guesses = fill(f"A text with a {{tokenizer.mask_token}} in it.")
```
"""


def _generator(facts: Facts) -> str:
    text = _masked_lm(
        f"ELECTRA generator, {facts.model.generator.num_parameters():,} parameters",
        f"The small masked language model that {_PAPER}'s discriminator was trained against. It fills gaps; what\n"
        "people fine-tune is the discriminator.",
    )
    return _card(text + _about(facts), library_name="transformers", pipeline_tag="fill-mask")


def _mlm(facts: Facts) -> str:
    text = _masked_lm(
        "A masked language model on an ELECTRA discriminator's encoder",
        f"The encoder of an {_PAPER} discriminator with the head that predicted masked tokens in pretraining.",
    )
    return _card(text + _about(facts), library_name="transformers", pipeline_tag="fill-mask")


def _joint(facts: Facts) -> str:
    text = f"""# ELECTRA, generator and discriminator

Both towers of an {_PAPER} pretraining run. `discriminator/` is the model people keep, `generator/` its partner; each is
a checkpoint of transformers with a card of its own.

## Use

```python
from electra_fast import ElectraForJointPreTraining, ElectraForPreTraining

discriminator = ElectraForPreTraining.from_pretrained("discriminator")
both = ElectraForJointPreTraining.from_pretrained(".")  # to go on training
```
"""
    return _card(text + _about(facts), library_name="electra-fast")


_CARDS = {".": _joint, "discriminator": _discriminator, "generator": _generator, "mlm": _mlm}


def _about(facts: Facts) -> str:
    return "\n".join(["", *_training(facts), "", *_data(facts), "", *_results(facts), "", *_UNKNOWN, ""])


def _start(init: InitConfig) -> str:
    if init.is_given:
        return f"weights of other models, sha256 {init.sha256}"
    return "random weights" if init.embeddings == "random" else "random weights, word embeddings from co-occurrences"


def _training(facts: Facts) -> list[str]:
    config, sizes = facts.config, facts.model.discriminator.config
    objective, optimizer = config.objective, config.optimizer
    rows = {
        "objective": _objectives(config),
        "start": _start(config.init),
        "updates": f"{facts.step:,}",
        "batch": _batch(config),
        "discriminator": _size(sizes),
        "generator": _size(facts.model.generator.config),
        "embeddings": f"width {sizes.embedding_size:,}, {sizes.max_position_embeddings:,} positions, "
        f"tie: {facts.model.tie}",
        "masking": f"{objective.mask_prob:g} of the tokens, by {config.data.mask_units}; "
        f"{objective.replace_prob:g} of these become [MASK]",
        "loss": f"{objective.generator_weight:g} x generator + {objective.discriminator_weight:g} x discriminator",
        "optimizer": f"AdamW, peak rate {optimizer.lr:g} after {optimizer.warmup_steps:,} steps (schedule: "
        f"{optimizer.lr_schedule}), decay {optimizer.weight_decay:g}",
        "precision, seed": f"{config.training.precision}, {config.training.seed}",
        "written by": _versions(),
    }
    return ["## Training", "", *_table("setting", "value"), *(f"| {name} | {value} |" for name, value in rows.items())]


def _data(facts: Facts) -> list[str]:
    rows = [
        f"| {meta.documents:,} | {meta.tokens:,} | {meta.text_bytes:,} | {meta.vocab_size:,} | {meta.content_hash()} |"
        for meta in facts.corpora
    ]
    columns = ("documents", "tokens", "bytes of text", "vocabulary", "corpus")
    return ["## Data", "", *_table(*columns), *rows, "", "The last column is a sha256 of the prepared corpus."]


def _results(facts: Facts) -> list[str]:
    if facts.evaluation is None:
        return ["## Results", "", "No text was held out, so nothing was measured."]
    left_out = ("kind", "step", "phase", "objective")
    found = {name: value for name, value in facts.evaluation.items() if name not in left_out}
    rows = [f"| {name} | {'undefined' if value is None else f'{value:.4f}'} |" for name, value in found.items()]
    intro = f"On the run's `data.valid` after update {facts.evaluation['step']:,}; losses are in nats."
    return ["## Results", "", intro, "", *_table("metric", "value"), *rows]


_UNKNOWN = (
    "## What the run does not know",
    "",
    "- The license of the model: choose one and add `license:` to the lines on top.",
    "- The text's language, origin and license: `language:` and `datasets:` are the keys for them.",
    "- Results on any task, and what biases the text taught: nothing of it was measured.",
)


def _table(*columns: str) -> list[str]:
    return [f"| {' | '.join(columns)} |", "|---" * len(columns) + "|"]


def _objectives(config: PretrainConfig) -> str:
    return ", then ".join(phase.objective for phase in config.phases)


def _batch(config: PretrainConfig) -> str:
    data = config.data
    if data.curriculum:
        return f"{len(data.curriculum)} stages, of up to {data.longest:,} tokens a sequence"
    size = f"about {data.batch_tokens:,} tokens" if data.batch_tokens else f"{data.batch_size:,} sequences"
    return f"{size}, of up to {data.max_length:,} tokens a sequence"


def _size(tower: Any) -> str:
    return (
        f"layers: {tower.num_hidden_layers}, width: {tower.hidden_size:,}, heads: {tower.num_attention_heads}, "
        f"feed-forward: {tower.intermediate_size:,}"
    )


def _versions() -> str:
    """electra-fast's, with the commit where pip installed it from a repository, and those of what computes."""
    commit = _origin().get("vcs_info", {}).get("commit_id")
    ours = f"electra-fast {electra_fast.__version__}" + (f" ({commit})" if commit else "")
    return ", ".join([ours, *(f"{name} {metadata.version(name)}" for name in ("torch", "transformers"))])


def _origin() -> dict[str, Any]:
    """pip's note of where the package came from; empty for a checkout and for a release from an index."""
    try:
        return json.loads(metadata.distribution("electra-fast").read_text("direct_url.json") or "{}")
    except metadata.PackageNotFoundError:
        return {}
