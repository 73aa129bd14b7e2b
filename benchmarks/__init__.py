"""What the operators and models cost, always as a ratio to plain PyTorch in the same run."""
