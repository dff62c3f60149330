"""A table says the same in a terminal and on a page."""

from __future__ import annotations

from html.parser import HTMLParser

from conversations import Conversation, execute, invented
from hypothesis import given, settings
from hypothesis import strategies as st

from underhood.draw.table import HEADINGS, as_text, cells


class Rows(HTMLParser):
    """Reads the cells of a table."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.rows: list[list[str]] = []
        self._inside = False
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag == "tr":
            self.rows.append([])
        self._inside = tag in ("td", "th")
        if self._inside:
            self.rows[-1].append("")

    def handle_endtag(self, tag: str) -> None:
        if tag in ("td", "th"):
            self._inside = False

    def handle_data(self, data: str) -> None:
        if self._inside:
            self.rows[-1][-1] += data


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 2**31))
def test_html_and_text_have_the_same_rows(seed: int) -> None:
    trace = invented(seed).trace()
    rows = Rows(trace.table().html).rows
    assert rows[0] == list(HEADINGS)
    assert [tuple(row) for row in rows[1:]] == cells(trace)
    lines = as_text(trace).splitlines()
    assert len(lines) == len(rows) + 1
    for line, row in zip(lines[2:], rows[1:], strict=True):
        assert line.split()[0] == row[0]
        assert line.endswith(row[-1])


def test_columns_stand_below_their_headings() -> None:
    heading, rule, *rows = as_text(execute().trace()).splitlines()
    place = heading.index("channel")
    assert rule[place - 2 : place] == "  "
    for row in rows:
        assert row[place - 1] == " "
        assert row[place] != " "


def test_wide_characters_keep_columns_straight() -> None:
    talk = Conversation("wide")
    for server in ("kernel", "カーネル"):
        talk.say(talk.link("client", server, "shell"), ">", "comm_msg")
    one, other = as_text(talk.capture().trace().protocol("jupyter")).splitlines()[2:]
    assert len(one[: one.index("shell")]) == len(other[: other.index("shell")]) + 4 - 0


def test_long_cells_are_shortened_in_the_terminal_only() -> None:
    talk = Conversation("long")
    talk.say(talk.link("client", "kernel", "iopub"), "<", "stream", {"name": "x" * 150})
    picture = talk.capture().trace().protocol("jupyter").table()
    assert max(map(len, repr(picture).splitlines())) < 140
    assert "x" * 150 in picture.html
