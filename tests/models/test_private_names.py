"""What is relied on of transformers without being promised by it; a test that fails here names what moved."""

from __future__ import annotations

import inspect

import pytest
import torch
import transformers
from torch import nn
from transformers import BertConfig, ElectraConfig, PreTrainedModel, Trainer, masking_utils, modeling_layers
from transformers.models.bert import modeling_bert
from transformers.models.electra import modeling_electra
from transformers.utils import output_capturing

from electra_fast.models.swap import SWAPS

SIZES = {
    "vocab_size": 20,
    "hidden_size": 8,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "intermediate_size": 12,
    "max_position_embeddings": 6,
}
FAMILIES = {"Electra": modeling_electra, "Bert": modeling_bert}


def tower_of(family: str) -> PreTrainedModel:
    config = ElectraConfig(embedding_size=4, **SIZES) if family == "Electra" else BertConfig(**SIZES)
    return getattr(FAMILIES[family], f"{family}Model")(config)


def parameters(function: object) -> list[str]:
    return list(inspect.signature(function).parameters)


# The names that our code reads, each with the class of what is found there.
PARTS = {
    "embeddings.word_embeddings": "Embedding",
    "embeddings.token_type_embeddings": "Embedding",
    "embeddings.position_embeddings": "Embedding",
    "embeddings.LayerNorm": "LayerNorm",
    "embeddings.dropout": "Dropout",
    "embeddings.position_ids": "Tensor",
    "encoder": "{family}Encoder",
    "encoder.layer": "ModuleList",
    "encoder.layer.0": "{family}Layer",
    "encoder.layer.0.chunk_size_feed_forward": "int",
    "encoder.layer.0.attention": "{family}Attention",
    "encoder.layer.0.attention.self": "{family}SelfAttention",
    "encoder.layer.0.attention.self.query": "Linear",
    "encoder.layer.0.attention.self.key": "Linear",
    "encoder.layer.0.attention.self.value": "Linear",
    "encoder.layer.0.attention.self.dropout": "Dropout",
    "encoder.layer.0.attention.self.scaling": "float",
    "encoder.layer.0.attention.self.attention_head_size": "int",
    "encoder.layer.0.attention.output": "{family}SelfOutput",
    "encoder.layer.0.attention.output.dense": "Linear",
    "encoder.layer.0.attention.output.LayerNorm": "LayerNorm",
    "encoder.layer.0.attention.output.dropout": "Dropout",
    "encoder.layer.0.intermediate": "{family}Intermediate",
    "encoder.layer.0.intermediate.dense": "Linear",
    "encoder.layer.0.intermediate.intermediate_act_fn": "GELUActivation",
    "encoder.layer.0.intermediate.intermediate_act_fn.act": "builtin_function_or_method",
    "encoder.layer.0.output": "{family}Output",
    "encoder.layer.0.output.dense": "Linear",
    "encoder.layer.0.output.LayerNorm": "LayerNorm",
    "encoder.layer.0.output.dropout": "Dropout",
}


@pytest.mark.parametrize("path", PARTS)
@pytest.mark.parametrize("family", FAMILIES)
def test_parts_of_a_tower(family, path):
    found = tower_of(family)
    for name in path.split("."):
        found = found[int(name)] if name.isdigit() else getattr(found, name)
    assert type(found).__name__ in (
        PARTS[path].format(family=family),
        "Buffer" if path.endswith("position_ids") else "",
    )


@pytest.mark.parametrize("family", FAMILIES)
def test_a_tower_has_no_other_parts(family):
    """A part that transformers adds to its computation would be left out of ours."""

    def parts(module: nn.Module) -> set[str]:
        return {name for name, _ in module.named_children()}

    tower = tower_of(family)
    assert parts(tower) == {"embeddings", "encoder", {"Electra": "embeddings_project", "Bert": "pooler"}[family]}
    embeddings = {"word_embeddings", "token_type_embeddings", "position_embeddings", "LayerNorm", "dropout"}
    assert parts(tower.embeddings) == embeddings
    assert parts(tower.encoder) == {"layer"}
    layer = tower.encoder.layer[0]
    assert parts(layer) == {"attention", "intermediate", "output"}
    assert parts(layer.attention) == {"self", "output"}
    assert parts(layer.attention.self) == {"query", "key", "value", "dropout"}
    assert parts(layer.intermediate) == {"dense", "intermediate_act_fn"}
    assert parts(layer.attention.output) == parts(layer.output) == {"dense", "LayerNorm", "dropout"}


def test_parts_of_electras_heads():
    config = ElectraConfig(embedding_size=4, **SIZES)
    generator = modeling_electra.ElectraForMaskedLM(config)
    assert parameters(type(generator.generator_predictions).forward) == ["self", "generator_hidden_states"]
    assert {name for name, _ in generator.generator_predictions.named_children()} == {
        "activation",
        "LayerNorm",
        "dense",
    }
    assert type(generator.generator_lm_head) is nn.Linear
    assert modeling_electra.ElectraForMultipleChoice(config).sequence_summary.summary_type == "first"


TOWER_ARGUMENTS = (
    *("self", "input_ids", "attention_mask", "token_type_ids", "position_ids", "inputs_embeds"),
    *("encoder_hidden_states", "encoder_attention_mask", "past_key_values", "use_cache", "kwargs"),
)


@pytest.mark.parametrize("family", FAMILIES)
def test_signatures_of_forward(family):
    module = FAMILIES[family]
    assert parameters(getattr(module, f"{family}Model").forward) == list(TOWER_ARGUMENTS)
    assert parameters(getattr(module, f"{family}Embeddings").forward) == [
        *("self", "input_ids", "token_type_ids", "position_ids", "inputs_embeds", "past_key_values_length")
    ]
    layer = parameters(getattr(module, f"{family}Layer").forward)
    assert layer[:3] == ["self", "hidden_states", "attention_mask"]
    assert layer[-1] == "kwargs"
    for name, cls in vars(module).items():
        if name.startswith(f"{family}For") and isinstance(cls, type) and issubclass(cls, PreTrainedModel):
            arguments = parameters(cls.forward)
            assert "attention_mask" in arguments, name  # the names that heads.py looks for
            assert "labels" in arguments or "start_positions" in arguments, name


@pytest.mark.parametrize("stock", SWAPS, ids=lambda stock: stock.__name__)
def test_our_forwards_take_what_transformers_take(stock):
    theirs, ours = parameters(stock.forward), parameters(SWAPS[stock].forward)
    assert ours[: len(theirs) - 1] == theirs[:-1] or ours[: len(theirs)] == theirs or "flat" in ours
    if issubclass(stock, PreTrainedModel):
        annotation = inspect.signature(SWAPS[stock].forward).parameters["kwargs"].annotation
        (accepted,) = annotation.__args__  # Unpack[TransformersKwargs], an object and not a string
        assert "output_attentions" in accepted.__annotations__


def test_every_model_class_of_transformers_has_a_fast_one():
    for family, module in FAMILIES.items():
        models = {
            name
            for name, cls in vars(module).items()
            if isinstance(cls, type) and issubclass(cls, PreTrainedModel) and name.startswith(family)
        }
        swapped = {stock.__name__ for stock in SWAPS}
        assert models - {f"{family}PreTrainedModel"} <= swapped


def test_the_attention_implementation_of_a_config():
    config = ElectraConfig(embedding_size=4, **SIZES)
    assert config._attn_implementation is None
    assert modeling_electra.ElectraModel(config).config._attn_implementation == "sdpa"
    config._attn_implementation_internal = "eager"
    assert config._attn_implementation == "eager"
    for name in ("chunk_size_feed_forward", "is_decoder", "output_attentions", "output_hidden_states", "return_dict"):
        assert hasattr(config, name), name


@pytest.mark.parametrize("name", ["create_bidirectional_mask", "create_causal_mask"])
def test_functions_that_make_masks(name):
    arguments = parameters(getattr(masking_utils, name))
    assert {"config", "inputs_embeds", "attention_mask", "past_key_values", "and_mask_function"} <= {*arguments}
    config = ElectraConfig(embedding_size=4, **SIZES, is_decoder="causal" in name)
    config._attn_implementation = "sdpa"
    mask = getattr(masking_utils, name)(
        config=config,
        inputs_embeds=torch.empty(1, 3, 1),
        attention_mask=None,
        past_key_values=None,
        and_mask_function=lambda batch, head, query, key: (query > 0) == (key > 0),
    )
    expected = torch.tensor([[1, 0, 0], [0, 1, 1], [0, 1, 1]]).bool()
    assert torch.equal(mask[0, 0], expected.tril() if "causal" in name else expected)


def test_the_registry_of_outputs_that_can_be_recorded():
    registry = output_capturing._CAN_RECORD_REGISTRY
    assert isinstance(registry, dict)
    model = tower_of("Electra")
    assert dict.get(registry, str(type(model))) == type(model)._can_record_outputs  # by the class as a string
    assert set(type(model)._can_record_outputs) >= {"hidden_states", "attentions"}


def test_hooks_that_record_outputs_are_transformers_own():
    model = tower_of("Electra")
    model(torch.ones(1, 2, dtype=torch.long), output_hidden_states=True)
    (hook,) = model.encoder.layer[0]._forward_hooks.values()
    assert hook.__module__.startswith("transformers.")  # layers.py tells them from users' hooks by this


def test_gradient_checkpointing_wraps_the_call_of_a_layer():
    assert issubclass(modeling_electra.ElectraLayer, modeling_layers.GradientCheckpointingLayer)
    assert issubclass(modeling_bert.BertLayer, modeling_layers.GradientCheckpointingLayer)
    call = modeling_layers.GradientCheckpointingLayer.__call__
    assert parameters(call) == ["self", "args", "kwargs"]  # flat, stream and rows get through to our forward
    assert modeling_layers.GradientCheckpointingLayer.gradient_checkpointing is False


def test_trainer_reads_accepts_loss_kwargs():
    assert "accepts_loss_kwargs" in inspect.getsource(Trainer)


def test_generative_models_are_known_by_their_bases():
    assert "GenerationMixin" in inspect.getsource(PreTrainedModel.can_generate)


def test_the_module_of_transformers_is_a_lazy_one():
    # optimize.py finds the others of its name by this class; each looks names up once and keeps what it found.
    assert type(transformers).__name__ == "_LazyModule"
    module = type(transformers)("transformers", transformers.__file__, {"models.electra": ["ElectraModel"]})
    assert "ElectraModel" not in vars(module)
    assert "ElectraModel" in dir(module)


def test_private_names_of_torch():
    assert hasattr(torch._C._functorch, "peek_interpreter_stack")
    assert torch._C._functorch.peek_interpreter_stack() is None
    assert not nn.modules.module._has_any_global_hook()
    module = nn.Linear(1, 1)
    for name in ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks", "_modules"):
        assert isinstance(getattr(module, name), dict), name
    assert isinstance(module._parameters, dict)
