"""Checkpoints of others: from Google's ELECTRA in TensorFlow 1 to the format of transformers."""

from electra_fast.conversion.google import Converted, convert, convert_variables, render

__all__ = ["Converted", "convert", "convert_variables", "render"]
