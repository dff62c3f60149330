"""One output holds a whole picture: drawing, messages, bytes, capture; and disturbs nothing."""

from __future__ import annotations

import base64
import gzip
import json
import random
import re
import zlib
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
from conversations import KEY, Conversation, execute, http_request, http_response, invented
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from underhood.capture.store import Capture
from underhood.draw.page import Picture, script, style_sheet
from underhood.trace import Trace


def relayed() -> Trace:
    return execute(relayed=True).trace().protocol("jupyter")


def data_of(picture: Picture) -> dict[str, Any]:
    found = re.search(r'<script type="application/json">(.*?)</script>', picture.html, re.DOTALL)
    assert found is not None
    data: dict[str, Any] = json.loads(found[1])
    return data


def file_of(data: dict[str, Any]) -> bytes:
    return zlib.decompress(base64.b64decode(data["data"]))


class Elements(HTMLParser):
    """Collects elements, and whether each one that begins also ends."""

    VOID = frozenset({"br", "meta", "img", "hr", "input", "link"})

    def __init__(self, html: str) -> None:
        super().__init__()
        self.found: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.faults: list[str] = []
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attrs)))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        if not self.open or self.open.pop() != tag:
            self.faults.append(f"</{tag}> ends something else")


# ---- what is in it


def test_the_notebook_gets_html_and_text() -> None:
    bundle = relayed().sequence_diagram(title="One cell")._repr_mimebundle_()
    assert set(bundle) == {"text/html", "text/plain"}
    assert bundle["text/plain"].startswith("One cell\n")
    assert len(bundle["text/plain"].splitlines()) == 1 + 2 + 14


@settings(max_examples=12, deadline=None)
@given(st.integers(0, 2**31))
def test_html_is_well_formed_and_ids_are_unique(seed: int) -> None:
    trace = invented(seed).trace()
    elements = Elements(trace.sequence_diagram().html + trace.table().html)
    assert elements.faults == []
    assert elements.open == []
    ids = [attributes["id"] for _, attributes in elements.found if "id" in attributes]
    assert len(set(ids)) == len(ids)
    targets = {a["xlink:href"] for tag, a in elements.found if tag == "a" and "data-message" in a}
    assert targets <= {f"#{own}" for own in ids}


def test_the_same_picture_shown_twice_has_two_addresses() -> None:
    picture = relayed().sequence_diagram()
    first, second = (picture._repr_mimebundle_()["text/html"] for _ in range(2))
    ids = [set(re.findall(r' id="([^"]+)"', html)) for html in (first, second)]
    assert not ids[0] & ids[1]
    assert picture.html == first


def test_nothing_is_loaded_from_anywhere() -> None:
    html = relayed().sequence_diagram().html
    elements = Elements(html)
    assert not [t for t, a in elements.found if t in ("img", "link", "iframe") or "src" in a]
    assert "@import" not in html
    assert "url(" not in html


def test_a_picture_of_fourteen_messages_takes_at_most_40_kilobytes() -> None:
    trace = relayed()
    assert len(trace) == 14
    assert len(gzip.compress(trace.sequence_diagram().html.encode())) <= 40_000


def test_a_picture_of_a_thousand_messages_takes_at_most_50_kilobytes() -> None:
    trace = execute(cells=143).trace().protocol("jupyter")[:1000]
    picture = trace.sequence_diagram()
    assert len(gzip.compress(picture.svg.encode())) <= 50_000


def test_every_style_stays_inside_the_picture() -> None:
    sheet = re.sub(
        r"@(media|container)[^{]*\{((?:[^{}]*\{[^{}]*\})*)[^{}]*\}", r"\2", style_sheet()
    )
    selectors = re.findall(r"([^{}]+)\{", sheet)
    assert len(selectors) > 80
    for selector in selectors:
        for one in re.split(r",(?![^(]*\))", selector):
            assert ".underhood" in one, selector


def test_the_drawing_is_hidden_where_its_style_sheet_is_taken_out() -> None:
    html = relayed().sequence_diagram().html
    assert '<div class="uh-stage" hidden="hidden"' in html
    assert ".underhood .uh-stage[hidden] { display: block !important }" in style_sheet()
    assert html.count('class="uh-plain"') == 1


def test_a_drawing_brings_no_style_and_no_ids_of_its_own() -> None:
    drawn = relayed().sequence_diagram().svg
    assert "<style" not in drawn
    assert not re.findall(r' id="', drawn)
    assert "xlink" not in drawn


# ---- bytes and captures


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 2**31))
def test_the_page_carries_the_bytes_of_every_message(seed: int) -> None:
    trace = invented(seed).trace()[:200]
    data = data_of(trace.sequence_diagram())
    file = file_of(data)
    for message in trace:
        places, tree = data["messages"][str(message.number)]
        carried = b"".join(file[start : start + length] for start, length in places)
        assert carried == message.data
        assert tree[1] == message.size
        label, sentence, link = data["kinds"][tree[0]]
        assert label == message.span.label
        assert sentence
        assert link.startswith("https://")


def test_the_download_is_a_capture_with_the_messages_and_without_keys(tmp_path: Path) -> None:
    trace = relayed()
    data = data_of(trace.sequence_diagram())
    file = tmp_path / "download.pcapng"
    file.write_bytes(file_of(data)[: data["file"]])
    capture = Capture.load(file)
    again = capture.trace().protocol("jupyter")
    assert [m.data for m in again] == [m.data for m in trace]
    assert not capture.keys
    assert KEY not in file.read_bytes()
    assert base64.b64encode(KEY) not in file.read_bytes()


def test_a_large_capture_is_cut_down_to_what_the_picture_shows(tmp_path: Path) -> None:
    whole = execute(cells=400).trace().protocol("jupyter")
    shown = whole[1000:1010]
    data = data_of(shown.sequence_diagram())
    file = tmp_path / "download.pcapng"
    file.write_bytes(file_of(data)[: data["file"]])
    again = Capture.load(file).trace()
    assert [m.data for m in again.protocol("jupyter")] == [m.data for m in shown]
    assert {m.label for m in again.protocol("zmtp")} == {"greeting", "READY"}
    assert data["extent"].startswith("these messages")


def test_a_cut_capture_keeps_the_request_of_a_response(tmp_path: Path) -> None:
    talk = Conversation("http")
    link = talk.link("browser", "server", "http")
    dice = random.Random(1)
    for n in range(60):
        talk.octets(link, ">", http_request("POST", f"/api/{n}", dice.randbytes(2000)))
        talk.octets(link, "<", http_response(200, "OK", b'{"n": %d}' % n))
    trace = talk.capture().trace()
    shown = trace.filter(lambda m: m.label == "200 OK")[40:42]
    data = data_of(shown.sequence_diagram())
    file = tmp_path / "download.pcapng"
    file.write_bytes(file_of(data)[: data["file"]])
    again = Capture.load(file).trace()
    assert [m.label for m in again] == ["POST /api/40", "200 OK", "POST /api/41", "200 OK"]


def test_a_script_cannot_be_ended_by_what_a_message_says() -> None:
    talk = Conversation("hostile")
    iopub = talk.link("client", "kernel", "iopub")
    talk.say(iopub, "<", "stream", {"name": "</script><script>alert(1)</script>"})
    html = talk.capture().trace().protocol("jupyter").sequence_diagram().html
    assert html.count("<script") == 2
    assert html.count("</script>") == 2


def test_many_messages_are_a_table_with_addresses_instead_of_a_list() -> None:
    trace = execute(cells=60).trace().protocol("jupyter")
    html = trace.sequence_diagram().html
    assert "uh-message" not in html.replace(style_sheet(), "").replace(script(), "")
    ids = set(re.findall(r'<tr id="([^"]+)"', html))
    assert len(ids) == len(trace)
    assert {f"#{own}" for own in ids} == set(re.findall(r'href="(#[^"]+)"', html))


# ---- files


def test_pictures_are_saved_as_svg_png_and_pdf(tmp_path: Path) -> None:
    picture = relayed().sequence_diagram()
    root = ElementTree.parse(picture.save(tmp_path / "a.svg")).getroot()
    assert root.tag.endswith("svg")
    text = (tmp_path / "a.svg").read_text(encoding="utf-8")
    assert "var(" not in text
    assert "light-dark" not in text
    width = float(root.attrib["width"])
    with Image.open(picture.save(tmp_path / "a.png", scale=3)) as image:
        assert image.width == pytest.approx(3 * width, abs=2)
        assert image.getpixel((2, 2))[:3] == (0xFD, 0xFC, 0xF9)
        assert len(image.convert("RGB").getcolors(1 << 24)) > 50
    with Image.open(picture.save(tmp_path / "b.png", theme="dark")) as image:
        assert image.getpixel((2, 2))[:3] == (0x16, 0x19, 0x1F)
    assert picture.save(tmp_path / "a.pdf").read_bytes().startswith(b"%PDF")


def test_what_cannot_be_saved_says_so(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"'.gif'"):
        relayed().sequence_diagram().save(tmp_path / "a.gif")
    with pytest.raises(ValueError, match="no drawing"):
        relayed().table().save(tmp_path / "a.svg")


def test_the_same_trace_gives_the_same_drawing() -> None:
    trace = relayed()
    assert trace.sequence_diagram().svg == trace.sequence_diagram().svg
