"""The embedded digits are scikit-learn's."""

import numpy as np
from sklearn.datasets import load_digits

from rayd.data.formats.digits import location, matches, open_source


def test_digits_are_those_of_scikit_learn() -> None:
    source = open_source(location())
    reference = load_digits()
    pixels = source.splits["train"].read(np.arange(1797))
    assert matches(location())
    assert source.class_names == tuple("0123456789")
    assert np.array_equal(source.splits["train"].labels, reference.target)
    assert pixels.shape == (1797, 1, 8, 8)
    assert np.array_equal(np.rint(pixels[:, 0] * (16 / 255)), reference.images)
    assert (pixels.min(), pixels.max()) == (0, 255)
