"""Triton kernels, one file per operator. Importing this package imports nothing; importing a kernel imports Triton."""
