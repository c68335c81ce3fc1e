"""Every statistic is a commutative monoid, agrees with a slow float64 reference, and is
differentiable.
"""

from collections.abc import Callable
from fractions import Fraction

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from rayd.statistics import (
    CharacteristicFunction,
    Covariance,
    LabelCorrelation,
    LocalCovariance,
    Moments,
    Statistic,
)

CLASSES = 4
DIMENSION = 3
SPREAD = 2
FREQUENCIES = torch.randn(
    5, DIMENSION, generator=torch.Generator().manual_seed(1), dtype=torch.float64
)

EMPTY: dict[str, Callable[[], Statistic]] = {
    "moments": lambda: Moments.empty(CLASSES, DIMENSION),
    "covariance": lambda: Covariance.empty(CLASSES, DIMENSION),
    "local_covariance": lambda: LocalCovariance.sized(CLASSES, SPREAD, DIMENSION),
    "label_correlation": lambda: LabelCorrelation.empty(CLASSES, DIMENSION),
    "characteristic_function": lambda: CharacteristicFunction.empty(CLASSES, FREQUENCIES),
}


def batch(seed: int, count: int, offset: float = 100.0) -> tuple[Tensor, Tensor]:
    """Feature vectors far from the origin, where sums of squares would cancel; class 3 never
    occurs.
    """
    draw = torch.Generator().manual_seed(seed)
    features = torch.randn(count, SPREAD, DIMENSION, generator=draw, dtype=torch.float64) + offset
    return features, torch.randint(0, CLASSES - 1, (count,), generator=draw)


def assert_equal(left: Statistic, right: Statistic) -> None:
    for name, tensor in left.state().items():
        torch.testing.assert_close(tensor, right.state()[name], rtol=1e-10, atol=1e-9)


@pytest.mark.parametrize("kind", EMPTY)
@given(
    seed=st.integers(0, 10_000),
    sizes=st.lists(st.integers(0, 7), min_size=1, max_size=5),
    order=st.randoms(),
)
@settings(max_examples=40, deadline=None)
def test_any_split_in_any_order_equals_the_whole(kind, seed, sizes, order):
    features, labels = batch(seed, sum(sizes))
    parts = [
        EMPTY[kind]().update(x, y)
        for x, y in zip(features.split(sizes), labels.split(sizes), strict=True)
    ]
    whole = EMPTY[kind]().update(features, labels)
    order.shuffle(parts)
    merged = EMPTY[kind]()
    for part in parts:
        merged = merged.merge(part)
    assert_equal(merged, whole)


@pytest.mark.parametrize("kind", EMPTY)
@given(seeds=st.tuples(*[st.integers(0, 10_000)] * 3), sizes=st.tuples(*[st.integers(0, 6)] * 3))
@settings(max_examples=30, deadline=None)
def test_merge_is_associative_commutative_and_empty_is_neutral(kind, seeds, sizes):
    a, b, c = (
        EMPTY[kind]().update(*batch(seed, size)) for seed, size in zip(seeds, sizes, strict=True)
    )
    assert_equal(a.merge(b).merge(c), a.merge(b.merge(c)))
    assert_equal(a.merge(b), b.merge(a))
    assert_equal(a.merge(EMPTY[kind]()), a)


@pytest.mark.parametrize("kind", EMPTY)
def test_update_equals_the_batch_statistic(kind):
    features, labels = batch(3, 20)
    assert_equal(EMPTY[kind]().update(features, labels), EMPTY[kind]().like(features, labels))


@pytest.mark.parametrize("kind", EMPTY)
def test_update_accumulates_in_double_whatever_comes_in(kind):
    features, labels = batch(3, 20)
    state = EMPTY[kind]().update(features.float(), labels).state()
    assert all(tensor.dtype == torch.float64 for tensor in state.values())


@pytest.mark.parametrize("kind", EMPTY)
def test_state_round_trip_and_rows(kind):
    statistic = EMPTY[kind]().update(*batch(5, 12))
    assert_equal(type(statistic).from_state(statistic.state()), statistic)
    assert_equal(statistic.rows(torch.arange(CLASSES)), statistic)


@pytest.mark.parametrize("kind", EMPTY)
@given(
    seed=st.integers(0, 10_000),
    groups=st.lists(st.sets(st.integers(0, CLASSES - 1), min_size=1), min_size=1, max_size=5),
    size=st.integers(1, 9),
)
@settings(max_examples=40, deadline=None)
def test_parts_of_some_classes_add_up_to_the_merge_of_whole_ones(kind, seed, groups, size):
    """Parts that hold the classes of their batch alone, put in their places, against parts of all
    classes, merged.
    """
    draw = torch.Generator().manual_seed(seed)
    total = None
    whole = EMPTY[kind]()
    for group in groups:
        places = torch.tensor(sorted(group))
        features = torch.randn(size, SPREAD, DIMENSION, generator=draw, dtype=torch.float64) + 100
        labels = torch.randint(0, len(places), (size,), generator=draw)
        part = EMPTY[kind]().rows(places).update(features, labels)
        assert all(
            len(t) == len(places) for name, t in part.state().items() if name not in part.shared
        )
        total = part.spread(places, CLASSES) if total is None else total.add(part, places)
        whole = whole.merge(EMPTY[kind]().update(features, places[labels]))
    assert_equal(total, whole)


@pytest.mark.parametrize("kind", EMPTY)
def test_adding_touches_no_other_class(kind):
    statistic = EMPTY[kind]().update(*batch(5, 12))
    places = torch.tensor([2, 3])
    before = statistic.rows(torch.tensor([0, 1])).state()
    features, labels = batch(6, 12)
    assert (
        statistic.add(EMPTY[kind]().rows(places).update(features, labels % 2), places) is statistic
    )
    after = statistic.rows(torch.tensor([0, 1]))
    for name in before.keys() - after.shared:
        assert torch.equal(before[name], after.state()[name])


@pytest.mark.parametrize("kind", EMPTY)
def test_gradcheck(kind):
    features, labels = batch(0, 6, offset=0.5)

    def derived(x: Tensor) -> Tensor:
        statistic = EMPTY[kind]().like(x, labels)
        parts = [
            tensor
            for name, tensor in statistic.state().items()
            if name not in ("count", "frequencies")
        ]
        return torch.cat([part.flatten() for part in parts])

    assert torch.autograd.gradcheck(derived, features.requires_grad_())


def test_moments_against_torch():
    features, labels = batch(1, 50)
    moments = Moments.empty(CLASSES, DIMENSION).update(features, labels)
    for c in range(CLASSES - 1):
        mine = features[labels == c].reshape(-1, DIMENSION)
        torch.testing.assert_close(moments.mean[c], mine.mean(0))
        torch.testing.assert_close(moments.variance[c], mine.var(0, unbiased=False))
    assert moments.count[CLASSES - 1] == 0
    assert torch.all(moments.mean[CLASSES - 1] == 0)


def test_moments_of_updates_are_exact():
    """Slow sums over the samples, one by one, in exact rational arithmetic."""
    features, labels = batch(7, 9)
    moments = Moments.empty(CLASSES, DIMENSION)
    for x, y in zip(features.split(2), labels.split(2), strict=True):
        moments.update(x, y)
    for c in range(CLASSES - 1):
        rows = [
            [Fraction(float(x[k])) for k in range(DIMENSION)]
            for sample in features[labels == c]
            for x in sample
        ]
        for k in range(DIMENSION):
            mean = sum(row[k] for row in rows) / len(rows)
            variance = sum((row[k] - mean) ** 2 for row in rows) / len(rows)
            assert float(moments.mean[c, k]) == pytest.approx(float(mean), rel=1e-14)
            assert float(moments.variance[c, k]) == pytest.approx(float(variance), rel=1e-12)


def test_within_variance_is_the_average_variance_of_a_sample():
    features, labels = batch(1, 50)
    moments = (
        Moments.empty(CLASSES, DIMENSION)
        .update(features[:20], labels[:20])
        .update(features[20:], labels[20:])
    )
    spatial = features.var(1, unbiased=False)
    for c in range(CLASSES - 1):
        torch.testing.assert_close(
            moments.within_variance[c], spatial[labels == c].mean(0), rtol=1e-12, atol=1e-12
        )
        between = features[labels == c].mean(1).var(0, unbiased=False)
        torch.testing.assert_close(
            moments.variance[c], moments.within_variance[c] + between, rtol=1e-12, atol=1e-12
        )
    torch.testing.assert_close(
        moments.pooled().within_variance[0], spatial.mean(0), rtol=1e-12, atol=1e-12
    )
    assert torch.all(moments.within_variance[CLASSES - 1] == 0)


def test_pooled_variance_holds_the_part_between_classes():
    features, labels = batch(1, 50)
    features = features + 10 * labels[:, None, None]
    everything = features.reshape(-1, DIMENSION)
    moments = Moments.empty(CLASSES, DIMENSION).update(features, labels).pooled()
    torch.testing.assert_close(moments.mean[0], everything.mean(0))
    torch.testing.assert_close(moments.variance[0], everything.var(0, unbiased=False))
    covariance = Covariance.empty(CLASSES, DIMENSION).update(features, labels).pooled()
    torch.testing.assert_close(covariance.covariance[0], everything.T.cov(correction=0))


def test_covariance_against_torch():
    features, labels = batch(2, 50)
    covariance = Covariance.empty(CLASSES, DIMENSION).update(features, labels)
    for c in range(CLASSES - 1):
        mine = features[labels == c].reshape(-1, DIMENSION)
        torch.testing.assert_close(covariance.covariance[c], mine.T.cov(correction=0))


@pytest.mark.parametrize("count", [0, 1, 9])
def test_covariance_of_all_is_that_of_one_class(count):
    """The way without groups against the way with them, values and first and second gradients."""
    features, _ = batch(2, count, offset=0.5)
    slow = Covariance.of(features, torch.zeros(count, dtype=torch.long), 1)
    assert_equal(Covariance.of_all(features), slow)
    assert_equal(Covariance.empty(1, DIMENSION).like(features, torch.full((count,), 7)), slow)

    def parts(x: Tensor) -> tuple[Tensor, Tensor]:
        found = Covariance.of_all(x)
        return found.mean, found.scatter

    if count:
        assert torch.autograd.gradcheck(parts, features.requires_grad_())
        assert torch.autograd.gradgradcheck(parts, features)


def test_label_correlation_takes_soft_labels():
    features, labels = batch(4, 30)
    soft = torch.rand(30, CLASSES, dtype=torch.float64)
    correlation = LabelCorrelation.empty(CLASSES, DIMENSION).update(features, soft).correlation
    expected = sum(
        torch.outer(soft[i], features[i, s]) for i in range(30) for s in range(SPREAD)
    ) / (30 * SPREAD)
    torch.testing.assert_close(correlation, expected)
    hard = LabelCorrelation.of(features, labels, CLASSES)
    one_hot = torch.nn.functional.one_hot(labels, CLASSES)
    assert_equal(hard, LabelCorrelation.of(features, one_hot, CLASSES))


def test_characteristic_function_against_complex_exponentials():
    features, labels = batch(6, 30, offset=0.0)
    phi = CharacteristicFunction.empty(CLASSES, FREQUENCIES).update(features, labels)
    for c in range(CLASSES - 1):
        mine = features[labels == c].reshape(-1, DIMENSION)
        expected = torch.exp(1j * (mine @ FREQUENCIES.T)).mean(0)
        torch.testing.assert_close(torch.complex(phi.real[c], phi.imaginary[c]), expected)


def test_characteristic_functions_at_other_frequencies_do_not_merge():
    left = CharacteristicFunction.empty(CLASSES, FREQUENCIES)
    with pytest.raises(ValueError, match="different frequencies"):
        left.merge(CharacteristicFunction.empty(CLASSES, FREQUENCIES + 1))


def test_local_covariance_is_the_covariance_without_what_differs_from_place_to_place():
    features, labels = batch(4, 40)
    local = LocalCovariance.sized(CLASSES, SPREAD, DIMENSION).update(features, labels)
    everywhere = Covariance.empty(CLASSES, DIMENSION).update(features, labels)
    for c in range(CLASSES - 1):
        places = features[labels == c].mean(0) - everywhere.mean[c]
        between = places.T @ places
        torch.testing.assert_close(local.covariance[c], SPREAD * everywhere.covariance[c] - between)


@pytest.mark.parametrize("kind", EMPTY)
def test_indices_of_any_integers_are_taken_and_others_refused(kind):
    """In every way in which a batch comes in: an index out of range is neither the last class nor
    no class.
    """
    features, labels = batch(0, 9)
    expected = EMPTY[kind]().update(features, labels)
    for integers in (torch.int32, torch.uint8):
        assert_equal(EMPTY[kind]().update(features, labels.to(integers)), expected)
        assert_equal(EMPTY[kind]().like(features, labels.to(integers)), expected)
    unfit = [labels.float(), labels > 0, labels[:, None], labels[:8], labels[:1], labels - 1]
    for others in (*unfit, labels + CLASSES):
        for way in ("update", "like"):
            with pytest.raises(ValueError, match="abels"):
                getattr(EMPTY[kind](), way)(features, others)


@pytest.mark.parametrize("kind", EMPTY)
def test_features_of_another_shape_are_refused(kind):
    features, labels = batch(0, 9)
    with pytest.raises((ValueError, RuntimeError)):
        EMPTY[kind]().update(features[..., :1], labels)
    for unfit in (features[:, 0], features.unsqueeze(1)):
        with pytest.raises(ValueError, match="shape"):
            EMPTY[kind]().like(unfit, labels)


@pytest.mark.parametrize("statistic", [Moments, Covariance, LocalCovariance, LabelCorrelation])
def test_half_precision_is_counted_in_full(statistic):
    """bfloat16 cannot count beyond 256, and float16 cannot add up 65,504 of anything."""
    features = torch.full((600, 3, 2), 100.0)
    labels = torch.zeros(600, dtype=torch.long)
    expected = statistic.of(features, labels, 2)
    for half in (torch.bfloat16, torch.float16):
        found = statistic.of(features.to(half), labels, 2)
        for name, tensor in expected.state().items():
            assert torch.equal(found.state()[name], tensor), name


@pytest.mark.parametrize("kind", EMPTY)
def test_other_numbers_of_classes_do_not_merge(kind):
    """One class would be broadcast, and counted in all of the others."""
    whole = EMPTY[kind]().update(*batch(0, 9))
    for classes in ([0], [0, 1]):
        with pytest.raises(ValueError, match=f"of the same classes.* Got 4 and {len(classes)} of"):
            whole.merge(whole.rows(torch.tensor(classes)))


def test_covariance_of_all_counts_half_precision_in_full():
    features = torch.full((600, 3, 2), 100.0)
    expected = Covariance.of_all(features).state()
    for half in (torch.bfloat16, torch.float16):
        for name, tensor in Covariance.of_all(features.to(half)).state().items():
            assert torch.equal(tensor, expected[name]), name


def test_frequencies_of_another_dimension_are_refused():
    features, labels = batch(0, 9)
    with pytest.raises(ValueError, match=r"\(M, 3\)\. Got \(5, 2\) instead"):
        CharacteristicFunction.of(features, labels, CLASSES, FREQUENCIES[:, :2])


def test_batches_of_inference_mode_are_added():
    features, labels = batch(0, 9)
    expected = Covariance.empty(CLASSES, DIMENSION).update(features, labels)
    with torch.inference_mode():
        found = Covariance.empty(CLASSES, DIMENSION).update(features.clone(), labels.clone())
    assert_equal(found, expected)


@pytest.mark.parametrize("kind", EMPTY)
def test_features_on_another_device_are_refused(kind):
    features, labels = batch(0, 9)
    with pytest.raises(ValueError, match=r"on 'cpu' must be there.*'\.to\(features\.device\)'"):
        EMPTY[kind]().update(features.to("meta"), labels)
