"""Jupyter messages, beside jupyter_client's own Session on the same bytes."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from jupyter_client.jsonutil import extract_dates
from jupyter_client.session import Session
from tiling import examine, fields
from wire import DELIMITER, KEY, greeting, header, jupyter, message, ready, sign

from underhood.dissect import Unit
from underhood.dissect.jupyter import MESSAGE_TYPES, JupyterMessage, Signature

VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**60), 2**60) | st.text(max_size=10),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.text(max_size=5), inner),
    max_leaves=6,
)
OBJECTS = st.dictionaries(st.text(max_size=8), VALUES, max_size=4)


def dissected(parts: list[bytes]) -> Unit:
    """What the dissector makes of one message on a shell connection."""
    return examine({"<": greeting() + ready(b"ROUTER") + message(*parts)}).units("<")[2]


def jupyter_of(parts: list[bytes]) -> JupyterMessage:
    found = dissected(parts).jupyter
    assert found is not None
    return found


@given(
    st.sampled_from(sorted(MESSAGE_TYPES)),
    OBJECTS,
    OBJECTS,
    st.lists(st.binary(max_size=300), max_size=3),
    st.lists(st.binary(min_size=1, max_size=9).filter(lambda i: i != DELIMITER), max_size=2),
)
def test_session_and_dissector_read_the_same(
    msg_type: str, content: Any, metadata: Any, buffers: list[bytes], identities: list[bytes]
) -> None:
    session = Session(key=KEY)
    parent = session.msg("execute_request")
    sent = session.msg(msg_type, content, parent=parent, metadata=metadata)
    parts = [*session.serialize(sent, ident=identities), *buffers]

    there, rest = Session(key=KEY).feed_identities(parts)
    expected = Session(key=KEY).deserialize(rest)
    found = jupyter_of(parts)
    assert list(found.identities) == there
    assert [found.msg_type, found.header["msg_id"]] == [expected["msg_type"], expected["msg_id"]]
    assert (found.metadata, found.content) == (expected["metadata"], expected["content"])
    # Session makes times of the dates in headers.
    assert extract_dates(found.header) == expected["header"]
    assert extract_dates(found.parent_header) == expected["parent_header"]
    assert [bytes(b) for b in expected["buffers"]] == list(found.buffers) == buffers
    assert found.verdict(KEY) is Signature.VALID
    assert found.note == ""


@given(st.integers(0, 5), st.integers(0, 2**32), st.integers(1, 255))
def test_session_refuses_just_the_messages_whose_signature_is_not_valid(
    part: int, place: int, change: int
) -> None:
    parts = jupyter("execute_request", {"code": "1+1"}, buffers=(b"buffer",))
    changed = bytearray(parts[part + 1])
    changed[place % len(changed)] ^= change
    parts[part + 1] = bytes(changed)
    accepts = True
    try:
        Session(key=KEY).deserialize(parts[1:])
    except ValueError as error:
        accepts = "Invalid Signature" not in str(error)
    assert (jupyter_of(parts).verdict(KEY) is Signature.VALID) == accepts
    # Only the signature and the four JSON parts are protected: a buffer is not.
    assert accepts == (part == 5)


@pytest.mark.parametrize("scheme", ["hmac-sha256", "hmac-sha512", "hmac-sha1", "hmac-md5"])
def test_a_signature_is_held_to_the_scheme_of_the_connection_file_and_to_no_other(
    scheme: str,
) -> None:
    session = Session(key=KEY, signature_scheme=scheme)
    parts = session.serialize(session.msg("status", {"execution_state": "idle"}))
    assert jupyter_of(parts).verdict(KEY, scheme) is Signature.VALID
    assert jupyter_of(parts).verdict(b"another key", scheme) is Signature.INVALID
    for other in ("hmac-sha256", "hmac-sha512", "hmac-sha384"):
        accepts = True
        try:
            Session(key=KEY, signature_scheme=other).deserialize(parts[1:])
        except ValueError:
            accepts = False
        assert (jupyter_of(parts).verdict(KEY, other) is Signature.VALID) == accepts


@pytest.mark.parametrize("scheme", ["hmac-rot13", "hmac-shake_128", "", "something else"])
def test_a_scheme_that_is_not_known_here_leaves_a_signature_unchecked(scheme: str) -> None:
    assert jupyter_of(jupyter("status")).verdict(KEY, scheme) is Signature.UNCHECKED


def test_verdicts() -> None:
    signed, unsigned = jupyter_of(jupyter("status")), jupyter_of(jupyter("status", key=b""))
    assert signed.verdict(KEY) is Signature.VALID
    assert signed.verdict(b"another key") is Signature.INVALID
    assert signed.verdict(None) is Signature.UNCHECKED
    assert signed.verdict(b"") is Signature.UNCHECKED
    assert unsigned.verdict(KEY) is Signature.UNSIGNED
    assert unsigned.verdict(None) is Signature.UNSIGNED
    assert signed.signed_hop


@pytest.mark.parametrize("signature", [b"0", b"zz" * 32, b"A" * 64, b"\xff" * 64])
def test_a_nonsensical_signature_is_invalid(signature: bytes) -> None:
    parts = jupyter("status")
    parts[1] = signature
    assert jupyter_of(parts).verdict(KEY) is Signature.INVALID


@pytest.mark.parametrize(
    ("msg_type", "content", "detail"),
    [
        ("status", {"execution_state": "busy"}, "busy"),
        ("stream", {"name": "stderr", "text": "…"}, "stderr"),
        ("error", {"ename": "ZeroDivisionError"}, "ZeroDivisionError"),
        ("execute_reply", {"status": "ok"}, ""),
        ("execute_reply", {"status": "error", "ename": "E"}, "error"),
        ("execute_reply", {"status": "aborted"}, "aborted"),
        ("comm_open", {"target_name": "jupyter.widget"}, "jupyter.widget"),
        ("comm_msg", {"data": {"method": "update"}}, "update"),
        ("comm_msg", {"data": None}, ""),
        ("is_complete_reply", {"status": "incomplete"}, "incomplete"),
        ("shutdown_request", {"restart": True}, "restart"),
        ("shutdown_request", {"restart": False}, ""),
        ("shutdown_reply", {"status": "ok", "restart": True}, "restart"),
        ("debug_request", {"command": "initialize"}, "initialize"),
        ("debug_reply", {"command": "attach"}, "attach"),
        ("debug_event", {"event": "stopped"}, "stopped"),
        ("input_request", {"prompt": "name? "}, "name? "),
        ("status", {"execution_state": 7}, ""),
        ("a_type_of_its_own", {"status": "busy"}, ""),
    ],
)
def test_details_tell_messages_of_one_type_apart(
    msg_type: str, content: dict[str, Any], detail: str
) -> None:
    unit = dissected(jupyter(msg_type, content))
    assert (unit.label, unit.detail) == (msg_type, detail)


def test_a_part_that_is_not_json_reads_as_empty_and_is_noted() -> None:
    parts = [json.dumps(header("status")).encode(), b"[]", b"{,}", b'"text"']
    unit = dissected([DELIMITER, sign(parts), *parts])
    found = unit.jupyter
    assert found is not None
    assert (found.parent_header, found.metadata, found.content) == ({}, {}, {})
    assert "parent_header: not a JSON object but list" in found.note
    assert "metadata: not JSON" in found.note
    assert "content: not a JSON object but str" in found.note
    assert found.verdict(KEY) is Signature.VALID
    assert (unit.protocol, unit.label) == ("jupyter", "status")


@pytest.mark.parametrize("said", [b"", b"{}", b'{"msg_type": 3}', b"\xff"])
def test_a_message_without_a_type_is_still_a_jupyter_message(said: bytes) -> None:
    parts = [said, b"{}", b"{}", b"{}"]
    unit = dissected([DELIMITER, sign(parts), *parts])
    assert (unit.protocol, unit.label) == ("jupyter", "message")


def test_spans_reach_single_values_and_have_the_keys_of_their_fields() -> None:
    parts = jupyter("kernel_info_reply", {"status": "ok", "language_info": {"name": "python"}})
    found = {span.key: span for span in dissected(parts).span.walk()}
    assert found["jupyter.kernel_info_reply"].label == "kernel_info_reply"
    assert found["jupyter.reply.status"].value == "ok"
    assert found["jupyter.kernel_info_reply.language_info.name"].value == "python"
    assert found["jupyter.header.msg_type"].value == "kernel_info_reply"
    assert ("string", "python") in fields(found["jupyter.content"])
    assert found["jupyter.signature"].value == parts[1].decode()


def test_what_users_put_into_a_message_has_general_keys() -> None:
    content = {"data": {"text/plain": "42"}, "metadata": {"mine": 1}}
    found = {s.label: s.key for s in dissected(jupyter("display_data", content)).span.walk()}
    assert found["data"] == "jupyter.display_data.data"
    assert found["text/plain"] == found["mine"] == "json.member"
    found = {s.label: s.key for s in dissected(jupyter("my_type", {"x": 1})).span.walk()}
    assert found["x"] == "json.member"
