"""Every chapter: executed live by the build, and held to the contract of a chapter.

The contract is CONTRIBUTING.md's. What is tested is what the build executed (nbclient, by
``book/_ext/chapter_execution.py``), with the captures that the chapter saved while it ran.
"""

from __future__ import annotations

import ast
import inspect
import re
from dataclasses import dataclass
from functools import cache, cached_property
from pathlib import Path
from typing import Any

import jupytext
import pytest
import yaml
from bs4 import BeautifulSoup
from chapter_execution import DECKS, Chapter, Results
from checkout import ROOT
from nbformat import NotebookNode
from sphinx_external_toc.parsing import parse_toc_yaml

import underhood

PAGES = list(parse_toc_yaml(ROOT / "_toc.yml"))
#: Pages with cells; the others, as the glossary, are only read.
EXECUTED = [page for page in PAGES if "```{code-cell}" in (ROOT / f"{page}.md").read_text("utf-8")]
CHAPTERS = [page for page in PAGES if re.match(r"book/(meet|fundamentals|tooling|build)/", page)]
UNITS = (
    "ms|milliseconds?|microseconds?|seconds?|messages?|requests?|replies|bytes?|kB|MB|frames?|"
    "connections?|packets?|processes|threads?|times|percent|%"
)
COUNTED = re.compile(rf"(?<![\w.])\d[\d,.]*(?: |\u00a0)?(?:{UNITS})(?!\w)")


@dataclass(frozen=True)
class Executed:
    """A chapter's text, its cells as executed by the build, and its captures."""

    name: str
    build: Path

    @property
    def path(self) -> Path:
        return ROOT / f"{self.name}.md"

    @cached_property
    def text(self) -> str:
        return self.path.read_text(encoding="utf-8")

    @cached_property
    def front_matter(self) -> dict[str, Any]:
        return dict(yaml.safe_load(self.text.split("---\n")[1]))

    @cached_property
    def body(self) -> str:
        return self.text.split("---\n", 2)[2]

    @cached_property
    def prose(self) -> str:
        """The body without code, in fences and in the line, and without glued values."""
        kept, fences = [], []  # for each fence that is open, whether what is in it is prose
        for line in self.body.splitlines():
            if re.match(r" *```", line):
                opens = not fences or line.strip() != "```"
                if opens:
                    fences.append(bool(re.match(r" *```\{(?!code-cell)", line)))
                else:
                    fences.pop()
            elif all(fences):
                kept.append(line)
        prose = "\n".join(kept)
        return re.sub(r"\{glue:?\w*\}`[^`]*`|`[^`]*`|\]\([^)]*\)", "·", prose)

    def section(self, title: str) -> str:
        """The text under a heading of level 2."""
        found = re.search(rf"^## {title}$(.*?)(?=^## |\Z)", self.body, flags=re.S | re.M)
        assert found, f"{self.path.name} has no section “{title}”"
        return found[1]

    @cached_property
    def cells(self) -> list[NotebookNode]:
        """The code cells with the outputs of the build."""
        chapter = Chapter.read(self.name, self.path)
        assert chapter
        results = Results(ROOT, self.build, self.build / ".jupyter_cache")
        assert results.executed_at(chapter), f"{self.name} was changed after the build"
        _, notebook = results.cache.merge_match_into_notebook(chapter.notebook)
        return [cell for cell in notebook.cells if cell.cell_type == "code"]

    @cached_property
    def pictures(self) -> list[Any]:
        """Every picture among the outputs, as elements."""
        html = "".join(
            output.get("data", {}).get("text/html", "")
            for cell in self.cells
            for output in cell.outputs
        )
        return BeautifulSoup(html, "html.parser").select("[data-underhood]")

    @cached_property
    def notebook(self) -> NotebookNode:
        """The chapter as a notebook that nobody has run."""
        return jupytext.reads(self.text, fmt="md:myst")

    @property
    def captures(self) -> Path:
        return self.build / "captures" / self.name


@pytest.fixture(scope="session", params=PAGES)
def page(request: pytest.FixtureRequest, build: Path) -> Executed:
    return Executed(request.param, build)


@pytest.fixture(scope="session", params=EXECUTED)
def executed(request: pytest.FixtureRequest, build: Path) -> Executed:
    return Executed(request.param, build)


@pytest.fixture(scope="session", params=CHAPTERS)
def chapter(request: pytest.FixtureRequest, build: Path) -> Executed:
    return Executed(request.param, build)


def test_every_chapter_that_lies_in_the_book_is_in_its_contents():
    found = {
        path.relative_to(ROOT).with_suffix("").as_posix()
        for path in (ROOT / "book").rglob("*.md")
        if not path.parent.name.startswith(("_", ".")) and path.name != "README.md"
    }
    assert found == {*PAGES, *DECKS}


# ---- every page


def test_saving_a_page_as_a_notebook_changes_nothing_in_its_file(executed):
    notebook = jupytext.reads(executed.text, fmt="md:myst")
    assert jupytext.writes(notebook, fmt="md:myst") == executed.text


def test_a_page_describes_itself_to_search_engines(page):
    description = page.front_matter["myst"]["html_meta"]["description"]
    assert 50 <= len(description) <= 200, len(description)


def test_no_cell_failed_but_those_that_were_meant_to(executed):
    for cell in executed.cells:
        errors = [output for output in cell.outputs if output.output_type == "error"]
        if errors:
            assert "raises-exception" in cell.metadata.get("tags", []), errors[0].traceback


def test_no_cell_wrote_a_warning_into_the_page(executed):
    for cell in executed.cells:
        for output in cell.outputs:
            assert output.get("name") != "stderr", output.text


def test_every_picture_was_drawn_from_a_capture_of_that_page(executed):
    # A view of single spans or durations has no query; whoever calls it chose them.
    drawn = [picture for picture in executed.pictures if picture["data-query"] != "[]"]
    assert drawn, f"{executed.name} has no picture"
    for picture in drawn:
        assert (executed.captures / f"{picture['data-capture']}.pcapng").is_file(), picture[
            "data-capture"
        ]


def test_a_number_with_a_unit_in_prose_is_computed_or_has_a_reason(page):
    allowed = [
        entry
        for entry in yaml.safe_load((ROOT / "tests/typed_numbers.yml").read_text())
        if entry["chapter"] == page.name
    ]
    assert all(entry["reason"] for entry in allowed)
    typed = [found.group() for found in COUNTED.finditer(page.prose)]
    reasons = [entry["text"] for entry in allowed]
    assert sorted(set(typed) - set(reasons)) == [], "typed, and no reason given"
    assert sorted(set(reasons) - set(typed)) == [], "reasons for what is not typed any more"


def test_typed_numbers_are_found():
    assert COUNTED.findall("It took 12.5 ms, 3 messages and 20%.") == [
        "12.5 ms",
        "3 messages",
        "20%",
    ]
    assert not COUNTED.findall("Python 3.11, ZMTP 3.1 and port 8888 in 2026")


def test_prose_is_what_stands_around_code_and_in_boxes_and_tables():
    chapter = Executed("any", ROOT)
    fences = "```{list-table}\n* - a cell of 1 byte\n```\nThen 2 bytes.\n```{code-cell}\n3\n```\n"
    chapter.__dict__["body"] = fences + "```sh\n4 bytes\n```\nAnd `5 bytes`, and 6 bytes."
    found = [match.group() for match in COUNTED.finditer(chapter.prose)]
    assert found == ["1 byte", "2 bytes", "6 bytes"]


# ---- every chapter


def test_a_chapter_opens_with_a_title_a_paragraph_and_its_card(chapter):
    title, paragraph, card = chapter.body.strip().split("\n\n", 2)
    assert re.fullmatch(r"# [A-Z][^\n]+", title)
    assert chapter.prose.count("\n# ") == 1
    assert len(paragraph.split()) >= 25, "the first paragraph does not make anybody curious"
    assert card.startswith("```{list-table}\n:stub-columns: 1\n:class: chapter-card\n")
    card = card[: card.index("\n```")]
    will, need, minutes = (
        re.search(rf"^\* - {name}\n  - (.*?)(?=^\* - |\Z)", card, flags=re.S | re.M)
        for name in ("You will", "You need", "Minutes")
    )
    assert will, card
    assert need, card
    assert minutes, card
    assert len(re.findall(r"^ *(?:- )?\* ", "    " + will[1], flags=re.M)) == 3
    assert 5 <= int(minutes[1]) <= 60


def test_a_chapter_sends_messages_and_draws_them(chapter):
    diagrams = [p for p in chapter.pictures if p["data-underhood"] == "sequence"]
    assert diagrams, f"{chapter.name} has no sequence diagram"
    assert any(diagram.select("[data-message]") for diagram in diagrams)
    captures = [underhood.load(path) for path in sorted(chapter.captures.glob("*.pcapng"))]
    both_ways = [
        c for capture in captures for c in capture.connections if c.stream(">") and c.stream("<")
    ]
    assert both_ways, "no connection of this chapter carried bytes both ways"


def test_a_chapter_asks_for_a_prediction_before_its_first_diagram(chapter):
    predict = chapter.body.index(":class: predict")
    drawing = re.search(r"sequence_diagram\(|\.(?:timing|octets)\(", chapter.body)
    assert drawing
    assert predict < drawing.start()


def test_a_chapter_has_a_surprise(chapter):
    assert ":class: surprise" in chapter.body


def test_a_chapter_gives_exercises_whose_solutions_were_executed(chapter):
    turn = chapter.section("Your turn")
    labels = re.findall(r"```\{exercise(?:-start)?\}[^\n]*\n:label: (\S+)", turn)
    assert 2 <= len(labels) <= 4, labels
    for label in labels:
        solution = re.search(
            rf"```\{{solution-start\}} {label}\n:class: dropdown\n```(.*?)```\{{solution-end\}}",
            turn,
            flags=re.S,
        )
        assert solution, f"no hidden solution of {label}"
        sources = re.findall(r"```\{code-cell\}[^\n]*\n(.*?)```", solution[1], flags=re.S)
        assert sources, f"the solution of {label} is not executed"
        for source in sources:
            code = re.sub(r"\A(?:---\n.*?---\n|(?::[^\n]*\n)+)", "", source, flags=re.S).strip()
            cell = next(cell for cell in chapter.cells if cell.source.strip() == code)
            assert cell.execution_count


def test_a_chapter_closes_with_what_was_seen_and_what_to_read(chapter):
    seen = chapter.section("What you saw")
    assert len(re.findall(r"^\* ", seen, flags=re.M)) == 3
    assert "{glue" in seen, "it has no number of this run"
    read_on = chapter.section("Read on")
    assert len(re.findall(r"\]\(http|\{doc\}", read_on)) >= 2
    assert chapter.body.index("## What you saw") < chapter.body.index("## Read on")
    assert "\n## " not in chapter.body.split("## Read on")[1]


def test_cells_are_small(chapter):
    seen = [
        cell
        for cell in chapter.cells
        if not {"hide-input", "hide-cell", "remove-cell", "remove-input"}
        & set(cell.metadata.get("tags", []))
    ]
    lengths = sorted(len(cell.source.splitlines()) for cell in seen)
    assert lengths[-1] <= 30, "a visible cell is too long to be one idea"
    assert sum(length > 12 for length in lengths) <= len(lengths) / 4


# ---- nothing is magic

#: Chapters whose readers have never met the course's library before: Parts I and II, in order.
FIRST = [name for name in CHAPTERS if name.startswith(("book/meet/", "book/fundamentals/"))]
#: What a trace can do, by the names that no list, text or dictionary of Python has as well.
QUERIES = {
    name
    for name, method in vars(underhood.Trace).items()
    if inspect.isfunction(method) and not name.startswith("_")
} - {name for kind in (list, str, dict) for name in dir(kind)}


def helpers(chapter: Executed) -> set[str]:
    """What a chapter's cells take from the course's library: imports, and queries of a trace."""
    cells = [cell for cell in chapter.notebook.cells if cell.cell_type == "code"]
    found = set()
    for cell in cells:
        for node in ast.walk(ast.parse(cell.source)):
            match node:
                case ast.ImportFrom(module=str(module), names=names):
                    if module.split(".")[0] == "underhood":
                        found |= {alias.name for alias in names}
                case ast.Call(func=ast.Attribute(attr=name)) if name in QUERIES:
                    found.add(name)
    return found


def explained(chapter: Executed) -> set[str]:
    """The names that a paragraph says together with a link to the file which defines them."""
    found = set()
    for paragraph in re.split(r"\n\n|\n```", chapter.body):
        for path in re.findall(r"/blob/main/(underhood/[\w/]+\.py)\)", paragraph):
            source = (ROOT / path).read_text(encoding="utf-8")
            defined = set(re.findall(r"^ *(?:async )?(?:def|class) (\w+)", source, flags=re.M))
            found |= defined & set(re.findall(r"`(\w+)(?:\(\))?`", paragraph))
    return found


def built(chapter: Executed) -> set[str]:
    """The names of the functions that a chapter's visible cells define."""
    visible = (
        cell.source
        for cell in chapter.notebook.cells
        if cell.cell_type == "code" and not cell.metadata.get("tags")
    )
    return {
        name
        for source in visible
        for name in re.findall(r"^(?:async )?def (\w+)", source, flags=re.M)
    }


@cache
def text_of(name: str) -> Executed:
    """A chapter's text, without what the build made of it."""
    return Executed(name, ROOT)


@pytest.mark.parametrize("name", FIRST)
def test_a_helper_was_built_in_view_or_is_explained_with_a_link_to_its_source(name):
    *before, chapter = map(text_of, FIRST[: FIRST.index(name) + 1])
    known = explained(chapter) | built(chapter)
    known = known.union(*(helpers(one) | explained(one) | built(one) for one in before))
    assert helpers(chapter) - known == set(), "not built until here, and no link says what it is"


def test_a_helper_without_its_link_is_noticed():
    chapter = Executed("any", ROOT)
    link = "https://github.com/a/a/blob/main/underhood/draw"
    chapter.__dict__["body"] = (
        f"What `distribution` draws ([`timing.py`]({link}/timing.py)).\n\n"
        f"What `Chart` draws ([`timing.py`]({link}/timing.py)).\n\nAnd `exchanges`.\n"
    )
    assert explained(chapter) == {"distribution"}
