"""`bptt optima`: the best plan of each task, and how far above it tuned methods end."""

import csv

import pytest

from bptt_studies.optima.command import beside
from bptt_studies.optima.tasks import SOUGHT
from bptt_trainers.cli import main
from bptt_trainers.planning.plan import planner_settings
from bptt_trainers.records.tables import read_lines


@pytest.mark.parametrize("name", SOUGHT)
def test_every_task_is_planned_by_planners_that_there_are(name):
    assert SOUGHT[name].methods
    for method, settings in SOUGHT[name].methods.items():
        planner_settings(method, settings)


def test_a_task_is_planned_anew_and_others_stay(tmp_path, capsys):
    line = {"task": "cart-pole-1", "env_id": "DiffCartPole-v0", "options": "", "method": "iLQR", "states": 64}
    line |= {"mean": 0.25, "standard_error": 0, "median": 0, "largest": 0, "iterations": 1, "seconds": 1}
    with (tmp_path / "optima.csv").open("w") as file:
        writer = csv.DictWriter(file, line)
        writer.writeheader()
        writer.writerow(line)
    (tmp_path / "tuned-cart-pole-1.csv").write_text("method,final_loss\nC,0.5\nC,0.75\nC,1.0\nPPO,2\n")
    assert main(["optima", "--tasks", "lqr", "--states", "2", "--out", str(tmp_path)]) == 0
    text = capsys.readouterr().out
    assert "| cart-pole-1 | iLQR | 64 | 0.25 | 0.75 (+0.5) | – | 2 (+1.8) |" in text
    lines = read_lines(tmp_path / "optima.csv")
    assert [one["task"] for one in lines] == ["cart-pole-1", "lqr"]
    assert beside(lines, tmp_path)[1]["planner"] == "iLQR"


def test_a_task_that_there_is_not_is_refused_in_words(tmp_path, capsys):
    assert main(["optima", "--tasks", "lqg", "--out", str(tmp_path)]) == 2
    assert "--tasks must be one of" in capsys.readouterr().err
