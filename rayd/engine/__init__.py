"""Execution of runs: stages on worker pools, from a recipe to a report.

A run, from the outside in:

    distill                 reads the data, checks everything, and starts the driver
    driver                  the stages of a run, one after another
    job                     what stages share: recipe, method, data, store
    stage, stages           what a stage is, and which there are; how they use workers
    work_queue              each item is computed by one of several runs
    evaluate                the evaluate stage of a set that is finished
    interim                 the same for a set in the middle of its synthesis
    milestones              where a sweep interrupts the synthesis

The synthesis:

    stages.blocks           the outer loop, over blocks
    synthesizer             the inner loop, over steps
    gradients               where a step's gradient comes from
    statistic_aggregation   merges what workers measure of the real images
    checkpoint              files of unfinished blocks
    pixel_range             a warning about pixels that left the range of real ones

On a worker:

    worker                  the tasks of all stages
    observer_tasks          those on its networks: gradients, statistics
    observer                a single network with hooks
    worker_networks         the networks that it keeps
    replicas                its copies of the synthetic set
    task_draws              what is drawn at random for a task
    ascent                  steps uphill, of images and of weights
    student_trainer         students
    network_ids             names of networks that all processes know

Workers:

    pool                    the same tasks in this process or on workers
    open_pool               opens the pool that `resources` describes
    on_ray                  workers on Ray
    gpu_sharing             several tasks on a GPU
    wire                    how tensors are sent
    memory, peak            out-of-memory errors; peak memory

Arithmetic and hardware:

    arithmetic              resolves `precision: auto` and `layout: auto`
    stored_precisions       results that other hardware left, where that is accepted
    uncompiled              keeps torch's compiler out

Costs, before a run and for its time left:

    plan                    work, time, memory and disk by stage
    preflight               checks before long work
    stage_cost              what a stage would compute
    costs                   counts it, by running the run's code on placeholders
    counting, kernels       operations of a computation
    speeds, timing          their time on this machine
    progress_forecast       time left, for the progress display
    storage                 bytes of a set's teachers or labels

Files and what is shown:

    store                   results that runs share
    rundir, runlog, status  directory, log and status of a run
    reading                 the data, with progress
    set_writer, card        the distilled set and its card
    run                     a finished run
    progress, notebook      progress in a terminal; in a notebook
    spectra_of_run          spectra of a finished set, drawn by `rayd.layer_spectra`
    doctor                  checks of the installation
"""
