"""The documentation is true: its Python runs as it stands, its links lead somewhere."""

import ast
import re
import sys
import types
from dataclasses import dataclass
from pathlib import Path

import gymnasium as gym
import pytest

import bptt_envs.registration
import bptt_envs.systems
import bptt_trainers

ROOT = Path(__file__).parent.parent
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md"), *(ROOT / "tests").rglob("*.md")])

FENCE = re.compile(r"^(?P<indent> *)(?P<ticks>`{3,})(?P<language>[^\n`]*)\n(?P<body>.*?)^ *(?P=ticks) *$", re.M | re.S)
MARKDOWN_LINK = re.compile(r"\]\(\s*<?([^()\s>]+)>?[^()]*\)")  # also ![...](...) and an image inside a link
REFERENCE_LINK = re.compile(r"^\[[^\]^]+\]:\s+<?([^\s>]+)", re.M)
HTML_LINK = re.compile(r"""\b(?:src|srcset|href)=["']([^"']+)["']""")
HEADING = re.compile(r"^#+ +(.+?) *#*$", re.M)


@dataclass
class Block:
    """A fenced block: its language, its code, and the line of the page above its first one."""

    language: str
    code: str
    line: int


def blocks(page):
    text = page.read_text(encoding="utf-8")
    for match in FENCE.finditer(text):
        code = re.sub(f"^{match['indent']}", "", match["body"], flags=re.M)  # a block inside a list is indented
        yield Block(match["language"].strip(), code, text.count("\n", 0, match.start("body")))


def prose(page):
    """The page without its code."""
    return re.sub(r"(`+)(?!`).*?(?<!`)\1(?!`)", "", FENCE.sub("", page.read_text(encoding="utf-8")))


def anchors(page):
    """The anchors that GitHub gives the headings of a page."""
    headings = [
        re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")
        for heading in HEADING.findall(FENCE.sub("", page.read_text(encoding="utf-8")))
    ]
    return [
        heading + (f"-{headings[:i].count(heading)}" if heading in headings[:i] else "")
        for i, heading in enumerate(headings)
    ]


def name(page):
    return str(page.relative_to(ROOT))


@pytest.fixture
def registry(monkeypatch):
    """What a page registers is forgotten after it."""
    monkeypatch.setattr(gym.envs.registration, "registry", dict(gym.registry))
    monkeypatch.setattr(bptt_envs.registration, "ENTRIES", dict(bptt_envs.registration.ENTRIES))


@pytest.mark.filterwarnings("ignore:.torch.jit.script. is deprecated:DeprecationWarning")  # torch's, by torch itself
@pytest.mark.usefixtures("registry")
@pytest.mark.parametrize("page", [p for p in PAGES if any(b.language == "python" for b in blocks(p))], ids=name)
def test_python_of_the_page_runs_as_one_program(page, tmp_path, monkeypatch):
    program = types.ModuleType("__main__")
    monkeypatch.setitem(sys.modules, "__main__", program)
    monkeypatch.chdir(tmp_path)
    for block in blocks(page):
        if block.language == "python":
            exec(compile("\n" * block.line + block.code, str(page), "exec"), vars(program))


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_no_python_escapes_the_tests(page):
    """A block that must not run says bash or text; nothing else hides Python from the test above."""
    assert [b.language for b in blocks(page) if b.language.lower().startswith("py") and b.language != "python"] == []
    assert page.read_text(encoding="utf-8").count("```python") == sum(b.language == "python" for b in blocks(page))


@pytest.mark.parametrize("env_id", bptt_envs.registration.ENTRIES)
def test_every_id_has_a_page_with_all_its_options_and_their_defaults(env_id):
    index = ROOT / "docs" / "environments" / "README.md"
    row = re.search(rf"^\| `{env_id}` \|.*\]\(([\w-]+\.md)\) \|$", index.read_text(encoding="utf-8"), re.M)
    assert row, f"{index} has no row for {env_id}"
    page = (index.parent / row[1]).read_text(encoding="utf-8")
    assert page.startswith(f"# {env_id}\n")
    documented = {
        option: ast.literal_eval(default.strip("`"))
        for option, default in re.findall(r"^\| `(\w+)` \| (\S+) \|", page, re.M)
    }
    assert documented == bptt_envs.registration.system_class(env_id).options()


@pytest.mark.parametrize("env_id", bptt_envs.registration.ENTRIES)
def test_the_page_of_every_id_has_what_gymnasiums_own_pages_have(env_id):
    index = (ROOT / "docs" / "environments" / "README.md").read_text(encoding="utf-8")
    threshold = bptt_envs.registration.ENTRIES[env_id].threshold
    column, page = re.search(rf"^\| `{env_id}` \|.* \| (\S+) \| \[[\w-]+\]\(([\w-]+\.md)\) \|$", index, re.M).groups()
    assert float(column) == threshold.reward
    text = (ROOT / "docs" / "environments" / page).read_text(encoding="utf-8")
    assert f"| solved | a mean return of {threshold.reward:g}, undiscounted ({threshold.source}) |" in text
    assert re.search(r"^!\[.+\]\(.+\)$", text, re.M), "no picture"
    sections = re.findall(r"^## (.+)$", text, re.M)
    assert {"Loss and reward", "Options", "Versions"} <= set(sections)
    assert {"Action", "Observation"} <= set(sections) or "Action, observation" in sections
    assert re.search(r"^\| num \||^\| \| num \|", text, re.M), "no table of actions"
    assert "terminated" in text
    env = gym.make(env_id)
    bounds = {float(env.action_space.low.min()), float(env.action_space.high.max())}
    assert f"`Box({min(bounds):g}, {max(bounds):g}, (" in text
    assert "`Box(-inf, inf, (" in text
    assert f"]({Path('docs', 'environments', page).as_posix()})" in (ROOT / "README.md").read_text(encoding="utf-8")


SITE = ROOT / "docs"
LISTED = re.compile(r"```\{toctree\}\n(.*?)```", re.S)


def test_every_page_has_its_place_on_the_site():
    entries = [line for block in LISTED.findall((SITE / "index.md").read_text()) for line in block.splitlines()]
    listed = {page for entry in entries if entry and entry[0] != ":" for page in SITE.glob(f"{entry}.md")}
    pages = {page for folder in ("", "tutorials", "environments", "reference") for page in (SITE / folder).glob("*.md")}
    missing = {name(page) for page in pages - listed - {SITE / "index.md"}}
    assert missing == set(), "add these to a toctree of docs/index.md"


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_cells_are_in_tutorials_which_the_site_runs_and_only_there(page):
    cells = [b for b in blocks(page) if b.language == "{code-cell} ipython3"]
    is_tutorial = page.parent == SITE / "tutorials"
    assert bool(cells) == is_tutorial
    assert page.read_text(encoding="utf-8").startswith("---\njupytext:") == is_tutorial
    for cell in cells:
        compile(re.sub(r"^%.*", "", cell.code, flags=re.M), str(page), "exec")


@pytest.mark.parametrize("package", [bptt_envs, bptt_trainers, bptt_envs.systems], ids=lambda package: package.__name__)
def test_every_public_name_has_its_place_in_the_reference(package):
    text = "".join(page.read_text() for page in (SITE / "reference").glob("*.md"))
    documented = re.findall(r"^\.\. auto\w+:: (?:[\w.]+\.)?(\w+)$", text, re.M)
    assert set(package.__all__) <= set(documented), "add these to a page of docs/reference"


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_nothing_is_left_to_be_filled_in(page):
    assert re.findall(r"@@|\b(?:TODO|TBD|FIXME|XXX)\b", prose(page)) == []


def leads_somewhere(page, target):
    path, _, anchor = target.partition("#")
    place = (page.parent / path).resolve() if path else page
    if not place.exists() or not place.is_relative_to(ROOT):
        return False
    return not anchor or place.suffix != ".md" or anchor in anchors(place)


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_links_lead_somewhere(page):
    text = prose(page)
    targets = [*MARKDOWN_LINK.findall(text), *REFERENCE_LINK.findall(text), *HTML_LINK.findall(text)]
    inside = [target for target in targets if not re.match(r"[a-z][a-z0-9+.-]*:", target)]  # no other site, no mail
    assert [target for target in inside if not leads_somewhere(page, target)] == []
