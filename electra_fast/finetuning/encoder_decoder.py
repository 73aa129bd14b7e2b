"""transformers' `EncoderDecoderModel` of one checkpoint twice: an encoder that reads and a decoder that writes."""

from __future__ import annotations

import functools
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
import transformers
from torch import Tensor
from transformers import GenerationConfig, PretrainedConfig, PreTrainedModel, PreTrainedTokenizerBase
from transformers.modeling_outputs import Seq2SeqLMOutput

if TYPE_CHECKING:
    from electra_fast.finetuning.tasks.seq2seq import Seq2Seq


class EncoderDecoderModel(transformers.EncoderDecoderModel):
    """Same weights and results; transformers' own class loads what this saves.

    The loss is the mean over all labels but -100. `input_ids` are padded on the right, as tokenizers do.
    """

    accepts_loss_kwargs = False  # see electra_fast.models.swap.Swapped

    @functools.wraps(transformers.EncoderDecoderModel.forward)  # generate looks at the names of its arguments
    def forward(
        self, *args: Any, labels: Tensor | None = None, return_dict: bool | None = None, **kwargs: Any
    ) -> Seq2SeqLMOutput | tuple[Tensor, ...]:
        if labels is None:
            return super().forward(*args, return_dict=return_dict, **kwargs)
        # Not by transformers' own loss, which is the same and warns, once a place, of a change from years ago.
        if kwargs.get("decoder_input_ids") is None and kwargs.get("decoder_inputs_embeds") is None:
            kwargs["decoder_input_ids"] = self.prepare_decoder_input_ids_from_labels(labels)
        outputs = super().forward(*args, return_dict=True, **kwargs)
        outputs = Seq2SeqLMOutput(loss=F.cross_entropy(outputs.logits.flatten(0, 1), labels.flatten()), **outputs)
        return outputs.to_tuple() if return_dict is False else outputs

    def share_word_embeddings(self) -> None:
        """Give the decoder, its output layer too, the encoder's word embeddings: one table that all train."""
        self.decoder.set_input_embeddings(self.encoder.get_input_embeddings())
        self.decoder.tie_weights()

    def save_pretrained(
        self, save_directory: str | PathLike[str], *args: Any, state_dict: dict[str, Tensor] | None = None, **kwargs: Any
    ) -> None:
        """As ever, with two copies of shared word embeddings, since transformers' class knows of no sharing."""
        state_dict = dict(self.state_dict() if state_dict is None else state_dict)
        if self.decoder.get_input_embeddings() is self.encoder.get_input_embeddings():
            name = next(name for name, module in self.decoder.named_modules() if module is self.get_input_embeddings())
            state_dict[f"decoder.{name}.weight"] = state_dict[f"decoder.{name}.weight"].clone()
        super().save_pretrained(save_directory, *args, state_dict=state_dict, **kwargs)
