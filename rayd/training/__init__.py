"""Training of networks on images: students, observers, teachers and experts.

Parts of a training:

    training_run      one training from its first epoch to its last, with its checkpoint
    trainer           an epoch: batches, forward and backward passes, steps of the optimizer
    batches           order of the images, their views and mixes
    losses            losses under hard and soft labels
    teacher_labels    makes soft labels: the logits of teachers for a student's batches
    stored_labels     keeps soft labels in files and replays them; `packing` is their layout
    sets              images on a device, with their labels
    parallelism       what workers that train one network together exchange
    judging           accuracy on images that were not trained on
    progress          epochs that are done
    single_images     error for a batch that cannot be normalised

Trainings that are built from them:

    squeeze           observers and teachers on the real images
    experts           experts, whose weights after every epoch are kept (`trajectories`)
    fitting           a network on a few images, for analyses
    image_ranking     networks whose learning scores the real images

Students are trained by `rayd.evaluation.student`.
"""
