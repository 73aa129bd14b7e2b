"""ELECTRA models: the drop-in classes, what makes stock models fast, and the joint generator and discriminator."""

from electra_fast.models.electra import (
    ElectraConfig,
    ElectraForCausalLM,
    ElectraForMaskedLM,
    ElectraForMultipleChoice,
    ElectraForPreTraining,
    ElectraForQuestionAnswering,
    ElectraForSequenceClassification,
    ElectraForTokenClassification,
    ElectraModel,
)
from electra_fast.models.electric import pseudo_log_likelihood
from electra_fast.models.initialization import discriminator_sources, initialize_discriminator, initialize_weights
from electra_fast.models.joint import ElectraForJointPreTraining, JointPreTrainingOutput
from electra_fast.models.optimize import optimize, patch_transformers
from electra_fast.models.positions import resize_position_embeddings

__all__ = [
    "ElectraConfig",
    "ElectraForCausalLM",
    "ElectraForJointPreTraining",
    "ElectraForMaskedLM",
    "ElectraForMultipleChoice",
    "ElectraForPreTraining",
    "ElectraForQuestionAnswering",
    "ElectraForSequenceClassification",
    "ElectraForTokenClassification",
    "ElectraModel",
    "JointPreTrainingOutput",
    "discriminator_sources",
    "initialize_discriminator",
    "initialize_weights",
    "optimize",
    "patch_transformers",
    "pseudo_log_likelihood",
    "resize_position_embeddings",
]
