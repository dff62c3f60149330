"""Charts: matplotlib's marks in the colours of the page."""

from __future__ import annotations

import re

import pytest
from bs4 import BeautifulSoup

from underhood.draw.chart import Chart
from underhood.draw.palette import colour


def squares() -> Chart:
    chart = Chart("Squares", description="The squares of 0 to 3.", caption="How do they grow?")
    chart.axes.plot([0, 1, 2, 3], [0, 1, 4, 9], label="square")
    chart.axes.plot([0, 1, 2, 3], [0, 1, 2, 3], marker="o", label="itself")
    chart.axes.set_xlabel("number")
    chart.axes.legend()
    return chart


def test_every_colour_of_a_chart_follows_the_page():
    svg = squares().svg
    assert not re.findall(r"#[0-9a-fA-F]{3,6}\b(?!\w)", re.sub(r"[(\"]#uh-[\w-]+", "", svg))
    assert 'style="fill:var(--uh-ink)"' in svg[: svg.index(">")]  # what is black says no colour
    assert "var(--uh-shell)" in svg or "var(--uh-share-1)" in svg  # one colour, two names
    assert "var(--uh-iopub)" in svg


def test_nothing_of_a_chart_reaches_beyond_it():
    assert "<style" not in squares().svg
    page = BeautifulSoup(squares().html + squares().html, "html.parser")
    ids = [element["id"] for element in page.select("[id]")]
    assert len(ids) == len(set(ids))
    used = set(re.findall(r"(?:url\(|href=\")#([\w-]+)", str(page)))
    assert used
    assert used <= set(ids)


def test_a_chart_is_text_and_tells_what_it_shows():
    page = BeautifulSoup(squares().html, "html.parser")
    assert page.select_one("figure")["data-underhood"] == "chart"
    assert {"number", "square", "itself"} <= {t.get_text() for t in page.select("svg text")}
    assert page.select_one("svg[role=img] > desc").get_text() == "The squares of 0 to 3."
    assert page.select_one(".uh-caption").get_text() == "How do they grow?"
    assert repr(squares()) == "Squares\nThe squares of 0 to 3."


def test_a_chart_is_saved_in_the_colours_of_a_theme(tmp_path):
    dark = squares().save(tmp_path / "chart.svg", theme="dark").read_text()
    assert colour("shell", "dark") in dark
    assert "var(" not in dark
    assert squares().save(tmp_path / "chart.png").read_bytes().startswith(b"\x89PNG")
    with pytest.raises(ValueError, match=r"cannot save as light '\.gif'"):
        squares().save(tmp_path / "chart.gif")


def test_the_same_chart_is_drawn_alike_each_time():
    def without_number(chart: Chart) -> str:
        return re.sub(r"uh-chart-\d+", "", chart.svg)

    assert without_number(squares()) == without_number(squares())
