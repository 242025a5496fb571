"""Statistics over seeds: known values, infinite losses, too few runs, false verdicts by simulation."""

import math
from itertools import combinations

import numpy as np
import pytest
from scipy.stats import mannwhitneyu, rankdata

from bptt_studies.paper.statistics import (
    Improvement,
    exact_test,
    holm,
    improvement,
    mean_interval,
    quantile,
    share_at_or_below,
    spread,
    to_level,
    trailing_mean,
    verdicts,
)
from bptt_trainers.records.curve import CurvePoint

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
    assert improvement(better, worse) == Improvement(1.0, 1.0, 1.0, (5, 5), 2 / 252, 252)
    assert improvement(worse, better) == Improvement(0.0, 0.0, 0.0, (5, 5), 2 / 252, 252)
    assert verdicts([improvement(better, worse), improvement(worse, better)]) == ["yes", "no"]


@pytest.mark.parametrize("values", [[1.0, 2.0, 3.0, 4.0, 5.0], [2.0] * 5, [INF] * 6])
def test_between_equal_sets_it_is_open(values):
    found = improvement(values, values)
    assert found.probability == 0.5
    assert found.low <= 0.5 <= found.high
    assert verdicts([found]) == ["open"]


def test_ties_count_half_and_all_pairs_count():
    assert improvement([1.0, 2.0], [1.0, 3.0]).probability == (0.5 + 1 + 0 + 1) / 4


def test_the_two_sides_are_resampled_apart_from_each_other():
    found = improvement([1.0, 2.0, 3.0, 4.0, 5.0], [1.0, 2.0, 3.0, 4.0, 5.0])
    assert found.low < 0.2  # the same resamples on both sides would keep 0.5
    assert found.high > 0.8


def test_below_four_runs_a_side_there_is_no_verdict():
    assert verdicts([improvement([1.0] * 3, [2.0] * 3)]) == ["too few"]
    assert verdicts([improvement([1.0] * 4, [2.0] * 4)]) == ["yes"]
    assert spread([1.0] * 3).too_few
    assert not spread([1.0] * 4).too_few


def test_a_verdict_on_fewer_than_ten_runs_a_side_is_to_be_marked():
    assert improvement([1.0] * 9, [2.0] * 20).marked
    assert not improvement([1.0] * 10, [2.0] * 10).marked


# The exact test


@pytest.mark.parametrize("runs", [(5, 5), (10, 5), (3, 8), (20, 20)])
def test_without_ties_p_is_that_of_scipy(runs):
    generator = np.random.default_rng(2)
    one, other = (generator.lognormal(size=count) for count in runs)
    assert exact_test([(one, other)]) == pytest.approx(mannwhitneyu(one, other, method="exact").pvalue)


def by_enumeration(one, other):
    """Twice the share of all ways to choose the one side that have a sum of ranks as extreme, at its end."""
    ranks = rankdata([*one, *other])
    sums = np.array([ranks[list(chosen)].sum() for chosen in combinations(range(len(ranks)), len(one))])
    found = ranks[: len(one)].sum()
    return min(1.0, 2 * min((sums <= found + 1e-9).mean(), (sums >= found - 1e-9).mean()))


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ([1.0, 1.0, 2.0, INF], [2.0, 2.0, INF, INF, INF]),
        ([1.0, 2.0, 3.0, 4.0], [4.0, 4.0, 4.0, 5.0, INF]),
        ([INF, INF, INF], [INF, 1.0, 1.0, 1.0, 1.0]),
        ([2.0, 2.0], [2.0, 2.0, 2.0]),
    ],
)
def test_with_ties_p_is_that_of_all_ways_to_deal_the_runs(one, other):
    assert exact_test([(one, other)]) == pytest.approx(by_enumeration(one, other))
    assert exact_test([(other, one)]) == pytest.approx(by_enumeration(one, other))


def test_runs_that_all_diverged_are_equals():
    assert exact_test([([INF] * 10, [INF] * 12)]) == 1.0


def shares_won(one, other):
    """The share of pairs won in every way to deal the runs of a task, (ways,), the one found first."""
    runs = np.array([*one, *other])
    every = [list(chosen) for chosen in combinations(range(len(runs)), len(one))]
    sides = [(runs[chosen], np.delete(runs, chosen)) for chosen in every]
    return np.array([((x[:, None] < y).mean() + (x[:, None] == y).mean() / 2) for x, y in sides])


def test_over_tasks_runs_are_dealt_within_each_and_every_task_counts_alike():
    sides = [([1.0, 2.0, 4.0], [3.0, 4.0, 5.0]), ([0.1, 0.3], [0.2, INF, INF]), ([7.0], [6.0, 7.0])]
    first, second, third = (shares_won(one, other) for one, other in sides)
    means = (first[:, None, None] + second[:, None] + third) / 3
    found = means[0, 0, 0]
    expected = min(1.0, 2 * min((means <= found + 1e-9).mean(), (means >= found - 1e-9).mean()))
    assert exact_test(sides) == pytest.approx(expected)
    assert expected < 1.0


def test_no_outcome_has_a_smaller_p_than_one_side_wholly_better():
    found = improvement([1.0] * 6, [2.0] * 9)
    assert found.p == found.least_p == pytest.approx(2 / math.comb(15, 6))


# Many comparisons


def test_holms_correction_is_that_by_hand():
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.5, 0.9]) == pytest.approx([1.0, 1.0])
    assert holm([]).tolist() == []


@pytest.mark.parametrize("values", [[0.1, 1.2], [math.nan], [[0.1]]])
def test_what_are_no_p_values_is_named(values):
    with pytest.raises(ValueError, match="p_values must be numbers from 0 to 1 in a row"):
        holm(values)


def test_a_verdict_must_hold_among_all_that_are_made_together():
    sure = improvement(range(5), range(5, 10))
    assert verdicts([sure] * 6) == ["yes"] * 6  # 6 times 2/252 is below 0.05
    assert verdicts([sure] * 7) == ["too few"] * 7  # 7 times is not: no outcome with 5 runs a side could be


def test_comparisons_with_too_few_runs_do_not_weigh_on_the_others():
    large, small = improvement(range(10), range(10, 20)), improvement(range(5), range(5, 10))
    near = improvement([*range(9), 12.5], [9.5, *range(10, 19)])
    alone = verdicts([large, near])
    assert alone == ["yes", "yes"]
    assert verdicts([*[small] * 100_000, large, near])[-2:] == alone


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


def test_between_equals_at_most_five_in_a_hundred_comparisons_of_five_runs_have_a_verdict():
    def claims(generator):
        return verdicts([improvement(generator.normal(size=5), generator.normal(size=5))]) != ["open"]

    assert 0.01 <= share_of(claims, 1000) <= 0.05  # 3.2 % is what the exact test allows


def pages(count, comparisons, runs, planted=0, shift=0.0):
    """Verdicts on simulated pages: (count, comparisons). In the first `planted` the one method is better by a shift.

    Without ties p depends on the number of pairs won alone, so it is looked up.
    """
    generator = np.random.default_rng(11)
    better = np.where(np.arange(comparisons) < planted, shift, 0.0)[:, None]
    ours = generator.normal(size=(count, comparisons, runs)) - better
    theirs = generator.normal(size=(count, comparisons, runs))
    won = (ours[..., :, None] < theirs[..., None, :]).sum(axis=(-2, -1))
    found = {}
    for wanted in range(runs**2 + 1):
        full, rest = divmod(wanted, runs)  # of our runs so many win all pairs, one wins the rest, the others none
        placed = [*range(-full, 0), *[runs - rest - 0.5] * (full < runs), *range(runs, 2 * runs - full - 1)]
        p, ways = exact_test([(placed, range(runs))]), math.comb(2 * runs, runs)
        found[wanted] = Improvement(wanted / runs**2, 0.0, 1.0, (runs, runs), p, ways)
    return np.array([verdicts([found[wins] for wins in of_page]) for of_page in won.tolist()])


@pytest.mark.parametrize(("comparisons", "runs"), [(1, 10), (5, 5), (40, 10)])
def test_of_pages_on_which_all_are_equals_at_most_five_in_a_hundred_hold_a_verdict(comparisons, runs):
    made = pages(3000, comparisons, runs)
    assert (made != "open").any(axis=1).mean() <= 0.05


def test_a_planted_difference_is_found_and_no_equals_beside_it():
    made = pages(3000, 40, 10, planted=10, shift=2.5)
    assert (made[:, :10] == "yes").mean() > 0.9
    assert not (made[:, :10] == "no").any()
    assert (made[:, 10:] != "open").any(axis=1).mean() <= 0.05


# Curves


def test_a_run_that_never_reaches_a_level_counts_as_one_that_takes_forever():
    curves = [
        [CurvePoint(100 * i, float(i), loss) for i, loss in enumerate(losses)]
        for losses in ([2.0, 0.5, 0.05], [2.0, math.nan, 0.1], [2.0, 1.0, 0.2], [2.0, 0.05, 1.0])
    ]
    steps, seconds = to_level(curves, 0.1)
    assert steps.tolist() == [200.0, 200.0, INF, 100.0]
    assert seconds.tolist() == [2.0, 2.0, INF, 1.0]
    assert quantile(steps, 0.5) == 200.0
    assert quantile(to_level(curves, 0.06)[0], 0.5) == INF  # two of four: between 200 and never
    assert to_level([], 0.1)[0].tolist() == []


def test_a_curve_is_smoothed_over_the_points_before_as_many_as_there_are():
    assert trailing_mean([4.0, 2.0, 3.0, 7.0, INF], window=3).tolist() == [4.0, 3.0, 3.0, 4.0, INF]
    spike = np.full(100, 0.01)
    spike[60] = 3.01
    assert trailing_mean(spike).max() == pytest.approx(0.11)  # a thirtieth of its height


def test_over_tasks_with_unlike_numbers_of_runs_the_exact_test_takes_no_time():
    sizes = [(11, 10), (10, 9), (9, 7), (8, 10)]  # 110880 places in common: by np.convolve minutes
    sides = [(np.arange(n) - 100.0, np.arange(m) + 0.0) for n, m in sizes]
    assert exact_test(sides) == pytest.approx(2 / math.prod(math.comb(n + m, n) for n, m in sizes))
