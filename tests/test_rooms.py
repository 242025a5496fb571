"""The rooms of the two packages and the ways between them, read off the imports: docs say which is for what."""

import ast
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

import bptt_trainers

ROOT = Path(__file__).parents[1]

# Each imports only from those before it
ROOMS = (
    "host",
    "records",
    "directions",
    "controllers",
    "planning",
    "training",
    "presets",
    "rl",
    "figures",
    "comparison",
    "tuning",
    "analysis",
    "pages",
    "commands",
    "cli",
    "__main__",
)
STUDIES = ("benchmarks", "scaling", "toys", "lqr", "paper", "optima", "contact", "estimators")

MAY_IMPORT = {  # of the other rooms; what is not named here, all before it
    "host": set(),
    "records": {"host"},
    "directions": set(),
    "controllers": {"records", "directions"},
    "planning": {"directions"},
    "training": {"host", "records", "directions", "controllers"},
}


def modules(package):
    """Every module of a package by its dotted name."""
    return {
        ".".join(path.relative_to(package.parent).with_suffix("").parts).removesuffix(".__init__"): path
        for path in sorted(package.rglob("*.py"))
    }


def imports(path):
    """The dotted names that a module imports, wherever in it, those for types alone among them."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            found |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
    return found


ENVS = modules(ROOT / "envs" / "bptt_envs")
TRAINERS = modules(ROOT / "trainers" / "bptt_trainers")
LABORATORY = modules(ROOT / "trainers" / "bptt_studies")
ALL = ENVS | TRAINERS | LABORATORY


def room(name, package):
    """The room of a module in a package; None: it is of another, or the package itself."""
    parts = name.split(".")
    return parts[1] if parts[0] == package and len(parts) > 1 and name in ALL else None


def test_every_room_is_known():
    assert {room(name, "bptt_trainers") for name in TRAINERS} == {None, *ROOMS}
    assert {room(name, "bptt_studies") for name in LABORATORY} == {None, *STUDIES}


@pytest.mark.parametrize("name", ENVS)
def test_environments_know_no_trainers(name):
    assert not {one for one in imports(ENVS[name]) if one.startswith(("bptt_trainers", "bptt_studies"))}


@pytest.mark.parametrize("name", TRAINERS)
def test_imports_run_one_way(name):
    here = room(name, "bptt_trainers")
    others = {room(one, "bptt_trainers") for one in imports(TRAINERS[name])} - {None, here}
    if here is not None:
        assert others <= MAY_IMPORT.get(here, set(ROOMS[: ROOMS.index(here)]))


@pytest.mark.parametrize("name", TRAINERS)
def test_nothing_but_the_table_of_commands_knows_the_studies(name):
    assert not {one for one in imports(TRAINERS[name]) if one.startswith("bptt_studies")}
    knows = {
        "bptt_trainers.cli",
        "bptt_trainers.host.user_code",
    }  # the one by name, the other whose code an error is in
    assert "bptt_studies" not in TRAINERS[name].read_text() or name in knows


@pytest.mark.parametrize("name", LABORATORY)
def test_studies_import_one_way_too(name):
    here = room(name, "bptt_studies")
    others = {room(one, "bptt_studies") for one in imports(LABORATORY[name])} - {None, here}
    assert here is None or others <= set(STUDIES[: STUDIES.index(here)])


def test_no_modules_import_each_other_in_a_circle():
    files = {name: path for name, path in ALL.items() if path.name != "__init__.py"}  # these import what they offer
    graph = {name: imports(path) & files.keys() for name, path in files.items()}
    list(TopologicalSorter(graph).static_order())  # raises CycleError with the circle


def test_tests_mirror_the_rooms():
    folders = {path.parent.name for path in (ROOT / "tests").glob("*/test_*.py")}
    assert folders <= {"envs", "studies", *ROOMS}


def test_every_name_that_is_offered_is_there():
    assert [name for name in bptt_trainers.__all__ if not hasattr(bptt_trainers, name)] == []
    assert set(bptt_trainers.__all__) <= set(dir(bptt_trainers))


def test_a_name_that_is_not_offered_is_an_attribute_error():
    with pytest.raises(AttributeError, match="module 'bptt_trainers' has no attribute 'tuna'"):
        bptt_trainers.tuna  # noqa: B018
