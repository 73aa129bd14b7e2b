"""Tests of the C++ kernels that need no Python in them."""
