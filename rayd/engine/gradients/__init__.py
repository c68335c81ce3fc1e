"""Sources of the synthetic set's gradient: one module per kind of source.

    base                  a source creates the tasks of a step, and combines results into a gradient
    feature_matching      terms that compare real and synthetic images through observers
    trajectory_matching   students whose final parameters should match those of experts
    model_pool            networks that are trained alongside the synthesis

Sources are part of the synthesizer. Gradients are computed on the workers, one task each
(`rayd.engine.observer_tasks.ObserverTasks.gradient`, `trajectory_matching.TrajectoryWorker`), and
summed in the synthesizer: over the tasks of a source by its `update`, over the sources by
`rayd.engine.synthesizer`.
"""
