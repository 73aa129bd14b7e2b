"""ELECTRA pretraining as one module: a generator, a discriminator, and replaced-token detection between them."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from electra_fast.models.adversarial import adversarial
from electra_fast.models.electra import ElectraConfig, ElectraForMaskedLM, ElectraForPreTraining
from electra_fast.models.electric import electric
from electra_fast.models.gdes import DELTA_EMBEDDINGS, DeltaEmbedding
from electra_fast.models.initialization import initialize_weights
from electra_fast.models.joint_files import load_joint, save_joint
from electra_fast.models.layers import FlatBatch, generator_hidden
from electra_fast.models.masked_lm import MaskedLMHead, mlm
from electra_fast.models.objectives import (
    DISCRIMINATOR_STREAM,
    GENERATOR_STREAM,
    SAMPLING_STREAM,
    Corruption,
    FlatInputs,
    JointPreTrainingOutput,
    Masking,
    discriminator,
    generator,
    joint,
)
from electra_fast.models.tower import encode
from electra_fast.models.two_tower import TwoTowerGenerator
from electra_fast.ops.generator_head import linear_cross_entropy_sample, linear_cross_entropy_sample_with_argmax
from electra_fast.ops.masking_sampling import corrupt_tokens, mask_tokens
from electra_fast.ops.random import as_seed, draw_seed, row_ids_for, splitmix64
from electra_fast.packing import Packing, packing_of_full, packing_of_lengths, packing_of_mask

TIED_EMBEDDINGS = ("word_embeddings", "position_embeddings", "token_type_embeddings", "LayerNorm")
TIE_CHOICES = ("shared", "untied", "all", "gdes")
# What `forward(objective=...)` runs.
OBJECTIVES = {
    "joint": joint,
    "generator": generator,
    "discriminator": discriminator,
    "mlm": mlm,
    "electric": electric,
    "adversarial": adversarial,
}
# Those that need the probability of each sample, which temperature and disallow_correct would change.
_OBJECTIVES_OF_SAMPLES = ("electric", "adversarial")


class ElectraForJointPreTraining(nn.Module):
    """Generator and discriminator trained together.

    Source: ELECTRA paper, section 2; google-research/electra, run_pretraining.py.

    Args:
        generator_config, discriminator_config: `ElectraConfig`; with tied embeddings the two share vocabulary,
            embedding size, position table and token types.
        mask_token_id: the id of [MASK].
        never_mask_ids: ids that are never masked: [CLS], [SEP], [MASK]. Padding is never masked either.
        mask_prob: the share of each sequence's tokens to predict.
        replace_prob: the share of those that become [MASK]; the others keep their token. None becomes a random one.
        max_per_sequence: at most this many a sequence; None means int((mask_prob + 0.005) * S), where S is the width of
            a padded batch, or the position table's size for packed input.
        temperature: divides the generator's logits when it samples.
        disallow_correct: the generator never samples the true token.
        generator_weight, discriminator_weight: of the two losses in their sum.
        tie: "shared" ties the embeddings (word, position, token type and their LayerNorm), "untied" nothing, "all" the
            whole encoder (towers of one size), "gdes" lets the discriminator's word and position embeddings follow the
            generator's: theirs, without gradients to them, plus a difference that starts at zero (DeBERTaV3).
        objectives: what `forward` will be asked for. "mlm" makes `mlm_head`, a masked language model's head on the
            discriminator's encoder, "electric" `two_tower`, its generator, and "adversarial" `baseline`, which is
            REINFORCE's; "joint", "generator" and "discriminator" need nothing.

    The look-up of the padding token gives its embedding no gradient, as in transformers; a tied output projection does.
    The original draws positions with replacement and averages the ids of tokens drawn twice; here they are distinct.
    """

    # transformers' Trainer then divides the loss by the number of accumulation steps, as a mean loss needs.
    accepts_loss_kwargs = False

    def __init__(
        self,
        generator_config: ElectraConfig,
        discriminator_config: ElectraConfig,
        *,
        mask_token_id: int = 103,
        never_mask_ids: Sequence[int] = (101, 102, 103),
        mask_prob: float = 0.15,
        replace_prob: float = 0.85,
        max_per_sequence: int | None = None,
        temperature: float = 1.0,
        disallow_correct: bool = False,
        generator_weight: float = 1.0,
        discriminator_weight: float = 50.0,
        tie: str = "shared",
        objectives: Sequence[str] = ("joint",),
    ) -> None:
        super().__init__()
        if tie not in TIE_CHOICES:
            raise ValueError(f"tie must be one of {', '.join(TIE_CHOICES)}; got {tie!r}")
        for objective in objectives:
            _check_objective(objective)
            if objective in _OBJECTIVES_OF_SAMPLES and (temperature != 1.0 or disallow_correct):
                raise ValueError(
                    f"objective {objective!r} needs samples that are the generator's: temperature 1 and "
                    f"disallow_correct False; got {temperature} and {disallow_correct}"
                )
        _check_configs(generator_config, discriminator_config, tie)
        self.mask_token_id = mask_token_id
        self.never_mask_ids = tuple(never_mask_ids)
        self.mask_prob = mask_prob
        self.replace_prob = replace_prob
        self.max_per_sequence = max_per_sequence
        self.temperature = temperature
        self.disallow_correct = disallow_correct
        self.generator_weight = generator_weight
        self.discriminator_weight = discriminator_weight
        self.tie = tie
        self.objectives = tuple(objectives)

        self.discriminator = ElectraForPreTraining(copy.deepcopy(discriminator_config))
        self.generator = ElectraForMaskedLM(copy.deepcopy(generator_config))
        self._tie_towers()
        self.mlm_head = MaskedLMHead(self.discriminator.config) if "mlm" in objectives else None
        self.two_tower = TwoTowerGenerator(generator_config) if "electric" in objectives else None
        self.baseline = nn.Linear(generator_config.hidden_size, 1, bias=False) if "adversarial" in objectives else None
        initialize_weights(self, std=discriminator_config.initializer_range)

    def _tie_towers(self) -> None:
        if self.tie == "all":
            self.generator.electra = self.discriminator.electra
        elif self.tie == "shared":
            source, target = self.discriminator.electra.embeddings, self.generator.electra.embeddings
            for name in TIED_EMBEDDINGS:
                setattr(target, name, getattr(source, name))
        elif self.tie == "gdes":
            source, target = self.generator.electra.embeddings, self.discriminator.electra.embeddings
            for name in DELTA_EMBEDDINGS:
                setattr(target, name, DeltaEmbedding(getattr(source, name)))
        self.generator.tie_weights()

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        sequence_ids: Tensor | None = None,
        seed: Tensor | int | None = None,
        mask_seed: Tensor | int | None = None,
        cu_seqlens: Tensor | None = None,
        num_masked: int | None = None,
        masked_count: Tensor | float | None = None,
        token_count: Tensor | float | None = None,
        max_seqlen: int | None = None,
        objective: str = "joint",
        unit_starts: Tensor | None = None,
    ) -> JointPreTrainingOutput:
        """Mask, let the generator fill in, let the discriminator judge, and return both losses.

        Args:
            input_ids: int64 [B, S] padded, or [T] packed together with `cu_seqlens`. The uncorrupted text.
            attention_mask: [B, S], nonzero at real tokens; None: all are. Padded input only.
            token_type_ids: int64, the shape of input_ids; None: zeros.
            sequence_ids: int64 [B], names each sequence for the random numbers, so that the same text gets the same
                masks whatever batch it lands in; None: 0..B-1.
            seed: of the sampling and the dropout; None draws one from torch's default generator. Where a vendor's
                kernel attends, its dropout uses that generator (see `electra_fast.attention`).
            mask_seed: of the masking; None: splitmix64(seed).
            cu_seqlens: int32 or int64 [B + 1], sequence boundaries of packed input.
            num_masked: slots M for masked positions; None: enough for every sequence.
            masked_count, token_count: what the two loss sums are divided by; None: this batch's own counts. Give those
                of the whole global batch, and accumulation and ranks change nothing.
            max_seqlen: of packed input, no less than its longest sequence, which on a GPU is not checked. None: looks,
                for which a GPU must be waited for; in a compiled graph: the position table's size.
            objective: "joint"; "generator": its masked language modelling alone; "discriminator": it alone, of what
                the generator samples without gradients and without dropout; "mlm": masked language modelling of the
                discriminator's encoder; "electric", "adversarial": see the modules of these names. What is not computed
                is None in the result; `loss` is the weighted sum of what is trained.
            unit_starts: bool, the shape of input_ids, True where a unit begins that is masked whole or not at all (a
                word, a span); None: each token is one. See `mask_tokens`.

        Raises:
            ValueError: an objective that is unknown, or that the constructor was not told of; shapes that don't fit
                together; sequences longer than the position table.
        """
        _check_objective(objective)
        packing = self.packing(input_ids, attention_mask, cu_seqlens, max_seqlen)
        for name, tensor in (("token_type_ids", token_type_ids), ("unit_starts", unit_starts)):
            if tensor is not None and tensor.shape != input_ids.shape:
                raise ValueError(f"{name} has shape {tuple(tensor.shape)}, input_ids {tuple(input_ids.shape)}")
        if not packing.is_packed:
            token_type_ids = None if token_type_ids is None else packing.unpad(token_type_ids)
            unit_starts = None if unit_starts is None else packing.unpad(unit_starts)
        options: dict[str, Any] = {"sequence_ids": sequence_ids, "seed": seed, "mask_seed": mask_seed}
        options["unit_starts"] = unit_starts
        flat_ids = input_ids if packing.is_packed else packing.unpad(input_ids)
        inputs = FlatInputs(
            flat_ids, packing, token_type_ids, options | {"num_masked": num_masked}, masked_count, token_count
        )
        output = OBJECTIVES[objective](self, inputs)
        if output.corrupted_ids is not None and not packing.is_packed:
            corrupted_ids = packing.pad(output.corrupted_ids)
            if packing.padding_mask is not None:
                corrupted_ids = torch.where(packing.padding_mask, corrupted_ids, input_ids)
            output.corrupted_ids = corrupted_ids
        return output

    def packing(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        cu_seqlens: Tensor | None = None,
        max_seqlen: int | None = None,
    ) -> Packing:
        """How the arguments of `forward` lay out the tokens."""
        table = self.discriminator.config.max_position_embeddings
        if cu_seqlens is not None:
            if input_ids.dim() != 1:
                raise ValueError(f"with cu_seqlens, input_ids must be flat [T]; got shape {tuple(input_ids.shape)}")
            if attention_mask is not None:
                raise ValueError("packed input has no padding: give cu_seqlens or attention_mask, not both")
            if max_seqlen is None and torch.compiler.is_compiling():
                max_seqlen = table
            elif max_seqlen is None:
                max_seqlen = int(cu_seqlens.diff().max()) if cu_seqlens.shape[0] > 1 else 0
        else:
            if input_ids.dim() != 2:
                raise ValueError(
                    f"input_ids must be padded [B, S], or flat [T] with cu_seqlens; got shape {tuple(input_ids.shape)}"
                )
            max_seqlen = input_ids.shape[1]
        if max_seqlen > table:
            raise ValueError(f"sequences of {max_seqlen} tokens are longer than the position table of {table}")
        if cu_seqlens is not None:
            return packing_of_lengths(cu_seqlens, input_ids.shape[0], max_seqlen)
        if attention_mask is not None:
            if attention_mask.shape != input_ids.shape:
                raise ValueError(
                    f"attention_mask has shape {tuple(attention_mask.shape)}, input_ids {tuple(input_ids.shape)}"
                )
            return packing_of_mask(attention_mask)
        return packing_of_full(*input_ids.shape, input_ids.device)

    def mask(
        self,
        input_ids: Tensor,
        packing: Packing,
        *,
        sequence_ids: Tensor | None = None,
        seed: Tensor | int | None = None,
        mask_seed: Tensor | int | None = None,
        num_masked: int | None = None,
        unit_starts: Tensor | None = None,
    ) -> Masking:
        """Choose the tokens of flat `input_ids` [T] to predict; the other arguments are those of `forward`, flat."""
        device = input_ids.device
        seed = draw_seed(device) if seed is None else as_seed(seed, device)
        mask_seed = splitmix64(seed) if mask_seed is None else as_seed(mask_seed, device)
        if sequence_ids is None:
            sequence_ids = torch.arange(packing.batch_size, device=device)
        elif sequence_ids.shape != (packing.batch_size,):
            raise ValueError(
                f"sequence_ids has shape {tuple(sequence_ids.shape)}, but there are {packing.batch_size} sequences"
            )
        row_ids = row_ids_for(sequence_ids, packing.cu_seqlens, input_ids.shape[0])

        max_per_sequence = self.max_per_sequence
        if max_per_sequence is None:
            # Packed rows have no width of their own, and the cap must not depend on the batch.
            width = self.discriminator.config.max_position_embeddings if packing.is_packed else packing.max_seqlen
            max_per_sequence = max(1, int((self.mask_prob + 0.005) * width))
        if num_masked is None:
            # round(n * p) <= n * p + 0.5, and at least one token a sequence.
            most = int(self.mask_prob * input_ids.shape[0]) + packing.batch_size
            num_masked = min(most, packing.batch_size * max_per_sequence, input_ids.shape[0])

        masked = mask_tokens(
            input_ids,
            packing.cu_seqlens,
            mask_token_id=self.mask_token_id,
            never_mask_ids=self.never_mask_ids,
            num_masked=num_masked,
            mask_prob=self.mask_prob,
            replace_prob=self.replace_prob,
            max_per_sequence=max_per_sequence,
            seed=mask_seed,
            row_ids=row_ids,
            unit_starts=unit_starts,
        )
        return Masking(masked, seed, row_ids)

    def corrupt(
        self,
        input_ids: Tensor,
        packing: Packing,
        *,
        token_type_ids: Tensor | None = None,
        predictor: str = "generator",
        with_argmax: bool = False,
        **options: Any,
    ) -> Corruption:
        """The generator's half: mask flat `input_ids` [T], predict, sample, and put the samples in.

        `token_type_ids` is flat too; `predictor` is who predicts, "generator" or "mlm", the discriminator's encoder
        with `mlm_head`; `options` are those of `mask`.
        """
        tower, stream, predictions, weight, bias = self._predictor(predictor)
        masked, seed, row_ids = self.mask(input_ids, packing, **options)
        states = encode(
            tower,
            FlatBatch(packing, seed, row_ids),
            input_ids=masked.input_ids,
            token_type_ids=token_type_ids,
            stream=stream,
            rows=masked.positions,
        )
        hidden = generator_hidden(predictions, states)  # [M, E]
        head = linear_cross_entropy_sample_with_argmax if with_argmax else linear_cross_entropy_sample
        loss_sum, nll, sampled_ids, *argmax_ids = head(
            hidden,
            weight,
            bias,
            masked.labels,
            masked.weights,
            temperature=self.temperature,
            disallow_correct=self.disallow_correct,
            seed=seed,
            stream=SAMPLING_STREAM,
            row_ids=row_ids[masked.positions],
        )
        corrupted_ids, is_replaced = corrupt_tokens(input_ids, masked.positions, sampled_ids, masked.weights)
        argmax = argmax_ids[0] if argmax_ids else None
        return Corruption(
            masked, loss_sum, nll, sampled_ids, argmax, corrupted_ids, is_replaced, seed, row_ids, states, hidden
        )

    def _predictor(self, name: str) -> tuple[nn.Module, int, nn.Module, Tensor, Tensor]:
        """Who fills in masked tokens: encoder, stream of its dropout, head, and the projection's weight and bias."""
        if name == "generator":
            lm = self.generator
            head = lm.generator_lm_head
            return lm.electra, GENERATOR_STREAM, lm.generator_predictions, head.weight, head.bias
        head, tower = self.made_for("mlm", self.mlm_head), self.discriminator.electra
        return tower, DISCRIMINATOR_STREAM, head, tower.embeddings.word_embeddings.weight, head.bias

    def made_for(self, objective: str, module: nn.Module | None) -> nn.Module:
        """The `module` that only `objective` needs.

        Raises:
            ValueError: the constructor was not told of the objective.
        """
        if module is None:
            objectives = (*self.objectives, objective)
            raise ValueError(f"objective {objective!r} needs a module of its own: objectives={objectives} makes it")
        return module

    def discriminate(
        self,
        input_ids: Tensor,
        packing: Packing,
        *,
        token_type_ids: Tensor | None = None,
        seed: Tensor | None = None,
        row_ids: Tensor | None = None,
    ) -> Tensor:
        """The discriminator's logits [T] for flat `input_ids` [T]; large means replaced. The tail's mean nothing.

        `token_type_ids` is flat; `seed` and `row_ids` are the dropout's, in training mode.
        """
        hidden_states = encode(
            self.discriminator.electra,
            FlatBatch(packing, seed, row_ids),
            input_ids=input_ids,
            token_type_ids=token_type_ids,
            stream=DISCRIMINATOR_STREAM,
        )
        return self.discriminator.discriminator_predictions(hidden_states)

    def save_pretrained(self, folder: str | Path) -> list[Path]:
        """Write the model so that `from_pretrained` gives it back and transformers loads its parts.

        `folder/generator` and, with an `mlm_head`, `folder/mlm` are checkpoints of ElectraForMaskedLM,
        `folder/discriminator` of ElectraForPreTraining, with its embeddings summed where they are a sum ("gdes").
        `folder/electra_fast.json` has the options, `folder/electra_fast.safetensors` the weights that are in no
        checkpoint, if there are any.

        Returns:
            The checkpoints' folders.
        """
        return save_joint(self, Path(folder))

    @classmethod
    def from_pretrained(cls, folder: str | Path) -> ElectraForJointPreTraining:
        """Load what `save_pretrained` wrote.

        Raises:
            FileNotFoundError: a part is missing. ValueError: it was written by a newer format, or a part is of another
                model.
        """
        return load_joint(cls, Path(folder))


def _check_objective(name: str) -> None:
    if name not in OBJECTIVES:
        raise ValueError(f"objective must be one of {', '.join(OBJECTIVES)}; got {name!r}")


def _check_configs(generator: ElectraConfig, discriminator: ElectraConfig, tie: str) -> None:
    fields = ["vocab_size"]
    if tie != "untied":
        fields += ["embedding_size", "max_position_embeddings", "type_vocab_size", "pad_token_id"]
    if tie == "all":
        fields += ["hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size"]
    for field in fields:
        ours, theirs = getattr(generator, field), getattr(discriminator, field)
        if ours != theirs:
            raise ValueError(f"tie={tie!r} needs one {field}; the generator has {ours}, the discriminator {theirs}")
