"""Pretraining: `config` (settings, recipes), `train` (the loop), its optimizer, checkpoints, evaluation and metrics."""
