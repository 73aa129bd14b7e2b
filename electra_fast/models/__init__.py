"""ELECTRA models: the drop-in classes and the joint generator and discriminator."""

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
from electra_fast.models.initialization import initialize_weights
from electra_fast.models.joint import ElectraForJointPreTraining, JointPreTrainingOutput

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
    "initialize_weights",
]
