"""Judging a set: students trained on it, tested once, and reported beside the baselines."""
