"""transformers' `EncoderDecoderModel` of one checkpoint twice: an encoder that reads, a decoder that writes."""

from __future__ import annotations

import copy
import functools
import re
from collections.abc import Sequence
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
import transformers
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from transformers import (
    AutoModel,
    AutoModelForCausalLM,
    EncoderDecoderConfig,
    GenerationConfig,
    PretrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.modeling_outputs import Seq2SeqLMOutput

from electra_fast.data.collator import IGNORED_LABEL
from electra_fast.data.tokenizer import load_tokenizer
from electra_fast.finetuning.metrics.generation import CJK
from electra_fast.finetuning.task import Feature
from electra_fast.models import patch_transformers
from electra_fast.models.progress import hidden_progress_bars, no_loading_report

if TYPE_CHECKING:
    from electra_fast.finetuning.tasks.seq2seq import Seq2Seq

_CROSS_ATTENTION = ".crossattention."  # in the names of weights
# Spaces that a tokenizer puts beside characters of scripts that have none, and beside their punctuation.
_WIDE = f"[{CJK}\u3000-\u303f\uff00-\uffef]"
_ADDED_SPACE = re.compile(f"(?<={_WIDE}) | (?={_WIDE})")


class EncoderDecoderModel(transformers.EncoderDecoderModel):
    """Same weights, loss and texts as transformers' own, which loads what this saves.

    The loss is the mean over all labels but -100. With labels the decoder has no mask for its padding: it comes last,
    where nothing that counts looks.
    """

    accepts_loss_kwargs = False  # see electra_fast.models.swap.Swapped

    @functools.wraps(transformers.EncoderDecoderModel.forward)  # generate looks at the names of its arguments
    def forward(
        self, *args: Any, labels: Tensor | None = None, return_dict: bool | None = None, **kwargs: Any
    ) -> Seq2SeqLMOutput | tuple[Tensor, ...]:
        if labels is None:
            return super().forward(*args, return_dict=return_dict, **kwargs)
        # Beside the same loss, transformers' own gives a warning of a change that is years old.
        if kwargs.get("decoder_input_ids") is None and kwargs.get("decoder_inputs_embeds") is None:
            kwargs["decoder_input_ids"] = self.prepare_decoder_input_ids_from_labels(labels)
        outputs = super().forward(*args, return_dict=True, **kwargs)
        loss = F.cross_entropy(outputs.logits.flatten(0, 1), labels.flatten())
        outputs = Seq2SeqLMOutput(loss=loss, **outputs)
        return outputs.to_tuple() if return_dict is False else outputs

    def share_word_embeddings(self) -> None:
        """Give the decoder and its output layer the encoder's word embeddings: one table, trained by all three."""
        self.decoder.set_input_embeddings(self.encoder.get_input_embeddings())
        self.decoder.tie_weights()

    def save_pretrained(
        self,
        save_directory: str | PathLike[str],
        *args: Any,
        state_dict: dict[str, Tensor] | None = None,
        **kwargs: Any,
    ) -> None:
        """As ever, and of a shared table two copies: transformers' own class knows of no sharing."""
        state_dict = dict(self.state_dict() if state_dict is None else state_dict)
        shared = self.encoder.get_input_embeddings()
        for name, module in self.decoder.named_modules():
            if module is shared:
                state_dict[f"decoder.{name}.weight"] = state_dict[f"decoder.{name}.weight"].clone()
        super().save_pretrained(save_directory, *args, state_dict=state_dict, **kwargs)


def load_encoder_decoder(
    folder: Path, task: Seq2Seq, *, seed: int, from_scratch: bool = False, **config: Any
) -> EncoderDecoderModel:
    """A fast model in training mode, float32: `folder` as encoder and as decoder, with fresh cross attention.

    The decoder's output layer is the checkpoint's if that has one (a generator), and fresh otherwise; its weight is the
    word embeddings. How the model generates goes from the task's options into its generation_config.

    Args:
        folder: of an encoder, or of an encoder-decoder, with its tokenizer.
        seed: draws what is fresh.
        from_scratch: random weights in place of all others too.
        config: changes of both configs, e.g. `hidden_dropout_prob`.

    Raises:
        ValueError: weights are missing or damaged, or the options don't fit the model's position table.
    """
    from electra_fast.finetuning.model import read_config  # which imports heads.py, which imports this module

    settings = read_config(folder)
    torch.manual_seed(seed)
    with patch_transformers(), hidden_progress_bars(), no_loading_report():
        try:
            if isinstance(settings, EncoderDecoderConfig):
                _change(settings.encoder, config)
                _change(settings.decoder, config)
                model = _load(EncoderDecoderModel, folder, settings, from_scratch)
            else:
                _change(settings, config)
                encoder = _load(AutoModel, folder, settings, from_scratch)
                settings = _change(copy.deepcopy(settings), {"is_decoder": True, "add_cross_attention": True})
                decoder = _load(AutoModelForCausalLM, folder, settings, from_scratch)
                model = EncoderDecoderModel(encoder=encoder, decoder=decoder)
        except (OSError, RuntimeError) as error:
            raise ValueError(f"can't read the model in {folder}: {error}") from error
    if task.tie_embeddings:
        model.share_word_embeddings()
    set_generation(model, load_tokenizer(folder), task)
    return model.train()


def _change(config: PretrainedConfig, changes: dict[str, Any]) -> PretrainedConfig:
    for name, value in changes.items():
        setattr(config, name, value)
    return config


def _load(cls: Any, folder: Path, config: PretrainedConfig, from_scratch: bool) -> PreTrainedModel:
    """A model whose weights are all there, but for cross attention and what a decoder has above its tower."""
    if from_scratch:
        build = cls._from_config if hasattr(cls, "_from_config") else cls.from_config
        return build(config, dtype=torch.float32)
    model, report = cls.from_pretrained(
        folder, config=config, local_files_only=True, output_loading_info=True, dtype=torch.float32
    )
    tower = f"{model.base_model_prefix}." if cls is AutoModelForCausalLM else ""
    lacks = [key for key in report["missing_keys"] if key.startswith(tower) and _CROSS_ATTENTION not in key]
    if lacks:
        raise OSError(f"it lacks {min(lacks)}: it is damaged or of another kind")
    return model


def set_generation(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, task: Seq2Seq) -> None:
    """Tell the model its tokens, [CLS] before a text and [SEP] after it, and the task's options for `generate`.

    Raises:
        ValueError: the text may become longer than the decoder's position table.
    """
    table = model.config.decoder.max_position_embeddings
    options = {"max_target_length": task.max_target_length, "max_new_tokens": task.new_tokens}
    for name, value in options.items():
        if value > table:
            raise ValueError(f"{name} must be at most the model's positions ({table}); got {value}")
    start, end, pad = tokenizer.cls_token_id, tokenizer.sep_token_id, tokenizer.pad_token_id
    model.config.decoder_start_token_id, model.config.eos_token_id, model.config.pad_token_id = start, end, pad
    model.generation_config = GenerationConfig(
        decoder_start_token_id=start,
        eos_token_id=end,
        pad_token_id=pad,
        max_new_tokens=task.new_tokens,
        num_beams=task.num_beams,
        no_repeat_ngram_size=task.no_repeat_ngram_size,
        length_penalty=task.length_penalty,
    )


def collate_pairs(features: Sequence[Feature], tokenizer: PreTrainedTokenizerBase) -> dict[str, Tensor]:
    """`input_ids` and `attention_mask` [B, S], and `labels` [B, L] if features have them, padded on the right."""
    batch = {"input_ids": _padded([feature["input_ids"] for feature in features], tokenizer.pad_token_id)}
    lengths = torch.tensor([len(feature["input_ids"]) for feature in features])
    batch["attention_mask"] = (torch.arange(int(lengths.max())) < lengths[:, None]).long()
    if "labels" in features[0]:
        batch["labels"] = _padded([feature["labels"] for feature in features], IGNORED_LABEL)
    return batch


def _padded(rows: Sequence[list[int]], fill: int) -> Tensor:
    return pad_sequence([torch.tensor(row) for row in rows], batch_first=True, padding_value=fill)


def generate_texts(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, features: Sequence[Feature]
) -> list[str]:
    """A text for each feature, as the model's generation_config says."""
    batch = {name: value.to(model.device) for name, value in collate_pairs(features, tokenizer).items()}
    return [to_text(tokenizer, ids) for ids in model.generate(**batch).tolist()]


def to_text(tokenizer: PreTrainedTokenizerBase, ids: Sequence[int]) -> str:
    """Token ids as people write: no special tokens, no space before a full stop or between Chinese characters."""
    text = tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=True)
    return _ADDED_SPACE.sub("", text)
