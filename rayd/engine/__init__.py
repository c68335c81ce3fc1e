"""Execution of runs: worker pools, observers, the synthesizer, stages, and the driver."""
