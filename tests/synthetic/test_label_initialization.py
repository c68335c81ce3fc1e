"""Labels start where experts that are right put them."""

import torch

from rayd.synthetic.label_initialization import agreed_logits, random_logits


def test_the_mean_is_over_the_experts_that_are_right():
    labels = torch.tensor([0, 1, 2])
    first = torch.tensor([[5.0, 0, 1], [9, 2, 0], [0, 0, 3]])
    second = torch.tensor([[3.0, 2, 1], [0, 4, 0], [1, 0, 0]])
    third = torch.tensor([[0.0, 2, 1], [8, 4, 0], [1, 0, 2]])
    logits, known = agreed_logits(torch.stack([first, second, third]), labels)
    assert known.tolist() == [True, True, True]
    assert logits.tolist() == [[4, 1, 1], [0, 4, 0], [0.5, 0, 2.5]]


def test_images_that_no_expert_knows_are_named():
    logits, known = agreed_logits(torch.tensor([[[1.0, 0], [1, 0]]]), torch.tensor([0, 1]))
    assert known.tolist() == [True, False]
    assert logits.tolist() == [[1, 0], [0, 0]]


def test_random_logits_depend_on_their_draws_alone():
    draws = [random_logits(300, 10, torch.Generator().manual_seed(seed)) for seed in (0, 0, 1)]
    assert torch.equal(draws[0], draws[1])
    assert not torch.equal(draws[0], draws[2])
    assert abs(float(draws[0].std()) - 1) < 0.05
