"""The joint model of a run, and how one tower begins where another is."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch.utils.checkpoint import checkpoint
from transformers.activations import ACT2FN
from transformers.modeling_layers import GradientCheckpointingLayer

from electra_fast.data.corpus import CorpusMeta
from electra_fast.models import ElectraConfig, ElectraForJointPreTraining, discriminator_sources, initialize_weights
from electra_fast.pretraining.config import ConfigError, PretrainConfig
from electra_fast.pretraining.precision import MasterWeights


def build_model(config: PretrainConfig, corpus: CorpusMeta) -> ElectraForJointPreTraining:
    """The joint model of a run, freshly initialised from torch's default generator; vocabulary and special tokens are
    those of the corpus.

    Raises:
        ConfigError: an activation that transformers has not.
    """
    model, objective = config.model, config.objective
    if model.hidden_act not in ACT2FN:
        raise ConfigError(f"model.hidden_act {model.hidden_act!r} is none of {', '.join(sorted(ACT2FN))}")
    shared = {
        "vocab_size": corpus.vocab_size,
        "max_position_embeddings": model.max_position_embeddings,
        "type_vocab_size": model.type_vocab_size,
        "hidden_act": model.hidden_act,
        "layer_norm_eps": model.layer_norm_eps,
        "hidden_dropout_prob": model.hidden_dropout_prob,
        "attention_probs_dropout_prob": model.attention_probs_dropout_prob,
        "initializer_range": model.initializer_range,
        "pad_token_id": corpus.pad_token_id,
    }
    sizes = ("embedding_size", "hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size")
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
        objectives=_objectives(config),
    )
    initialize_weights(joint, std=model.initializer_range, glorot=model.glorot)
    return joint


def _objectives(config: PretrainConfig) -> list[str]:
    """What the model will be asked for: those that need parts of their own make them."""
    towers = {"alternate": ("generator", "discriminator")}
    named = [name for phase in config.phases for name in towers.get(phase.objective, (phase.objective,))]
    return list(dict.fromkeys(named))


def compiled(model: ElectraForJointPreTraining, config: PretrainConfig) -> Callable[..., Any]:
    """The model through torch.compile, as CUDA graphs where the run asks for them."""
    if not config.training.cuda_graphs:
        return torch.compile(model, dynamic=not config.data.fixed_shapes)
    forward = torch.compile(model, dynamic=False, mode="reduce-overhead")

    def replayed(*args: Any, **kwargs: Any) -> Any:
        torch.compiler.cudagraph_mark_step_begin()  # what the last step returned may be written over
        return forward(*args, **kwargs)

    return replayed


def checkpoint_activations(model: ElectraForJointPreTraining) -> None:
    """Let each layer compute its activations again in the backward pass instead of keeping them.

    Dropout follows seeds and names, so the second time gives the same bits. Not transformers' own switch: that one puts
    a hook on the embeddings, which then take the slow path.
    """
    for layer in model.modules():
        if isinstance(layer, GradientCheckpointingLayer):
            layer.gradient_checkpointing = True
            layer._gradient_checkpointing_func = partial(checkpoint, use_reentrant=False)


@torch.no_grad()
def copy_generator_to_discriminator(
    model: ElectraForJointPreTraining, masters: MasterWeights, optimizer: torch.optim.Optimizer
) -> int:
    """Let the discriminator's encoder start from the generator's; see `discriminator_sources`.

    Moments of what was copied begin at zero again. Shared parameters stay as they are.

    Returns:
        How many parameters were copied.
    """
    named = dict(masters.named_parameters())
    sources = discriminator_sources(model)
    for name, source in sources.items():
        target = named[name]
        target.copy_(torch.zeros(()) if source is None else named[source])
        for moment in ("exp_avg", "exp_avg_sq"):
            optimizer.state[target][moment].zero_()
    masters.give_weights()
    return len(sources)
