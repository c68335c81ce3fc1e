"""The stages of a run, one a module; see `rayd.engine.stage`.

Beside them: `student_tasks`, what the evaluate stage trains, and `blocks`, the steps of the
synthesize stage.
"""
