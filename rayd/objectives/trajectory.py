r"""Trajectory matching: a student trained on synthetic images should reach the parameters of an
expert trained on real ones.

George Cazenavette, Tongzhou Wang, Antonio Torralba, Alexei A. Efros and Jun-Yan Zhu, "Dataset
Distillation by Matching Training Trajectories" (MTT), CVPR 2022. From an expert's parameters after
epoch t, a student takes N steps of gradient descent:

    theta_0 = theta*_t        theta_{i+1} = theta_i - alpha g_i        g_i = grad_theta CE(f(theta_i, A_i(X_i)), Y_i)

    loss = || theta_N - theta*_{t+M} ||^2 / || theta*_t - theta*_{t+M} ||^2

    theta*  parameters of an expert, one vector (P,)      X_i, Y_i  the images (B, C, H, W) of step i and their labels
    f       the network, logits (B, classes)              A_i       augmentation, redrawn in every step (DSA)
    alpha   step size of the student, learned             M         epochs of the expert that the N steps stand for

The loss is 1 if the student has not come closer to its target, 0 if it has reached it. Its gradient
with respect to images, labels and step size goes through all N steps, and is computed in one of
three ways:

`full`      backpropagation through the unrolled steps, as in MTT: all their graphs are in memory at
            once.
`reverse`   the same gradient with the memory of one step. The steps are taken without graph, keeping
            the N vectors theta_i. Then, from last to first, the graph of one step is rebuilt, and
            the adjoint lambda (P,) is propagated back through it:

                lambda_N = d loss / d theta_N              lambda_i = lambda_{i+1} - alpha (d g_i / d theta_i)^T lambda_{i+1}
                d loss / d X_i = -alpha (d g_i / d X_i)^T lambda_{i+1}, and likewise for labels
                d loss / d alpha = -sum_i <g_i, lambda_{i+1}>

            As g_i is rebuilt with its graph, all three take one backward pass through that graph.
`truncated` TESLA (Justin Cui, Ruochen Wang, Si Si and Cho-Jui Hsieh, "Scaling Up Dataset
            Distillation to ImageNet-1K with Constant Memory", ICML 2023). With G = sum_i g_i and
            D = || theta_0 - theta* ||^2,

                d loss / d X_i = (2 / D) (alpha (theta* - theta_0) + alpha^2 G)^T d g_i / d X_i

            which is the sweep above with lambda_i = lambda_N throughout: the effect of X_j on theta_i
            for j < i is neglected. So it is **not** the gradient of the loss, except for N = 1. It
            saves the propagation through the parameters.

**Paper and released code differ.** TESLA's code doubles a tuple of gradients instead of the
gradients in it, so it computes half of the printed formula, which is used here: with TESLA's
published settings, halve the step size of the images.

MTT's step size is unconstrained, and may become negative. Here, its logarithm is learned
(`rayd.synthetic.learned_step_size`); this module takes the step size itself.

Labels are class indices or rows of probabilities. DATM (Ziyao Guo et al., "Towards Lossless Dataset
Distillation via Difficulty-Aligned Trajectory Matching", ICLR 2024) learns logits of labels and has
CE(f, softmax(label)): the softmax is applied by the synthetic set, as training on it takes rows of
probabilities.

Use `reverse`, unless memory does not matter: `full` is somewhat faster, as it needs each step's
forward pass only once.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, NamedTuple

import torch
from torch import Generator, Tensor
from torch.autograd.function import Function, once_differentiable
from torch.nn.functional import cross_entropy

from rayd.data.augmentation import DSA, Operation
from rayd.transfer import upload

Student = Callable[[Tensor, Tensor], Tensor]
"""From parameters (P,) and images (B, C, H, W) to logits (B, classes); see `rayd.networks.flat`."""
View = Callable[[Tensor], Tensor]
"""Augmentation of images (B, C, H, W), differentiable, the same in every call."""
InnerLoss = Callable[[Tensor, Tensor], Tensor]
"""From logits (B, classes) and labels, indices (B,) or rows (B, classes), to the scalar that the
student minimises.
"""
Way = Literal["reverse", "full", "truncated"]
"""Ways to compute the gradient; see the head of this module."""


@dataclass(frozen=True, eq=False)
class InnerStep:
    """The batch of one step of a student."""

    rows: Tensor
    """Indices of the images, int64 (B,), without duplicates."""
    operations: tuple[Operation, ...] = ()
    """Their augmentation: operations one after another, each differentiable and the same in every
    call.
    """

    def view(self, images: Tensor) -> Tensor:
        """Augment images (B, C, H, W)."""
        for operation in self.operations:
            images = operation(images)
        return images


class Segment(NamedTuple):
    """A part of an expert's trajectory."""

    start: Tensor
    """Start of the student: the expert's parameters (P,) after epoch t."""
    target: Tensor
    """Its target: those after epoch t + M."""

    def loss(self, end: Tensor) -> Tensor:
        """Squared distance from the target, as a fraction of that at the start; a scalar."""
        return (end - self.target).square().sum() / (self.start - self.target).square().sum()


def trajectory_loss(
    student: Student,
    segment: Segment,
    steps: Sequence[InnerStep],
    images: Tensor,
    labels: Tensor,
    step_size: Tensor,
    *,
    way: Way = "reverse",
    inner_loss: InnerLoss = cross_entropy,
) -> Tensor:
    """Distance of a student from an expert after its steps: a scalar, differentiable once in images,
    labels and step size.

    It is computed in the precision and on the device of the vectors. With `reverse` and
    `truncated`, the gradient is computed in the backward pass, so without one, the loss costs only
    the steps.

    Args:
        student: the network.
        segment: start and target of the student.
        steps: its batches, step by step.
        images: images of the synthetic set, normalised (n, C, H, W).
        labels: class indices (n,), or rows of probabilities (n, classes), which may be learned.
        step_size: step size of the student, a positive scalar, which may be learned.
        way: algorithm for the gradient.
        inner_loss: loss that the student minimises.
    """
    task = _Task(student, segment, _on_device(steps, images.device), inner_loss)
    if way == "full":
        return segment.loss(task.unrolled(images, labels, step_size))
    loss: Tensor = _LossBySweep.apply(task, way == "truncated", images, labels, step_size)
    return loss


def useful(loss: Tensor, limit: float | None = None) -> Tensor:
    """Whether losses are usable, elementwise: finite, and not above a limit (DATM skips steps above
    about 1).

    >>> losses = torch.tensor([0.9, 1.1, float("nan")])
    >>> useful(losses, 1.0).tolist(), useful(losses).tolist()
    ([True, False, False], [True, True, False])
    """
    return loss.isfinite() if limit is None else loss.isfinite() & (loss <= limit)


def inner_steps(
    count: int,
    batch_size: int | None,
    steps: int,
    size: tuple[int, int],
    draws: Generator,
    augmentation: DSA | None = None,
) -> tuple[InnerStep, ...]:
    """Draw the batches of a student, and their augmentation.

    As in the released code of MTT, batches are taken from a permutation of the images, and from a
    new one once it is used up; the last batch of a permutation may be smaller. (The code takes
    batches from the end of the permutation, so that the smaller one comes first.) One operation of
    the augmentation is drawn per step, with separate parameters for every image.

    Args:
        count: number of images of the synthetic set, n.
        batch_size: number of images of a step; all of them, in order, if it is None or at least n.
        steps: number of steps, N.
        size: (height, width) of the images.
        draws: a private generator on the CPU.
        augmentation: augmentation of the images, or None.

    >>> drawn = inner_steps(5, 2, 4, (8, 8), torch.Generator().manual_seed(0))
    >>> [len(step.rows) for step in drawn], sorted(torch.cat([step.rows for step in drawn[:3]]).tolist())
    ([2, 2, 1, 2], [0, 1, 2, 3, 4])
    """
    waiting: list[Tensor] = []
    drawn = []
    for _ in range(steps):
        if batch_size is None or batch_size >= count:
            rows = torch.arange(count)
        else:
            waiting = waiting or list(
                torch.split(torch.randperm(count, generator=draws), batch_size)
            )
            rows = waiting.pop(0)
        operations = () if augmentation is None else augmentation.draw(draws, len(rows), *size)
        drawn.append(InnerStep(rows, operations))
    return tuple(drawn)


def _on_device(steps: Sequence[InnerStep], device: torch.device) -> tuple[InnerStep, ...]:
    """Move the rows of the steps to a device, in a single copy."""
    if device.type == "cpu" or not steps:
        return tuple(steps)
    rows = upload(torch.cat([step.rows for step in steps]), device)
    parts = torch.split(rows, [len(step.rows) for step in steps])
    return tuple(replace(step, rows=part) for step, part in zip(steps, parts, strict=True))


@dataclass(frozen=True, eq=False)
class _Task:
    """A student with its segment and its batches."""

    student: Student
    segment: Segment
    steps: tuple[InnerStep, ...]
    inner_loss: InnerLoss

    def gradient(
        self, step: InnerStep, vector: Tensor, images: Tensor, labels: Tensor, *, create_graph: bool
    ) -> Tensor:
        """g_i (P,) for the images (B, C, H, W) of a step, optionally with its graph."""
        loss = self.inner_loss(self.student(vector, step.view(images)), labels)
        return torch.autograd.grad(loss, vector, create_graph=create_graph)[0]

    def unrolled(self, images: Tensor, labels: Tensor, step_size: Tensor) -> Tensor:
        """theta_N (P,), with the graph of all steps."""
        vector = _leaf(self.segment.start)
        with torch.enable_grad():
            for step in self.steps:
                rows = step.rows
                vector = vector - step_size * self.gradient(
                    step, vector, images[rows], labels[rows], create_graph=True
                )
        return vector

    def vectors(self, images: Tensor, labels: Tensor, step_size: Tensor) -> list[Tensor]:
        """theta_0 to theta_N, each (P,), without graph."""
        vectors = [self.segment.start]
        for step in self.steps:
            rows = step.rows
            with torch.enable_grad():
                gradient = self.gradient(
                    step, _leaf(vectors[-1]), images[rows], labels[rows], create_graph=False
                )
            vectors.append(torch.addcmul(vectors[-1], gradient, step_size, value=-1))
        return vectors


class _LossBySweep(Function):
    """The loss, whose backward pass is the sweep of `reverse` and `truncated`."""

    @staticmethod
    def forward(
        ctx: Any, task: _Task, truncated: bool, images: Tensor, labels: Tensor, step_size: Tensor
    ) -> Tensor:
        vectors = task.vectors(images.detach(), labels.detach(), step_size.detach())
        ctx.task = task
        ctx.truncated = truncated
        ctx.vectors = vectors
        ctx.save_for_backward(images, labels, step_size)
        return task.segment.loss(vectors[-1])

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, outer: Tensor) -> tuple[Tensor | None, ...]:
        images, labels, step_size = (tensor.detach() for tensor in ctx.saved_tensors)
        sweep = _Sweep(ctx.task, ctx.truncated, images, labels, step_size)
        sweep.run(ctx.vectors, outer)
        return None, None, sweep.by_images, sweep.by_labels, sweep.by_step_size


class _Sweep:
    """Gradients of the loss, accumulated from the last step to the first, one graph at a time."""

    def __init__(
        self, task: _Task, truncated: bool, images: Tensor, labels: Tensor, step_size: Tensor
    ):
        self._task = task
        self._truncated = truncated
        self._images = images
        self._labels = labels
        self._step_size = step_size
        self.by_images = torch.zeros_like(images)
        self.by_labels = torch.zeros_like(labels) if labels.is_floating_point() else None
        self.by_step_size = torch.zeros_like(step_size)

    def run(self, vectors: Sequence[Tensor], outer: Tensor) -> None:
        """Accumulate the gradients.

        Args:
            vectors: theta_0 to theta_N.
            outer: gradient of the outer loss with respect to this one, a scalar.
        """
        start, target = self._task.segment
        adjoint = outer * 2 * (vectors[-1] - target) / (start - target).square().sum()
        for index in reversed(range(len(self._task.steps))):
            # the gradient with respect to the start is not used
            with_adjoint = index > 0 and not self._truncated
            change = self._back(self._task.steps[index], vectors[index], adjoint, with_adjoint)
            adjoint = adjoint if change is None else adjoint + change

    def _back(
        self, step: InnerStep, vector: Tensor, adjoint: Tensor, with_adjoint: bool
    ) -> Tensor | None:
        """Add the contribution of one step.

        Args:
            step: its batch.
            vector: theta_i.
            adjoint: lambda_{i+1}.
            with_adjoint: whether lambda_i is needed.

        Returns:
            lambda_i - lambda_{i+1} (P,), if it is needed.
        """
        rows = step.rows
        vector = _leaf(vector)
        images = _leaf(self._images[rows])
        labels = self._labels[rows]
        inputs = [images]
        if self.by_labels is not None:
            inputs.append(labels.requires_grad_())
        if with_adjoint:
            inputs.append(vector)
        with torch.enable_grad():
            gradient = self._task.gradient(step, vector, images, labels, create_graph=True)
        self.by_step_size -= (gradient.detach() @ adjoint).view_as(self._step_size)
        # a gradient may be constant in one of them, e.g. that of a network that consists of a bias
        # does not depend on the images
        gradients = torch.autograd.grad(
            gradient, inputs, -self._step_size * adjoint, materialize_grads=True
        )
        self.by_images.index_add_(0, rows, gradients[0])
        if self.by_labels is not None:
            self.by_labels.index_add_(0, rows, gradients[1])
        return gradients[-1] if with_adjoint else None


def _leaf(tensor: Tensor) -> Tensor:
    """A detached tensor of the same numbers, to differentiate by."""
    return tensor.detach().requires_grad_()
