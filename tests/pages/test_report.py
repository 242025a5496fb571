"""`bptt report` tells of runs and comparisons in one file that loads nothing and shows what it was given as it is."""

import base64
import json
import re
import shutil
import subprocess
from html.parser import HTMLParser
from pathlib import Path

import pytest

from bptt_trainers.cli import main
from bptt_trainers.comparison.runs import member_folder
from bptt_trainers.comparison.summary import PLANNED
from bptt_trainers.pages.page import Chapter, Section, to_html
from bptt_trainers.pages.run_chapter import _commands, history_of
from bptt_trainers.records.curve import CurvePoint, curve_to_csv
from bptt_trainers.training.metrics import EpochMetrics

TINY = ("--train-states", "8", "--batch-size", "8", "--test-states", "8", "--env-option", "horizon=6")
VOID = {"meta", "img"}


class Reader(HTMLParser):
    """Text, images and links of a page whose elements are all closed in their order."""

    def __init__(self, page):
        super().__init__()
        self.open, self.text, self.images, self.sources, self.headings = [], [], [], [], []
        self.feed(page)
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        given = dict(attrs)
        self.sources += [given[name] for name in ("src", "href") if name in given]
        if tag == "img":
            self.images.append(given)
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open and self.open[-1] != "style":
            self.text.append(data)
        if self.open and self.open[-1] in ("h2", "h3", "summary"):
            self.headings.append(data)


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A run with diagnostics, one by reinforcement learning, and a comparison that lacks one of its runs."""
    folder = tmp_path_factory.mktemp("report")
    run, versus = str(folder / "a run"), folder / "versus"
    assert main(["train", "--epochs", "2", "--record", "diagnostics", "--out", run, *TINY]) == 0
    budget = ("--steps", "200", "--evaluations", "2", "--test-states", "8", "--record", "csv")
    method = ("--methods", "C", "PPO", "zero", "--override", "PPO.num_envs=2", "--override", "PPO.n_steps=50")
    options = ("--env-option", "horizon=6", "--override", "PPO.batch_size=50", "--seeds", "0", "1")
    assert main(["compare", *method, *budget, *options, "--out", str(versus)]) == 0
    (versus / "runs" / "C-seed1" / "curve.csv").unlink()
    return folder


@pytest.fixture(scope="module")
def alone(place):
    """The page of the run."""
    return told(place / "a run", "--out", place / "one.html")


@pytest.fixture(scope="module")
def several(place):
    """The page of both runs and the comparison."""
    runs = [place / "a run", place / "versus" / "runs" / "PPO-seed0"]
    return told(*runs, place / "versus", "--out", place / "several.html")


def told(*arguments):
    assert main(["report", *map(str, arguments)]) == 0
    return arguments[-1].read_text()


def words(page):
    return [text.strip() for text in Reader(page).text if text.strip()]


def test_a_run_is_told_with_its_losses_episodes_diagnosis_and_settings(place, alone):
    page = Reader(alone)
    assert page.headings[:4] == ["Loss", "Updates", "Episodes", "Diagnosis"]
    assert "Settings: training" in page.headings
    assert {f"{history_of(place / 'a run')[-1].test_loss:.3g}", "learning_rate"} <= set(page.text)
    lead = r"C on DiffCartPole-v0, horizon=6.*, judged by the final loss over 8 held-out start states\."
    assert re.search(lead, "".join(page.text))
    assert all(image["alt"] for image in page.images)
    assert "bptt evaluate" in "".join(page.text)
    assert "bptt resume" not in "".join(page.text)  # its step size has fallen to its end


@pytest.mark.parametrize(
    ("config", "said"),
    [
        ({"training": {"epochs": 5, "final_learning_rate": 0.0, "warmup": 0.0}, "own": {}}, "bptt resume a/b"),
        ({"training": {"epochs": 3, "final_learning_rate": None, "warmup": 0.0}, "own": {}}, "resume a/b --epochs 6"),
        ({"training": {"epochs": 3, "final_learning_rate": 0.0, "warmup": 0.0}, "own": {}}, None),
        ({"method": "PPO", "steps": 500}, "bptt resume a/b"),
        ({"method": "PPO", "steps": 300}, None),
    ],
)
def test_a_page_has_the_command_that_goes_on_with_a_run_where_it_can_go_on(config, said):
    nan = float("nan")
    found = _commands(Path("a/b"), config, EpochMetrics(3, 1.0, 1.0, nan, nan, nan, 0, 300, 1.0))
    assert found.splitlines()[:2] == ["bptt evaluate a/b", "bptt render a/b"]
    assert "resume" not in found if said is None else found.endswith(said)


def test_a_page_needs_no_other_file_and_loads_nothing(several):
    page = Reader(several)
    chapters = {f"#chapter-{i}" for i in (1, 2, 3, 4)}
    assert {source for source in page.sources if not source.startswith("data:")} == chapters
    for image in page.images:
        kind, _, code = image["src"].partition(",")
        drawn = base64.b64decode(code).decode()
        assert kind == "data:image/svg+xml;base64"
        assert not re.findall(r'href="(?!#|data:)[^"]*"', drawn)


def test_a_comparison_is_told_as_far_as_it_went(several):
    page, said = Reader(several), words(several)
    assert said[said.index("runs still missing") + 1] == "1"
    assert [one for one in page.headings if one.startswith("Episodes: ")] == [
        "Episodes: C, the run that ends lowest",
        "Episodes: PPO, the run that ends lowest",  # zero leaves no controller
    ]
    assert {"loss at the end", "PPO", "zero"} <= set(said)
    assert "A comparison on DiffCartPole-v0, horizon=6, judged by the final loss." in said
    assert said[said.index("settings.PPO.observe_time") + 1] == "always"
    note = next(one for one in said if one.startswith("Losses are means"))
    for beside in ("are trained together", "the simulator steps of a run are not 200 but:", "actions have no bounds"):
        assert beside in " ".join(note.split())


def test_runs_of_one_environment_are_told_side_by_side(several):
    page = Reader(several)
    assert page.headings[:3] == ["Side by side", "Runs", "Held-out loss"]
    assert page.headings.count("Updates") == 1  # reinforcement learning has no directions


def test_the_same_run_gives_the_same_page(place, alone):
    assert told(place / "a run", "--out", place / "again.html") == alone


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ((), "name at least one folder"),
        (("nowhere",), "nowhere is not a run folder: it has no config.json"),
        (("a", "a"), "RUN must be at least one, each once"),
        (("a", "--out", "page.pdf"), r"--out must end in \.html; got 'page\.pdf'"),
    ],
)
def test_what_cannot_be_told_is_said_in_words(arguments, said, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(["report", *arguments]) != 0
    assert re.search(said, capsys.readouterr().err)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "change", [{"steps": "x"}, {"steps": None}, {"methods": [1]}, {"seeds": ["0/../../a"]}, {"losses": [{}]}]
)
def test_a_damaged_comparison_is_said_in_words(place, tmp_path, capsys, change):
    stored = json.loads((place / "versus" / "comparison.json").read_text())
    (tmp_path / "comparison.json").write_text(json.dumps(stored | change))
    assert main(["report", str(tmp_path)]) == 1
    assert "comparison.json: it is damaged or of another version" in capsys.readouterr().err


def test_folders_of_any_name_are_told(place, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    for name in (r"a$\fr$", "b\udcff"):
        shutil.copytree(place / "a run", tmp_path / name)
    assert main(["report", r"a$\fr$", "b\udcff", "--out", "told.html"]) == 0


def test_a_run_named_twice_is_refused(place, capsys):
    assert main(["report", str(place / "a run"), f"{place}/versus/../a run"]) == 2
    assert "RUN must be at least one, each once" in capsys.readouterr().err


def test_of_a_folder_of_runs_and_comparisons_all_are_told(place):
    page = words(told(place, "--out", place / "all.html"))
    assert "2 runs and comparisons" in page
    assert {str(place / "a run"), str(place / "versus")} <= set(page)


def test_a_comparison_with_planners_says_what_they_know_and_one_of_an_earlier_version_has_no_notes(tmp_path):
    stored = {"methods": ["zero", "iLQR"], "seeds": [0], "losses": [0.1], "env": "DiffCartPole-v0", "env_options": {}}
    (tmp_path / "comparison.json").write_text(json.dumps(stored | {"settings": {"zero": {}, "iLQR": {}}, "steps": 9}))
    for method in stored["methods"]:
        folder = member_folder(tmp_path, method, 0)
        folder.mkdir(parents=True)
        (folder / "curve.csv").write_text(curve_to_csv([CurvePoint(0, 0.0, 0.5)]))
    said = words(told(tmp_path, "--out", tmp_path / "planned.html"))
    assert "A comparison on DiffCartPole-v0." in said
    assert any(one.endswith(PLANNED) for one in said)


def test_a_sweep_is_told_with_its_table_and_the_settings_in_which_cells_differ(tmp_path):
    cells = {"C, clip=none": {"clip": "none", "rule": "C"}, "C, clip=norm": {"clip": "norm", "rule": "C"}}
    stored = {"env": "DiffCartPole-v0", "seeds": [0], "settings": cells, "objective": "final", "notes": ["Beware."]}
    (tmp_path / "sweep.json").write_text(json.dumps(stored))
    losses = ",".join(f"{name}_loss{end}" for name in ("final", "best") for end in ("", "_low", "_high"))
    (tmp_path / "cells.csv").write_text(
        f"method,clip,runs,simulator_steps,seconds,{losses},climbed_back\nC,norm,3,10,1.5,0.123,0.1,0.2,0.1,0.1,0.1,1\n"
    )
    said = words(told(tmp_path, "--out", tmp_path / "sweep.html"))
    assert {"A sweep on DiffCartPole-v0, judged by the final loss.", "norm", "0.12 (0.1 to 0.2)", "1/3"} <= set(said)
    assert {"settings.C.rule", "settings.C, clip=none.clip", "settings.C, clip=norm.clip"} <= set(said)
    assert not {"settings.C.clip", "settings.C, clip=norm.rule"} & set(said)
    assert any(one.endswith("Beware.") for one in said)


def test_what_is_handed_in_is_shown_letter_for_letter():
    wild = '<script>alert("1")</script> & "quotes"'
    page = to_html(wild, [Chapter(wild, wild, {wild: wild}, [Section(wild, wild, rows=[{wild: wild}], command=wild)])])
    assert "<script" not in page
    assert Reader(page).text.count(wild) == 10


@pytest.mark.skipif(shutil.which("chromium") is None, reason="needs chromium")
def test_a_browser_shows_the_page(place, alone, tmp_path):
    flags = "--headless --no-sandbox --disable-gpu --no-first-run --disable-background-networking --disable-sync"
    command = ["chromium", *flags.split(), f"--user-data-dir={tmp_path}", "--dump-dom", f"file://{place}/one.html"]
    shown = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True).stdout
    page = Reader(re.sub(r"<!DOCTYPE[^>]*>", "", shown))
    assert "Diagnosis" in page.headings
    assert len(page.images) == 4
