"""Statistics over tasks: known values, runs that diverged, intervals, what is refused."""

import math

import numpy as np
import pytest
from scipy.stats import trim_mean

from bptt_studies.paper.across_tasks import (
    average_improvement,
    improvement_over_tasks,
    interquartile_mean,
    profile,
    scores,
)

INF = math.inf


def drawn(tasks=4, runs=10, seed=0):
    return np.random.default_rng(seed).normal(0.5, 0.2, size=(tasks, runs))


def test_scores_are_linear_in_orders_of_magnitude_between_the_references():
    found = scores(
        {"a": [2.0, 0.2, 0.02, 0.002, 0.0002], "b": [8.0, 4.0, 2.0, 1.0, 0.5]}, {"a": (2.0, 0.002), "b": (4.0, 1.0)}
    )
    assert found[0] == pytest.approx([0.0, 1 / 3, 2 / 3, 1.0, 4 / 3])
    assert found[1] == pytest.approx([0.0, 0.0, 0.5, 1.0, 1.5])


def test_a_run_that_diverged_scores_0_and_a_loss_of_0_is_finite():
    found = scores({"a": [INF, 5.0, 0.0]}, {"a": (2.0, 0.002)})
    assert found[0, :2].tolist() == [0.0, 0.0]
    assert 1.0 < found[0, 2] < INF


@pytest.mark.parametrize(
    ("losses", "references", "message"),
    [
        ({"a": [1.0]}, {}, "references must have every task; got none of 'a'"),
        ({"a": [1.0]}, {"a": (0.1, 2.0)}, r"worst > best > 0, for each task; got \(0.1, 2.0\)"),
        ({"a": [1.0]}, {"a": (INF, 2.0)}, "worst > best > 0"),
        ({"a": [1.0], "b": [1.0, 2.0]}, {"a": (2.0, 1.0), "b": (2.0, 1.0)}, "as many runs each; got {'a': 1, 'b': 2}"),
        ({}, {}, "one or more tasks"),
        ({"a": [math.nan]}, {"a": (2.0, 1.0)}, "none of them NaN"),
    ],
)
def test_what_cannot_be_scored_is_named(losses, references, message):
    with pytest.raises(ValueError, match=message):
        scores(losses, references)


def test_the_interquartile_mean_is_that_of_the_middle_half_of_all_runs():
    assert interquartile_mean([[0.0, 1.0, 2.0, 3.0], [4.0, 5.0, 6.0, 100.0]]).value == (2 + 3 + 4 + 5) / 4
    values = drawn()
    found = interquartile_mean(values)
    assert found.value == pytest.approx(trim_mean(values.ravel(), 0.25))
    assert found.low < found.value < found.high
    assert interquartile_mean(values) == found


def test_resampling_keeps_every_task_at_its_weight():
    apart = np.repeat([[0.0], [1.0], [2.0]], 6, axis=1)  # runs of a task are equal: resampled within it nothing changes
    found = interquartile_mean(apart)
    assert found.low == found.value == found.high


def test_the_interval_of_the_interquartile_mean_holds_the_truth_as_often_as_it_says():
    found = [interquartile_mean(drawn(3, 10, seed)) for seed in range(40)]
    assert 0.8 <= np.mean([one.low <= 0.5 <= one.high for one in found]) <= 1.0


def test_a_profile_is_the_share_of_runs_above_each_score():
    found = profile([[0.0, 0.5, 1.0, 1.5], [0.0, 0.0, 0.0, 2.0]], [0.0, 0.5, 1.75, 3.0])
    assert found.share.tolist() == [0.5, 0.375, 0.125, 0.0]
    assert (found.low <= found.share).all()
    assert (found.share <= found.high).all()
    assert found.high[-1] == 0.0
    assert found.low[0] < found.high[0]


def test_wholly_better_on_every_task_has_the_least_p_there_is():
    found = improvement_over_tasks({"a": [1.0] * 3, "b": [2.0] * 2}, {"a": [4.0, 5.0], "b": [5.0] * 4})
    assert (found.probability, found.runs, found.ways) == (1.0, (5, 6), 10 * 15)
    assert found.p == found.least_p == pytest.approx(2 / 150)


def test_the_average_improvement_is_the_mean_over_tasks_whatever_their_runs():
    of = {"a": [1.0, 2.0], "b": [INF] * 3}
    over = {"b": [INF] * 2, "a": [3.0, 1.0, 4.0, 5.0, 6.0]}
    assert average_improvement(of, over).value == pytest.approx((8.5 / 10 + 0.5) / 2)
    sure = average_improvement({"a": [1.0] * 5}, {"a": [2.0] * 10})
    assert (sure.value, sure.low, sure.high) == (1.0, 1.0, 1.0)


def test_methods_of_other_tasks_are_not_compared():
    with pytest.raises(ValueError, match="over must be of the same tasks as of, a; got b"):
        average_improvement({"a": [1.0]}, {"b": [1.0]})


@pytest.mark.parametrize("values", [[], [1.0], [[INF]], [[math.nan]]])
def test_what_are_no_scores_is_named(values):
    with pytest.raises(ValueError, match=r"scores must be finite, \(tasks, runs\)"):
        interquartile_mean(values)
