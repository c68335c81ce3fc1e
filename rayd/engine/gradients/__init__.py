"""Where the gradient of the synthetic set comes from: one module a kind of source.

    base                  a source hands out the tasks of a step, and turns results into a gradient
    feature_matching      terms that compare real and synthetic images through observers
    trajectory_matching   students that are to end where experts do
    model_pool            networks that are trained alongside the synthesis

Sources are in the synthesizer. Gradients are computed on the workers, one task each
(`rayd.engine.observer_tasks.ObserverTasks.gradient`, `trajectory_matching.TrajectoryWorker`), and
summed in the synthesizer: over the tasks of a source by its `update`, over the sources by
`rayd.engine.synthesizer`.
"""
