"""Checkpoints of others: from Google's ELECTRA in TensorFlow 1 to the format of transformers."""

from electra_fast.conversion.convert import Converted, convert, convert_variables

__all__ = ["Converted", "convert", "convert_variables"]
