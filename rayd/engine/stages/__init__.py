"""The stages of a run, one per module; see `rayd.engine.stage`.

Also here: `student_tasks`, the students of the evaluate stage; `initial_set`, the synthetic set
before the first step; and `blocks`, the loop of the synthesize stage.
"""
