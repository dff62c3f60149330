"""Bytes explained: every byte is in sight once, under its label, with a sentence and a link."""

from __future__ import annotations

import re
from html import unescape
from xml.etree import ElementTree

import pytest
from conversations import Conversation, execute, frame, greeting, http_request, invented, ready
from hypothesis import given, settings
from hypothesis import strategies as st

from underhood.capture.store import Capture, Chunk, Connection, Link
from underhood.draw.fields import Field, as_html, field
from underhood.draw.octets import octets
from underhood.trace import Message, Trace


def request() -> Message:
    return execute().trace().types("execute_request")[0]


def tiles(found: Field) -> bool:
    """Whether the rows inside each row take up exactly its bytes."""
    place = found.start
    for child in found.children:
        if child.start != place or not tiles(child):
            return False
        place = child.end
    return not found.children or place == found.end


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 2**31))
def test_rows_of_every_level_tile_the_message(seed: int) -> None:
    for message in invented(seed).trace():
        found = field(message.span, message.data)
        assert (found.start, found.length) == (0, message.size)
        assert tiles(found)


def test_rows_open_from_frame_to_part_to_value() -> None:
    message = request()
    top = field(message.span, message.data)
    header = next(f for f in top.children if f.label == "header frame")
    part = header.children[-1]
    assert part.label == "header"
    assert [f.label for f in part.children][:3] == ["msg_id", "msg_type", "username"]
    msg_type = part.children[1]
    assert message.data[msg_type.start : msg_type.end] == b'"msg_type": "execute_request", '


@pytest.mark.parametrize("nested", ['{"a":', "["], ids=["objects", "arrays"])
def test_what_nests_deeper_than_anybody_reads_is_still_drawn(nested: str) -> None:
    deep = '{"code":' + nested * 800 + "1" + {"[": "]"}.get(nested, "}") * 800 + "}"
    parts = (b"<IDS|MSG>", b"", b'{"msg_type": "execute_request"}', b"{}", b"{}", deep.encode())
    frames = (frame(part, more=n < len(parts) - 1) for n, part in enumerate(parts))
    said = Chunk(1, ">", greeting() + ready("DEALER") + b"".join(frames))
    link = Link("client", "kernel", "shell")
    connection = Connection(link, 1, ("127.0.0.1", 1), ("127.0.0.1", 2), 0, (said,))
    (message,) = Capture((connection,)).trace().protocol("jupyter")
    assert tiles(field(message.span, message.data))
    assert message.octets().html.count("<details") < 100
    assert "<svg" in Trace((message,)).sequence_diagram().html


def test_a_value_is_told_where_the_bytes_do_not_show_it() -> None:
    message = request()
    frame = field(message.span, message.data).children[0]
    assert [(f.label, f.value) for f in frame.children][:2] == [("flags", "MORE"), ("size", "9")]
    assert not frame.children[2].value  # "<IDS|MSG>" is plain to see


def test_each_row_has_bytes_text_explanation_and_link() -> None:
    message = request()
    html = as_html(field(message.span, message.data), message.data)
    rows = re.findall(r'<code class="uh-fh">([^<]*)</code><code class="uh-ft">([^<]*)</code>', html)
    assert ("3c 49 44 53 7c 4d 53 47 3e", "<IDS|MSG>") in [(h, unescape(t)) for h, t in rows]
    for about in re.findall(r"<p>(.*?)</p>", html):
        assert re.match(r"[A-Z0-9].{15,}", about), about
        assert 'href="https://' in about


def test_the_picture_of_one_message_needs_no_script() -> None:
    picture = octets(request())
    assert 'data-underhood="octets"' in picture.html
    assert "<script" not in picture.html
    assert "<svg" not in picture.html
    assert picture.html.count("<details") > 20


def test_text_shows_every_byte_of_a_message() -> None:
    message = request()
    shown = repr(octets(message))
    pairs = re.findall(r"^ *\d+  ((?:[0-9a-f]{2} ?)+)", shown, re.MULTILINE)
    assert bytes.fromhex("".join(pairs)) == message.data


def test_a_long_part_is_cut_and_says_so() -> None:
    talk = Conversation("long")
    iopub = talk.link("client", "kernel", "iopub")
    talk.say(iopub, "<", "stream", {"name": "stdout", "text": "spam " * 10_000})
    message = talk.capture().trace().protocol("jupyter")[0]
    picture = octets(message)
    assert len(picture.html) < 60_000
    assert re.search(r"and [\d\s]+ bytes more", picture.svg)


def test_a_connection_is_shown_whole_with_what_could_not_be_read() -> None:
    good = execute().connections[0]
    broken = Chunk(good.chunks[-1].time_ns + 1, ">", b"\xee\xee\xee")
    connection = Connection(
        good.link, 1, good.client_address, good.server_address, good.opened,
        (*good.chunks, broken),
    )  # fmt: skip
    html = octets(connection).html
    assert html.count('class="uh-block"') == len(Trace.of(Capture((connection,)))) + 1
    assert "undecoded" in html
    assert "ee ee ee" in html


def test_one_content_in_two_wrappings_has_ribbons_where_they_agree() -> None:
    trace = execute(relayed=True).trace().protocol("jupyter")
    picture = octets(*trace.types("execute_request"))
    root = ElementTree.fromstring(picture.svg)
    kinds = [p.get("class") for p in root.iter("{http://www.w3.org/2000/svg}path")]
    assert kinds.count("u-ribbon") == 5  # signature, header, parent header, metadata, content
    other = octets(trace.types("execute_request")[0], trace.types("execute_reply")[0])
    assert other.svg.count("≠") >= 3


def test_a_request_over_http_is_explained_too() -> None:
    talk = Conversation("http")
    link = talk.link("browser", "server", "http")
    talk.octets(link, ">", http_request("GET", "/api/kernels?x=1"))
    html = octets(talk.capture().trace()[0]).html
    assert "request line" in html
    assert "Host" in html


def test_nothing_to_show_is_an_error() -> None:
    with pytest.raises(ValueError, match="nothing to show"):
        octets(Connection(Link("a", "b", "http"), 1, ("", 0), ("", 0), 0))
