"""HTTP/1.1, in bytes written from its grammar, and beside h11 on the same bytes."""

from __future__ import annotations

import gzip
import json
import zlib
from typing import Any

import h11
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tiling import examine, fields, flat, holes, labels
from wire import chunked, head

from underhood.dissect import dissect
from underhood.dissect.http import Request, Response

GET = head("GET /api/status?full=1 HTTP/1.1", ("Host", "localhost"))
OK = head("HTTP/1.1 200 OK", ("Content-Length", "2")) + b"{}"


CHUNKED = {"Transfer-Encoding": "chunked"}


def request(stream: bytes) -> Request:
    (unit,) = examine({">": stream}).units(">")
    assert isinstance(unit, Request)
    return unit


def response(stream: bytes, asked: bytes = GET) -> Response:
    unit = examine({">": asked, "<": stream}).units("<")[-1]
    assert isinstance(unit, Response)
    return unit


def test_a_request_from_the_first_to_the_last_byte() -> None:
    fields_sent = (("Host", "x"), ("content-type", "application/json"), ("content-length", "10"))
    unit = request(head("POST /api/sessions?x=1 HTTP/1.1", *fields_sent) + b'{"a": "b"}')
    assert (unit.protocol, unit.label, unit.detail) == ("http", "POST /api/sessions", "")
    assert (unit.method, unit.path, unit.query) == ("POST", "/api/sessions", "x=1")
    assert unit.version == "1.1"
    assert unit.headers["Content-Length"] == "10"
    assert unit.body == b'{"a": "b"}'
    assert fields(unit.span) == [
        ("method", "POST"),
        ("path", "/api/sessions"),
        ("query", "x=1"),
        ("version", "1.1"),
        ("name", "Host"),
        ("value", "x"),
        ("name", "content-type"),
        ("value", "application/json"),
        ("name", "content-length"),
        ("value", "10"),
        ("name", "a"),
        ("string", "b"),
    ]
    keys = [span.key for span in unit.span.children]
    assert keys == [
        "http.request_line",
        "http.header.host",
        "http.header.content-type",
        "http.header.content-length",
        "http.head_end",
        "http.body",
    ]


@pytest.mark.parametrize(
    ("line", "label"),
    [
        ("GET / HTTP/1.1", "GET /"),
        ("OPTIONS * HTTP/1.1", "OPTIONS *"),
        ("GET http://host/a/b?c HTTP/1.1", "GET /a/b"),
        ("GET http://host HTTP/1.0", "GET /"),
        ("GET http://[bad HTTP/1.0", "GET http://[bad"),
        ("CONNECT host:443 HTTP/1.1", "CONNECT host:443"),
    ],
)
def test_a_request_is_called_by_its_method_and_path(line: str, label: str) -> None:
    assert request(head(line)).label == label


def test_a_response_from_the_first_to_the_last_byte() -> None:
    unit = response(head("HTTP/1.1 201 Created", ("Content-Length", "3")) + b"abc")
    assert (unit.label, unit.status, unit.reason, unit.body) == (
        "201 Created",
        201,
        "Created",
        b"abc",
    )
    assert fields(unit.span)[:3] == [("version", "1.1"), ("status", 201), ("reason", "Created")]


@pytest.mark.parametrize("line", ["HTTP/1.1 200", "HTTP/1.1 200 "])
def test_a_reason_may_be_missing(line: str) -> None:
    unit = response(head(line, ("Content-Length", "0")))
    assert (unit.label, unit.reason) == ("200", "")


def test_header_fields_have_any_case_and_come_more_than_once() -> None:
    unit = response(
        head(
            "HTTP/1.1 200 OK",
            ("Set-Cookie", "a=1"),
            ("set-cookie", "b=2"),
            ("X-Blank", "  spaced\t "),
            ("Empty", ""),
            ("Content-Length", "0"),
        )
    )
    assert unit.headers.all("SET-COOKIE") == ["a=1", "b=2"]
    assert unit.headers["Set-Cookie"] == "a=1, b=2"
    assert unit.headers["x-blank"] == "spaced"
    assert unit.headers["empty"] == ""
    assert "missing" not in unit.headers
    assert dict(unit.headers)["Empty"] == ""
    assert list(unit.headers) == ["Set-Cookie", "X-Blank", "Empty", "Content-Length"]
    assert len(unit.headers) == 4


def test_a_folded_field_is_one_value() -> None:
    unit = request(b"GET / HTTP/1.1\r\nA: one\r\n  two\r\nB: c\r\n\r\n")
    assert (unit.headers["a"], unit.headers["b"]) == ("one two", "c")


def test_lines_may_end_in_a_line_feed_alone() -> None:
    dissection = examine({">": b"GET / HTTP/1.1\nHost: x\n\nGET /b HTTP/1.1\n\n"})
    assert labels(dissection, ">") == ["GET /", "GET /b"]
    assert holes(dissection.spans(">")) == []


def test_empty_lines_before_a_request_are_skipped() -> None:
    dissection = examine({">": b"\r\n" + GET + b"\r\n\r\n" + GET})
    assert labels(dissection, ">") == ["GET /api/status"] * 2
    assert holes(dissection.spans(">")) == []


def test_requests_in_a_pipeline_frame_their_responses() -> None:
    asked = [
        head("HEAD /a HTTP/1.1"),
        head("GET /b HTTP/1.1"),
        head("DELETE /c HTTP/1.1"),
        head("GET /d HTTP/1.1"),
        head("GET /e HTTP/1.1"),
    ]
    said = [
        head("HTTP/1.1 200 OK", ("Content-Length", "1000")),
        head("HTTP/1.1 100 Continue"),
        head("HTTP/1.1 103 Early Hints", ("Link", "</x>")),
        head("HTTP/1.1 304 Not Modified", ("Content-Length", "7")),
        head("HTTP/1.1 204 No Content"),
        head("HTTP/1.1 200 OK", ("Transfer-Encoding", "chunked")) + chunked(b"abc", b"de"),
        head("HTTP/1.1 200 OK", ("Content-Length", "3")) + b"end",
    ]
    dissection = examine({">": b"".join(asked), "<": b"".join(said)})
    assert labels(dissection, "<") == [
        "200 OK",
        "100 Continue",
        "103 Early Hints",
        "304 Not Modified",
        "204 No Content",
        "200 OK",
        "200 OK",
    ]
    assert [u.end - u.start for u in dissection.units("<")] == [len(s) for s in said]
    assert holes(dissection.spans("<")) == []


def test_a_chunked_body_with_extensions_and_trailer() -> None:
    body = b'5;name="a"\r\n{"a":\r\nA \r\n[1, 2, 3]}\r\n0\r\nX-Sum: 12\r\n\r\n'
    unit = response(
        head(
            "HTTP/1.1 200 OK",
            ("Content-Type", "application/json"),
            ("Transfer-Encoding", "chunked"),
        )
        + body
    )
    assert json.loads(unit.body) == {"a": [1, 2, 3]}
    assert [s.label for s in unit.span.children[-1].children] == [
        "chunk",
        "chunk",
        "last chunk",
        "X-Sum",
        "end of trailer",
    ]
    # JSON goes on over the border of chunks, down to its values.
    found = fields(unit.span.children[-1])
    assert ("extension", ';name="a"') in found
    assert [value for label, value in found if label == "number"] == [1, 2, 3]
    assert holes([unit.span]) == []


@pytest.mark.parametrize("coding", ["gzip", "deflate", "x-gzip"])
@pytest.mark.parametrize("in_chunks", [False, True])
def test_a_compressed_body_is_shown_as_it_was(coding: str, in_chunks: bool) -> None:
    packed = zlib.compress(b'{"a": 1}') if coding == "deflate" else gzip.compress(b'{"a": 1}')
    framing = (
        ("Transfer-Encoding", "chunked") if in_chunks else ("Content-Length", str(len(packed)))
    )
    unit = response(
        head(
            "HTTP/1.1 200 OK",
            ("Content-Encoding", coding),
            ("Content-Type", "application/json; charset=utf-8"),
            framing,
        )
        + (chunked(packed[:9], packed[9:]) if in_chunks else packed)
    )
    assert (unit.body, unit.note) == (b'{"a": 1}', "")
    (body,) = (s for s in unit.span.children if s.label == "body")
    assert body.value == {"a": 1}
    assert {s.value["a"] for s in body.walk() if s.label == "compressed content"} == {1}


def test_a_gzip_body_may_have_several_members() -> None:
    packed = gzip.compress(b"one, ") + gzip.compress(b"") + gzip.compress(b"two")
    framing = ("Content-Length", str(len(packed)))
    unit = response(head("HTTP/1.1 200 OK", ("Content-Encoding", "gzip"), framing) + packed)
    assert (unit.body, unit.note) == (b"one, two", "")


def test_a_body_that_stays_away_is_not_cut_short() -> None:
    said = head("HTTP/1.1 200 OK", ("Content-Encoding", "gzip"), ("Content-Length", "20"))
    streams = {">": head("HEAD / HTTP/1.1", ("Host", "x")), "<": said}
    (unit,) = dissect(streams).units("<")
    assert (unit.body, unit.note) == (b"", "")


@pytest.mark.parametrize(
    ("coding", "packed", "note"),
    [
        ("gzip", b"not gzip", "the content is not gzip"),
        ("gzip", gzip.compress(b"x" * 100)[:-9], "the gzip content is cut short"),
        ("gzip", gzip.compress(b"x" * 100) + b"more", "the content is not gzip"),
        ("br", b"\x0b\x00\x80a\x03", "the content coding 'br' is not read here"),
    ],
)
def test_what_cannot_be_decompressed_is_noted(coding: str, packed: bytes, note: str) -> None:
    unit = response(
        head("HTTP/1.1 200 OK", ("Content-Encoding", coding), ("Content-Length", str(len(packed))))
        + packed
    )
    assert note in unit.note


@pytest.mark.parametrize("members", [[10_000], [1000, 1], [999, 2]])
def test_a_small_body_cannot_fill_the_memory(
    members: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("underhood.dissect.http.MOST_INFLATED", 1000)
    packed = b"".join(gzip.compress(bytes(size)) for size in members)
    unit = response(
        head("HTTP/1.1 200 OK", ("Content-Encoding", "gzip"), ("Content-Length", str(len(packed))))
        + packed
    )
    assert (len(unit.body), unit.note) == (1000, "only the first 1000 bytes are decompressed")


def test_the_last_transfer_coding_says_where_a_body_ends() -> None:
    several, other = ("Transfer-Encoding", "gzip, chunked"), ("Transfer-Encoding", "chunked, gzip")
    asked = head("PUT / HTTP/1.1", several) + chunked(b"body") + GET
    said = head("HTTP/1.1 200 OK", several) + chunked(b"body") + OK
    dissection = examine({">": asked, "<": said})
    assert labels(dissection, ">") == ["PUT /", "GET /api/status"]
    assert labels(dissection, "<") == ["200 OK", "200 OK"]
    until_the_end = response(head("HTTP/1.1 200 OK", other) + b"2\r\nto the end")
    assert until_the_end.body == b"2\r\nto the end"
    (unit,) = dissect({">": head("PUT / HTTP/1.1", other) + b"2\r\nto the end"}).units(">")
    assert isinstance(unit, Request)
    assert unit.note == "no length and not chunked: transfer-encoding chunked, gzip"


def test_a_body_without_length_ends_with_the_connection() -> None:
    unit = response(head("HTTP/1.0 200 OK", ("Content-Type", "text/plain")) + b"to the end")
    assert unit.body == b"to the end"


def test_an_event_stream_shows_its_events() -> None:
    events = b": hello\n\nevent: progress\ndata: {\ndata: }\nid:7\nodd\n\nretry: 10\r\n"
    unit = response(
        head("HTTP/1.1 200 OK", ("Content-Type", "text/event-stream; charset=utf-8")) + events
    )
    one, two, three = unit.span.children[-1].children
    assert [(e.label, e.value) for e in (one, two, three)] == [
        ("event", ""),
        ("event", "{\n}"),
        ("unfinished event", ""),
    ]
    assert [line.key for line in two.children] == [
        "sse.field.event",
        "sse.field.data",
        "sse.field.data",
        "sse.field.id",
        "sse.field.other",
        "sse.end",
    ]
    assert fields(two.children[0]) == [("name", "event"), ("value", "progress")]
    assert three.children[0].value == "10"


def test_events_go_on_over_the_border_of_chunks() -> None:
    unit = response(
        head(
            "HTTP/1.1 200 OK",
            ("Content-Type", "text/event-stream"),
            ("Transfer-Encoding", "chunked"),
        )
        + chunked(b"data: a\n\ndata:", b" b\n\n")
    )
    values = [s.value for s in unit.span.walk() if s.label == "event"]
    assert values == ["a", "b", "b"]  # the second is cut by the border of the chunks


def test_a_refused_upgrade_goes_on_as_http() -> None:
    asks = head("GET /ws HTTP/1.1", ("Connection", "keep-alive, Upgrade"), ("Upgrade", "websocket"))
    dissection = examine(
        {
            ">": asks + GET,
            "<": head("HTTP/1.1 403 Forbidden", ("Content-Length", "2")) + b"no" + OK,
        }
    )
    assert labels(dissection, ">") == ["GET /ws", "GET /api/status"]
    assert labels(dissection, "<") == ["403 Forbidden", "200 OK"]
    assert dissection.units(">")[0].detail == "upgrade to websocket"
    assert holes(dissection.spans(">")) == holes(dissection.spans("<")) == []


def test_a_tunnel_is_not_read() -> None:
    dissection = examine(
        {
            ">": head("CONNECT host:443 HTTP/1.1") + b"\x16\x03",
            "<": head("HTTP/1.1 200 Connection established") + b"\x16\x03\x03",
        }
    )
    assert labels(dissection, "<") == ["200 Connection established"]
    assert holes(dissection.spans(">")) == ["a tunnel to host:443"]
    assert holes(dissection.spans("<")) == ["a tunnel to host:443"]


def test_a_refused_tunnel_goes_on_as_http() -> None:
    dissection = examine(
        {
            ">": head("CONNECT host:443 HTTP/1.1") + GET,
            "<": head("HTTP/1.1 502 Bad Gateway", ("Content-Length", "4")) + b"gone" + OK,
        }
    )
    assert labels(dissection, "<") == ["502 Bad Gateway", "200 OK"]


def test_another_protocol_is_named() -> None:
    dissection = examine(
        {
            ">": head("GET / HTTP/1.1", ("Connection", "Upgrade"), ("Upgrade", "h2c")) + b"PRI",
            "<": head("HTTP/1.1 101 Switching Protocols", ("Upgrade", "h2c")) + b"\0\0",
        }
    )
    assert holes(dissection.spans(">")) == ["the connection changed to h2c"]


@pytest.mark.parametrize(
    ("tail", "why"),
    [
        (b"GET /half HTTP/1.1\r\nHost: x\r\n", "the capture ends here, inside a head"),
        (b"GET /x HTTP/2.0\r\n\r\n", "not the head of an HTTP/1.1 request"),
        (b"GET /x HTTP/1.1\r\nno colon\r\n\r\n", "not the head of an HTTP/1.1 request"),
        (b"GET /x HTTP/1.1\r\nName : x\r\n\r\n", "not the head of an HTTP/1.1 request"),
        (b"\x16\x03\x01\n\n", "not the head of an HTTP/1.1 request"),
    ],
)
def test_a_head_that_cannot_be_read_ends_its_direction(tail: bytes, why: str) -> None:
    dissection = examine({">": GET + tail, "<": OK})
    assert labels(dissection, ">") == ["GET /api/status"]
    assert holes(dissection.spans(">")) == [why]
    assert labels(dissection, "<") == ["200 OK"]


@pytest.mark.parametrize(
    ("fields", "body", "why"),
    [
        ({"Content-Length": "10"}, b"abc", "the capture has 3 of the 10 bytes of this body"),
        ({"Content-Length": "ten"}, b"abc", "content-length is not a number: ten"),
        ({"Content-Length": "-1"}, b"abc", "content-length is not a number: -1"),
        ({"Content-Length": "1, 2"}, b"abc", "content-length is not a number: 1, 2"),
        (CHUNKED, b"5\r\nab", "the capture ends inside a chunk of 5 bytes"),
        (CHUNKED, b"2\r\nabcd", "no CRLF ends this chunk of 2 bytes"),
        (CHUNKED, b"xyz\r\n", "a chunk begins with its size, and this does not"),
        (CHUNKED, b"3", "the capture ends here"),
        (
            CHUNKED,
            b"0\r\nbad trailer\r\n\r\n",
            "the trailer of this body is cut or not a list of fields",
        ),
    ],
)  # fmt: skip
def test_a_body_that_cannot_be_read_leaves_its_head_readable(
    fields: dict[str, str], body: bytes, why: str
) -> None:
    unit = response(head("HTTP/1.1 200 OK", *fields.items()) + body)
    assert unit.label == "200 OK"
    assert holes([unit.span]) == [why]
    assert unit.note == why


def test_a_length_may_be_repeated() -> None:
    unit = response(head("HTTP/1.1 200 OK", ("Content-Length", "2, 2")) + b"ab")
    assert unit.body == b"ab"


def test_chunks_that_came_are_kept_when_the_rest_did_not() -> None:
    whole = head("HTTP/1.1 200 OK", ("Transfer-Encoding", "chunked"))
    unit = response(whole + b"3\r\nabc\r\n4\r\nd")
    assert unit.body == b"abc"
    assert [s.label for s in unit.span.children[-1].children] == ["chunk", "undecoded"]


def test_responses_without_requests_are_read_as_far_as_possible() -> None:
    dissection = examine({"<": OK + OK})
    assert dissection.protocol == "http"
    assert labels(dissection, "<") == ["200 OK", "200 OK"]


# ---- beside h11

TOKENS = st.text("abcXYZ09-_", min_size=1, max_size=8)
VALUES = st.text("abc xyz=;/\"'", max_size=12).map(str.strip)
RESERVED = ("content-length", "transfer-encoding", "connection", "upgrade", "host", "expect")
HEADERS = st.lists(
    st.tuples(TOKENS.filter(lambda name: name.lower() not in RESERVED), VALUES), max_size=3
)


@st.composite
def bodies(draw: st.DrawFn, allow_close: bool = False) -> tuple[tuple[tuple[str, str], ...], bytes]:
    """Framing fields and the body in that framing."""
    pieces = draw(st.lists(st.binary(min_size=1, max_size=40), max_size=3))
    kind = draw(st.sampled_from(["length", "chunked", "none"]))
    if kind == "chunked":
        return (("Transfer-Encoding", "chunked"),), chunked(*pieces)
    body = b"".join(pieces) if kind == "length" else b""
    return (("Content-Length", str(len(body))),), body


@st.composite
def requests(draw: st.DrawFn) -> tuple[str, bytes]:
    method = draw(st.sampled_from(["GET", "POST", "HEAD", "PUT", "DELETE", "OPTIONS"]))
    framing, body = draw(bodies())
    target = "/" + draw(st.text("abc/?=&%.", max_size=9))
    fields = [("Host", "x"), *draw(HEADERS), *framing]
    return method, head(f"{method} {target} HTTP/1.1", *fields) + body


@st.composite
def responses(draw: st.DrawFn, method: str) -> bytes:
    status = draw(st.sampled_from([200, 201, 204, 302, 304, 404, 500]))
    framing, body = draw(bodies())
    bodiless = method == "HEAD" or status in (204, 304)
    informational = draw(st.sampled_from([b"", head("HTTP/1.1 100 Continue")]))
    if bodiless:
        framing, body = draw(st.sampled_from([(), framing])), b""
    said = head(f"HTTP/1.1 {status} Some words", *draw(HEADERS), *framing)
    return informational + said + body


@st.composite
def exchanges(draw: st.DrawFn) -> tuple[list[str], bytes, bytes]:
    asked = draw(st.lists(requests(), min_size=1, max_size=4))
    said = [draw(responses(method)) for method, _ in asked]
    return [method for method, _ in asked], b"".join(r for _, r in asked), b"".join(said)


def heard(connection: h11.Connection, answer: Any) -> list[Any]:
    """What h11 reads of one direction, while it plays the other side's part."""
    found: list[Any] = []
    body = b""
    while True:
        event = connection.next_event()
        if isinstance(event, h11.Request | h11.Response | h11.InformationalResponse):
            found.append(event)
            body = b""
        elif isinstance(event, h11.Data):
            body += event.data
        elif isinstance(event, h11.EndOfMessage):
            found[-1] = (found[-1], body)
            if not answer(connection, found[-1][0]):
                return found
        else:
            return found


def by_h11(methods: list[str], client: bytes, server: bytes) -> tuple[list[Any], list[Any]]:
    def respond(connection: h11.Connection, asked: Any) -> bool:
        connection.send(h11.Response(status_code=204, headers=[]))
        connection.send(h11.EndOfMessage())
        connection.start_next_cycle()
        return True

    at_server = h11.Connection(h11.SERVER)
    at_server.receive_data(client)
    asked = heard(at_server, respond)

    at_client = h11.Connection(h11.CLIENT)
    left = iter(methods)

    def ask(connection: h11.Connection, answered: Any) -> bool:
        if connection.their_state is h11.DONE:
            connection.start_next_cycle()
        method = next(left, None)
        if method is None:
            return False
        connection.send(h11.Request(method=method, target="/", headers=[("Host", "x")]))
        connection.send(h11.EndOfMessage())
        return True

    ask(at_client, None)
    at_client.receive_data(server)
    return asked, heard(at_client, ask)


@given(exchanges())
def test_h11_reads_the_same(exchange: tuple[list[str], bytes, bytes]) -> None:
    methods, client, server = exchange
    asked, said = by_h11(methods, client, server)
    dissection = examine({">": client, "<": server})
    assert holes(dissection.spans(">")) == holes(dissection.spans("<")) == []
    mine = [u for u in dissection.units(">") if isinstance(u, Request)]
    assert [(u.method.encode(), u.target.encode(), u.body) for u in mine] == [
        (event.method, event.target, body) for event, body in asked
    ]
    theirs = [item if isinstance(item, tuple) else (item, b"") for item in said]
    answers = [u for u in dissection.units("<") if isinstance(u, Response)]
    assert [(u.status, u.reason.encode(), u.body) for u in answers] == [
        (event.status_code, event.reason, body) for event, body in theirs
    ]
    for unit, (event, _) in zip([*mine, *answers], [*asked, *theirs], strict=True):
        assert [(n.lower().encode(), v.encode()) for n, v in unit.headers.fields] == [
            *event.headers
        ]


def test_the_same_bytes_give_the_same_spans_again() -> None:
    one, two = dissect({">": GET, "<": OK}), dissect({">": GET, "<": OK})
    assert flat(one.spans("<")) == flat(two.spans("<"))
