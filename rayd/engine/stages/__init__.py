"""The stages of a run, one a module; see `rayd.engine.stage`.

Beside them: `student_tasks`, what the evaluate stage trains; `initial_set`, the synthetic set before
the first step; and `blocks`, the loop of the synthesize stage.
"""
