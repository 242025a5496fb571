"""What is released says the same everywhere: versions, dependencies, the targets that CI runs."""

import re
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement

import bptt_envs

ROOT = Path(__file__).parents[1]
RECIPE = yaml.safe_load((ROOT / "conda" / "recipe.yaml").read_text())
ON_CONDA = {"torch": "pytorch", "matplotlib": "matplotlib-base"}  # those of other names there


def test_recipe_and_citation_are_of_this_version():
    cited = re.search(r"^version: (.*)$", (ROOT / "CITATION.cff").read_text(), re.M)[1]
    assert RECIPE["context"]["version"] == cited == bptt_envs.__version__


def test_the_recipe_needs_what_the_package_needs():
    tomllib = pytest.importorskip("tomllib")  # Python 3.11
    wanted = map(Requirement, tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["dependencies"])
    names = {f"{ON_CONDA.get(one.name, one.name)} {one.specifier}".replace(" ", "") for one in wanted}
    found = {str(Requirement(one)).replace(" ", "") for one in RECIPE["requirements"]["run"]}
    assert {str(Requirement(one)).replace(" ", "") for one in names | {"python>=3.10"}} == found


@pytest.mark.parametrize("path", [".github/workflows/ci.yml", ".ci/run"])
def test_ci_runs_targets_that_there_are(path):
    targets = set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), re.M))
    run = set(re.findall(r"\bmake ([a-z]+)", (ROOT / path).read_text()))
    assert run
    assert run <= targets


def test_an_image_copies_what_its_build_may_see():
    seen = {line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")}
    copied = re.findall(r"^COPY --chown=\S+ (.+) /src\S*$", (ROOT / "Dockerfile").read_text(), re.M)
    assert {name for line in copied for name in line.split()} == seen
    assert all((ROOT / name).exists() for name in seen)


def test_the_container_works_where_its_documents_mount_a_folder():
    image = (ROOT / "Dockerfile").read_text()
    (place,) = re.findall(r"^WORKDIR (\S+)$", image, re.M)
    assert f"RUN mkdir -m 1777 {place}\n" in image
    assert f"ENV HOME={place} " in image
    (command,) = re.findall(r"^mkdir -p runs && docker run .*$", (ROOT / "README.md").read_text(), re.M)
    assert f'-v "$PWD/runs:{place}/runs"' in command
    assert f"#   {command}\n" in image
