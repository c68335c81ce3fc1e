"""Evaluation of a set: students trained on it and tested, reported together with baselines."""
