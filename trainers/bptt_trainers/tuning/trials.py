"""One run of a trial: a method with some settings and a tuning seed, judged on the validation states as it learns."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from bptt_envs.contract import ContractError
from bptt_trainers.comparison.methods import BPTT, RL, Budget, get_method
from bptt_trainers.host.user_code import raised_by_user
from bptt_trainers.records.curve import Curve, Report
from bptt_trainers.training.callbacks import Reporting
from bptt_trainers.training.metrics import learning_curve
from bptt_trainers.training.run import NonFiniteError
from bptt_trainers.training.start_states import validation_states
from bptt_trainers.training.trainer import Trainer

FIRST_SEED = 1000
"""Tuning seeds are those from here on; tables are made with others."""

FIRST_CONFIRMING_SEED = 2000
"""Seeds with which the best trials are run again are those from here on."""

CONFIRMING = 10
"""How many of them there are."""


class RefusedError(ValueError):
    """A method does not take the settings of a trial, or does not get through a run with them."""


def learn(
    method: str, budget: Budget, settings: Mapping[str, Any], seed: int, report: Report, *, compile: bool
) -> Curve:
    """Train in memory and return the learning curve, on the validation states.

    Args:
        method: its name.
        budget: on what and for how long; its count of held-out states is that of the validation states.
        settings: of the method, in full.
        seed: of the run.
        report: called at each evaluation; returns False to end the run.
        compile: whether an update rule's programs are compiled, if they can be.

    Raises:
        RefusedError: if the settings are refused, or the run fails with them.
        ContractError: if the system is wrong, which no settings mend.
    """
    trained = get_method(method)
    try:
        if isinstance(trained, BPTT):
            return _learn_by_rule(trained, budget, {**settings, "compile": compile and trained.compiles}, seed, report)
        assert isinstance(trained, RL)
        return _learn_by_rl(trained, budget, settings, seed, report)
    except (NonFiniteError, ValueError, ArithmeticError) as error:  # such as stable-baselines3's of NaN
        if raised_by_user(error) or isinstance(error, ContractError):
            raise
        raise RefusedError(str(error)) from error


def _learn_by_rule(method: BPTT, budget: Budget, settings: Mapping[str, Any], seed: int, report: Report) -> Curve:
    config = method.config(budget, settings, seed=seed)
    env = method.make_env(budget, settings)
    judged = validation_states(env.system, budget.test_states)
    return learning_curve(Trainer(env, config=config, callbacks=[Reporting(report)], test_states=judged).fit())


def _learn_by_rl(method: RL, budget: Budget, settings: Mapping[str, Any], seed: int, report: Report) -> Curve:
    from bptt_trainers.rl.config import RLConfig
    from bptt_trainers.rl.sb3 import train_rl  # slow to import, and not always needed

    config = RLConfig(
        method=method.method,
        env=budget.env,
        env_options=budget.env_options,
        steps=min(budget.steps, settings["max_steps"]),
        seed=seed,
        evaluations=budget.evaluations,
        test_states=budget.test_states,
        overrides=settings,
    )
    states = validation_states(config.judged_system(), budget.test_states)
    return train_rl(config, progress=False, judged_states=states, report=report).curve
