"""ZMTP, in bytes written by hand from its grammar."""

from __future__ import annotations

import ssl

import pytest
from tiling import examine, fields, holes, labels
from wire import command, frame, greeting, jupyter, message, prop, ready

from underhood.dissect import dissect

# "Worked Example" of RFC 23: a DEALER speaks to a ROUTER.
WORKED_EXAMPLE_DEALER = bytes.fromhex(
    "ff 00 00 00 00 00 00 00 00 7f  03 00"
    "4e 55 4c 4c 00 00 00 00 00 00 00 00 00 00 00 00 00 00 00 00"  # NULL
    "00 00 00 00 00 00 00 00 00 00 00 00 00 00 00 00 00"
    "00 00 00 00 00 00 00 00 00 00 00 00 00 00 00"
    "04 29"
    "05 52 45 41 44 59"  # READY
    "0b 53 6f 63 6b 65 74 2d 54 79 70 65  00 00 00 06  44 45 41 4c 45 52"  # Socket-Type: DEALER
    "08 49 64 65 6e 74 69 74 79  00 00 00 00"  # Identity: empty
)
WORKED_EXAMPLE_ROUTER = WORKED_EXAMPLE_DEALER[:64] + bytes.fromhex(
    "04 1c 05 52 45 41 44 590b 53 6f 63 6b 65 74 2d 54 79 70 65  00 00 00 06  52 4f 55 54 45 52"
)


def test_the_specifications_worked_example() -> None:
    dissection = examine({">": WORKED_EXAMPLE_DEALER, "<": WORKED_EXAMPLE_ROUTER})
    assert dissection.protocol == "zmtp"
    assert dissection.identity == b""
    assert labels(dissection, ">") == ["greeting", "READY"]
    assert [unit.detail for unit in dissection.units(">")] == ["3.0 NULL", "DEALER"]
    assert [unit.detail for unit in dissection.units("<")] == ["3.0 NULL", "ROUTER"]
    greeted, said = dissection.spans(">")
    assert fields(greeted) == [
        ("signature start", b"\xff"),
        ("signature padding", bytes(8)),
        ("signature end", b"\x7f"),
        ("version major", 3),
        ("version minor", 0),
        ("mechanism", "NULL"),
        ("as server", 0),
        ("filler", bytes(31)),
    ]
    assert fields(said) == [
        ("flags", "COMMAND"),
        ("size", 41),
        ("name length", 5),
        ("name", "READY"),
        ("name length", 11),
        ("name", "Socket-Type"),
        ("value length", 6),
        ("value", "DEALER"),
        ("name length", 8),
        ("name", "Identity"),
        ("value length", 0),
    ]


def test_a_message_is_all_of_its_frames() -> None:
    stream = greeting() + ready(b"DEALER") + message(b"a", b"", b"c" * 300) + message(b"d")
    dissection = examine({">": stream})
    one, other = dissection.units(">")[2:]
    assert (one.label, one.detail) == ("message", "c" * 23 + "…")
    assert (other.label, other.detail) == ("message", "d")
    assert [span.label for span in one.span.children] == ["body frame"] * 3
    assert [span.value for span in one.span.leaves() if span.label == "flags"] == [
        "MORE",
        "MORE",
        "LONG",
    ]
    assert one.end == other.start


def test_a_long_frame_may_be_short() -> None:
    (_, unit) = examine({">": greeting() + frame(b"abc", long=True)}).units(">")
    assert unit.detail == "abc"
    assert unit.end - unit.start == 12


@pytest.mark.parametrize(
    ("said", "detail"),
    [
        (command(b"SUBSCRIBE"), "everything"),
        (command(b"SUBSCRIBE", b"kernel.1"), "kernel.1"),
        (command(b"SUBSCRIBE", b"\x00\xff"), "00 ff"),
        (command(b"CANCEL", b"stream"), "stream"),
        (command(b"PING", b"\x00\x0ahello"), "hello"),
        (command(b"PONG", b"hello"), "hello"),
        (command(b"ERROR", b"\x03400"), "400"),
        (command(b"READY", prop(b"SOCKET-TYPE", b"SUB")), "SUB"),
    ],
)
def test_commands_say_what_they_are_about(said: bytes, detail: str) -> None:
    dissection = examine({">": greeting() + said})
    unit = dissection.units(">")[1]
    assert unit.detail == detail
    assert holes([unit.span]) == []


def test_a_ping_has_a_time_to_live_and_a_context() -> None:
    unit = dissect({">": greeting() + command(b"PING", b"\x01\x2cctx")}).units(">")[1]
    assert fields(unit.span)[-2:] == [("TTL", 300), ("context", b"ctx")]


def test_plain_shows_the_password() -> None:
    client = greeting(b"PLAIN") + command(b"HELLO", b"\x05admin\x06secret")
    client += command(b"INITIATE", prop(b"Socket-Type", b"DEALER") + prop(b"Identity", b"me"))
    server = greeting(b"PLAIN", as_server=1) + command(b"WELCOME") + ready(b"ROUTER")
    dissection = examine({">": client, "<": server})
    assert labels(dissection, ">") == ["greeting", "HELLO", "INITIATE"]
    assert labels(dissection, "<") == ["greeting", "WELCOME", "READY"]
    assert dissection.identity == b"me"
    assert dissection.units(">")[2].detail == "DEALER"
    assert fields(dissection.spans(">")[1])[4:] == [
        ("username length", 5),
        ("username", "admin"),
        ("password length", 6),
        ("password", "secret"),
    ]


def test_curve_has_the_sizes_of_the_specification() -> None:
    client = greeting(b"CURVE") + command(b"HELLO", b"\1\0" + bytes(72) + bytes(32 + 8 + 80))
    client += command(b"INITIATE", bytes(96 + 8 + 144))
    client += frame(b"\x07MESSAGE" + bytes(8 + 17))
    server = greeting(b"CURVE", as_server=1) + command(b"WELCOME", bytes(16 + 144))
    server += command(b"READY", bytes(8 + 16)) + command(b"MESSAGE", bytes(8 + 17))
    dissection = examine({">": client, "<": server})
    assert labels(dissection, ">") == ["greeting", "HELLO", "INITIATE", "sealed"]
    assert labels(dissection, "<") == ["greeting", "WELCOME", "READY", "sealed"]
    assert holes(dissection.spans(">")) == holes(dissection.spans("<")) == []
    hello = dissection.units(">")[1]
    assert hello.end - hello.start == 202  # 200 bytes, flags and size
    assert ("version", "1.0") in fields(hello.span)


def test_a_sealed_frame_needs_a_curve_connection() -> None:
    unit = dissect({">": greeting() + frame(b"\x07MESSAGE" + bytes(30))}).units(">")[1]
    assert unit.label == "message"


def test_what_is_too_short_for_a_box_is_not_sealed() -> None:
    short, least = (frame(b"\x07MESSAGE" + bytes(8 + size)) for size in (16, 17))
    assert labels(examine({">": greeting(b"CURVE") + short + least}), ">") == [
        "greeting", "message", "sealed",
    ]  # fmt: skip


@pytest.mark.parametrize("version", [0, 1])
def test_subscriptions_may_be_messages(version: int) -> None:
    client = (
        greeting(minor=version) + ready(b"SUB") + message(b"\x01stream") + message(b"\x00stream")
    )
    server = greeting(minor=1) + ready(b"XPUB")
    dissection = examine({">": client, "<": server})
    assert [(u.label, u.detail) for u in dissection.units(">")[2:]] == [
        ("SUBSCRIBE", "stream"),
        ("CANCEL", "stream"),
    ]


def test_a_publisher_may_send_messages_that_look_like_subscriptions() -> None:
    dissection = dissect({">": greeting() + ready(b"PUB") + message(b"\x01"), "<": greeting()})
    assert dissection.units(">")[2].label == "message"


def test_a_heartbeat_is_called_what_it_says() -> None:
    dissection = examine({">": greeting() + ready(b"REQ") + message(b"", b"ping")})
    assert dissection.units(">")[2].label == "ping"


def test_on_iopub_the_first_frame_is_a_topic() -> None:
    parts = jupyter("status", {"execution_state": "busy"}, before=(b"kernel.1.status",))
    dissection = examine(
        {">": greeting() + ready(b"SUB"), "<": greeting() + ready(b"XPUB") + message(*parts)}
    )
    unit = dissection.units("<")[2]
    assert (unit.protocol, unit.label, unit.detail) == ("jupyter", "status", "busy")
    assert unit.jupyter is not None
    assert (unit.jupyter.topic, unit.jupyter.identities) == (b"kernel.1.status", ())
    assert [span.label for span in unit.span.children] == [
        "topic frame",
        "delimiter frame",
        "signature frame",
        "header frame",
        "parent_header frame",
        "metadata frame",
        "content frame",
    ]


def test_elsewhere_the_frames_before_the_delimiter_are_identities() -> None:
    parts = jupyter("input_request", before=(b"one", b"two"))
    unit = examine({"<": greeting() + ready(b"ROUTER") + message(*parts)}).units("<")[2]
    assert unit.jupyter is not None
    assert (unit.jupyter.topic, unit.jupyter.identities) == (b"", (b"one", b"two"))


def test_of_several_delimiters_the_first_counts() -> None:
    buffers = (b"<IDS|MSG>", b"1", b"2", b"3", b"4", b"5")
    parts = jupyter("comm_msg", before=(b"one",), buffers=buffers)
    unit = examine({">": greeting() + ready(b"DEALER") + message(*parts)}).units(">")[2]
    assert unit.jupyter is not None
    assert unit.jupyter.msg_type == "comm_msg"
    assert (unit.jupyter.identities, unit.jupyter.buffers) == ((b"one",), buffers)


def test_a_delimiter_alone_makes_no_jupyter_message() -> None:
    # The handshake of a kernel that is started without ports has one part only (JEP 66).
    unit = examine({">": greeting() + message(b"<IDS|MSG>", b"sig", b"{}")}).units(">")[1]
    assert (unit.protocol, unit.label) == ("zmtp", "message")


@pytest.mark.parametrize("length", [1, 9, 10, 11, 12, 20, 33, 63])
def test_a_handshake_may_be_left_half_open(length: int) -> None:
    dissection = examine({">": greeting()[:length]})
    assert dissection.protocol == "zmtp"
    (unit,) = dissection.units(">")
    assert (unit.label, unit.detail) == ("greeting", f"only {length} bytes")
    # What came in whole fields can be read.
    assert holes(dissection.spans(">")) == ([] if length in (1, 9, 10, 11, 12, 33) else [
        f"ends inside {'mechanism (20 bytes)' if length == 20 else 'filler (31 bytes)'}"
    ])  # fmt: skip


@pytest.mark.parametrize(
    ("tail", "why"),
    [
        (b"\x05\x00", "no ZMTP frame begins with the flags 0x05"),
        (b"\x08\x00", "no ZMTP frame begins with the flags 0x08"),
        (b"\x01\x00" + command(b"PING", b"\0\0"), "a command between the frames of one message"),
        (b"\x01\x01a", "the capture ends between the frames of one message"),
        (b"\x00\x05abc", "the capture ends inside the frame at"),
        (b"\x00", "the capture ends inside the frame at"),
        (b"\x02\x00\x00", "the capture ends inside the frame at"),
        (b"\x02" + b"\xff" * 8, "the capture ends inside the frame at"),
    ],
)
def test_what_cannot_be_read_says_why_and_loses_nothing_before_it(tail: bytes, why: str) -> None:
    good = greeting() + ready(b"DEALER") + message(b"a", b"b")
    dissection = examine({">": good + tail})
    assert labels(dissection, ">") == ["greeting", "READY", "message"]
    hole = dissection.spans(">")[-1]
    assert (hole.start, hole.label) == (len(good), "undecoded")
    assert why in hole.value


def test_zmtp_before_version_3_is_not_read() -> None:
    dissection = examine({">": b"\xff" + bytes(8) + b"\x7f\x01\x05rest"})
    assert labels(dissection, ">") == ["greeting"]
    assert "before 3.0" in dissection.spans(">")[-1].value


def test_a_direction_without_greeting_is_undecoded_and_the_other_is_not() -> None:
    dissection = examine({">": greeting() + ready(b"DEALER"), "<": b"HTTP/1.1 400 Bad Request"})
    assert labels(dissection, ">") == ["greeting", "READY"]
    (hole,) = dissection.spans("<")
    assert "begins with a greeting" in hole.value


def test_bytes_of_no_known_protocol_are_undecoded() -> None:
    dissection = examine({">": b"\x16\x03\x01 a TLS client", "<": b"\x15"})
    assert dissection.protocol == "unknown"
    assert dissection.units(">") == ()
    assert len(holes(dissection.spans(">"))) == 1


def test_an_encrypted_connection_is_called_so() -> None:
    to, fro = ssl.MemoryBIO(), ssl.MemoryBIO()
    with pytest.raises(ssl.SSLWantReadError):
        ssl.create_default_context().wrap_bio(to, fro, server_hostname="localhost").do_handshake()
    (span,) = dissect({">": fro.read()}).spans(">")
    assert "it is encrypted (TLS)" in str(span.value)


def test_the_identity_is_the_clients() -> None:
    dissection = dissect(
        {
            ">": greeting() + ready(b"DEALER", b"session-1"),
            "<": greeting() + ready(b"ROUTER", b"kernel"),
        }
    )
    assert dissection.identity == b"session-1"
