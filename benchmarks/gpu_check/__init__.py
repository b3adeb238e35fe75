"""Correctness and speed of the CUDA kernels on a machine with a GPU; start with check.sh."""
