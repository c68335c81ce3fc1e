"""Evaluation of a set: students are trained on it and tested, and compared with baselines."""
