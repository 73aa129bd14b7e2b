"""Pretraining recipes as YAML, found by name: `electra-fast pretrain --config small`."""
