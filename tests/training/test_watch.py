"""The bar over runs that others train."""

import pytest

from bptt_trainers.training import watch
from bptt_trainers.training.metrics import EpochMetrics, to_csv
from bptt_trainers.training.watch import steps_done, watching

NAN = float("nan")


def row(epoch):
    return EpochMetrics(epoch, 1.0, 1.0, NAN, NAN, NAN, 0, 64 * epoch, 0.1 * epoch)


def test_the_steps_of_a_run_are_those_of_its_last_whole_line(tmp_path):
    path = tmp_path / "metrics.csv"
    assert steps_done(path) == 0
    for text, steps in (
        ("", 0),
        ("epoch,train", 0),
        (to_csv([row(0)]), 0),
        (to_csv([row(0), row(1)]), 64),
        (to_csv([row(0), row(1)]) + "2,0.5,", 64),
        ("damaged\nin,some\nway\n", 0),
    ):
        path.write_text(text)
        assert steps_done(path) == steps


@pytest.mark.parametrize("progress", [True, False])
def test_the_bar_follows_the_folders_and_ends_full(tmp_path, monkeypatch, capsys, progress):
    monkeypatch.setattr(watch, "EVERY", 0.01)
    runs = {tmp_path / "one": 128, tmp_path / "two": 128}
    (tmp_path / "one").mkdir()
    (tmp_path / "one" / "metrics.csv").write_text(to_csv([row(0), row(1)]))
    with watching("2 runs", runs, progress) as finish:
        for folder in runs:
            finish(folder)
    said = capsys.readouterr().err
    assert ("64.0/256" in said) == progress
    assert ("256/256" in said) == progress
