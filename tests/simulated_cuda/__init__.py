"""A CUDA device simulated on the CPU, and runs of every method on it."""
