"""Statistics over seeds: known values, infinite losses, too few runs."""

import math

import numpy as np
import pytest

from bptt_trainers.reproduction.statistics import (
    Improvement,
    improvement,
    mean_interval,
    quantile,
    share_at_or_below,
    spread,
)

INF = math.inf


def test_median_and_quartiles_are_those_by_hand():
    of = spread([5.0, 1.0, 4.0, 2.0, 3.0])
    assert (of.runs, of.lower, of.median, of.upper, of.mean) == (5, 2.0, 3.0, 4.0, 3.0)
    assert (quantile([1.0, 2.0, 3.0, 10.0], 0.25), quantile([1.0, 2.0, 3.0, 10.0], 0.75)) == (1.75, 4.75)


@pytest.mark.parametrize("share", [0.0, 0.1, 0.25, 0.5, 0.9, 1.0])
def test_quantiles_of_finite_values_are_those_of_numpy(share):
    values = np.random.default_rng(0).lognormal(size=17)
    assert quantile(values, share) == pytest.approx(np.quantile(values, share))


def test_an_infinite_loss_moves_what_it_reaches_and_nothing_else():
    of = spread([1.0, 2.0, 3.0, 4.0, INF])
    assert (of.lower, of.median, of.upper, of.mean) == (2.0, 3.0, 4.0, INF)
    assert math.isfinite(of.mean_low)  # a third of the resamples do not hold it
    assert of.mean_high == INF
    assert quantile([1.0, INF], 0.5) == quantile([INF, INF], 0.5) == INF
    assert mean_interval([INF, INF]) == (INF, INF)


def test_the_interval_of_the_mean_is_that_of_a_normal_sample_and_always_the_same():
    values = 10.0 + np.random.default_rng(1).normal(size=400)
    low, high = mean_interval(values)
    half = 1.96 * values.std() / math.sqrt(len(values))
    assert (low, high) == pytest.approx((values.mean() - half, values.mean() + half), abs=0.1 * half)
    assert mean_interval(values) == (low, high)


def test_a_single_run_has_an_interval_without_width():
    assert mean_interval([0.5]) == (0.5, 0.5)


def test_a_share_counts_losses_at_the_threshold():
    assert share_at_or_below([0.1, 0.2, INF, 0.3], 0.2) == 0.5


def test_of_disjoint_sets_one_is_surely_better():
    better, worse = [1.0, 2.0, 3.0, 4.0, 5.0], [6.0, 7.0, 8.0, 9.0, INF]
    assert improvement(better, worse) == Improvement(1.0, 1.0, 1.0, (5, 5))
    assert improvement(worse, better) == Improvement(0.0, 0.0, 0.0, (5, 5))
    assert (improvement(better, worse).verdict, improvement(worse, better).verdict) == ("yes", "no")


@pytest.mark.parametrize("values", [[1.0, 2.0, 3.0, 4.0, 5.0], [2.0] * 5, [INF] * 6])
def test_between_equal_sets_it_is_open(values):
    found = improvement(values, values)
    assert found.probability == 0.5
    assert found.low <= 0.5 <= found.high
    assert found.verdict == "open"


def test_ties_count_half_and_all_pairs_count():
    assert improvement([1.0, 2.0], [1.0, 3.0]).probability == (0.5 + 1 + 0 + 1) / 4


def test_the_two_sides_are_resampled_apart_from_each_other():
    found = improvement([1.0, 2.0, 3.0, 4.0, 5.0], [1.0, 2.0, 3.0, 4.0, 5.0])
    assert found.low < 0.2  # the same resamples on both sides would keep 0.5
    assert found.high > 0.8


def test_below_five_runs_a_side_there_is_no_verdict():
    found = improvement([1.0] * 4, [2.0] * 9)
    assert found.too_few
    assert found.verdict == "too few"
    assert not improvement([1.0] * 5, [2.0] * 5).too_few
    assert spread([1.0] * 4).too_few
    assert not spread([1.0] * 5).too_few


@pytest.mark.parametrize("values", [[], [1.0, math.nan], [[1.0]]])
def test_what_are_no_losses_is_named(values):
    with pytest.raises(ValueError, match="values must be one or more losses in a row, none of them NaN"):
        spread(values)


# How far the intervals hold what they promise, by simulation: of few runs they are too narrow, and the page says so


def share_of(event, count=400):
    generator = np.random.default_rng(7)
    return sum(event(generator) for _ in range(count)) / count


@pytest.mark.parametrize(("runs", "least", "most"), [(5, 0.78, 0.89), (20, 0.89, 0.97)])
def test_the_coverage_of_the_interval_of_the_mean(runs, least, most):
    def holds_the_mean(generator):
        low, high = mean_interval(generator.normal(size=runs))
        return low <= 0.0 <= high

    assert least <= share_of(holds_the_mean) <= most


@pytest.mark.parametrize(("runs", "least", "most"), [(5, 0.05, 0.14), (10, 0.02, 0.09)])
def test_the_share_of_verdicts_between_equals(runs, least, most):
    def claims(generator):
        return improvement(generator.normal(size=runs), generator.normal(size=runs)).verdict != "open"

    assert least <= share_of(claims, 200) <= most
