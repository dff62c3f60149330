"""The Jupyter message: the same on every hop, however it is wrapped.

Strategy: a message is handed over as the byte strings of its parts; which bytes they are is the
business of the dissector that found them (ZMTP frames, a WebSocket message). Each part is decoded
when it is first asked for, with the standard library's JSON, which is what Jupyter uses.

Sources: "The Wire Protocol" and "General Message Format" in the messaging specification,
https://jupyter-client.readthedocs.io/en/stable/messaging.html
"""

from __future__ import annotations

import enum
import hmac
from collections.abc import Mapping, Sequence
from typing import Any, Final

from underhood.dissect.jsontext import Names, json_spans, read_json
from underhood.dissect.spans import Span

DELIMITER: Final = b"<IDS|MSG>"
JSON_PARTS: Final = ("header", "parent_header", "metadata", "content")

# The types that the specification describes, so that explanations.yml explains their content.
_REQUESTS: Final = (
    "comm_info", "complete", "connect", "create_subshell", "debug", "delete_subshell", "execute",
    "history", "input", "inspect", "interrupt", "is_complete", "kernel_info", "list_subshell",
    "shutdown", "usage",
)  # fmt: skip
_OTHERS: Final = (
    "clear_output", "comm_close", "comm_msg", "comm_open", "debug_event", "display_data", "error",
    "execute_input", "execute_result", "iopub_welcome", "status", "stream", "update_display_data",
)  # fmt: skip
MESSAGE_TYPES: Final = frozenset(
    (*(f"{name}_{kind}" for name in _REQUESTS for kind in ("request", "reply")), *_OTHERS)
)


class Signature(enum.StrEnum):
    """The verdict on a message's signature."""

    VALID = "valid"
    INVALID = "invalid"
    UNSIGNED = "unsigned"
    """The signature is empty, or the hop has none."""
    UNCHECKED = "unchecked"
    """There is a signature, but no key at hand to check it with, or a scheme that is not known."""


class JupyterMessage:
    """One Jupyter message, decoded lazily.

    Parameters
    ----------
    parts
        The bytes of header, parent header, metadata and content, in this order.
    identities
        The frames before the delimiter, where they route the message.
    topic
        The frame before the delimiter, where it is what subscribers filter by (iopub).
    signature
        The hexadecimal digits of the signature frame.
    buffers
        The binary parts after the content.
    channel
        Its channel, where the message itself says so (WebSocket); else empty.
    signed_hop
        Whether messages carry signatures on this hop: they do on ZMTP, not on WebSocket.
    """

    __slots__ = (
        "_content", "_header", "_metadata", "_note", "_parent_header", "_parts", "buffers",
        "channel", "identities", "signature_hex", "signed_hop", "topic",
    )  # fmt: skip

    def __init__(
        self,
        parts: Sequence[bytes],
        *,
        identities: tuple[bytes, ...] = (),
        topic: bytes = b"",
        signature: bytes = b"",
        buffers: tuple[bytes, ...] = (),
        channel: str = "",
        signed_hop: bool = True,
    ) -> None:
        self._parts = parts
        self._header: dict[str, Any] | None = None
        self._parent_header: dict[str, Any] | None = None
        self._metadata: dict[str, Any] | None = None
        self._content: dict[str, Any] | None = None
        self._note = ""
        self.identities, self.topic, self.buffers = identities, topic, buffers
        self.signature_hex = signature.decode("ascii", "replace")
        self.channel, self.signed_hop = channel, signed_hop

    @classmethod
    def of_values(
        cls, values: Sequence[Any], *, buffers: tuple[bytes, ...], channel: str
    ) -> JupyterMessage:
        """Make a message from parts that came decoded, as members of one JSON object."""
        message = cls((b"",) * len(JSON_PARTS), buffers=buffers, channel=channel, signed_hop=False)
        message._header, message._parent_header, message._metadata, message._content = (
            message._object(n, {} if value is None else value, "") for n, value in enumerate(values)
        )
        return message

    def __repr__(self) -> str:
        return f"<JupyterMessage {self.msg_type}>"

    def _decode(self, index: int) -> dict[str, Any]:
        data = self._parts[index]
        # Most parent headers and metadata are this.
        return {} if data == b"{}" else self._object(index, *read_json(data))

    def _object(self, index: int, value: Any, note: str) -> dict[str, Any]:
        """Take a part's value if it is a JSON object; else note what it is."""
        if isinstance(value, dict):
            return value
        note = note or f"not a JSON object but {type(value).__name__}"
        self._note += f"{'; ' if self._note else ''}{JSON_PARTS[index]}: {note}"
        return {}

    @property
    def header(self) -> dict[str, Any]:
        """Who sent what, when: ``msg_id``, ``msg_type``, ``session`` …."""
        if self._header is None:
            self._header = self._decode(0)
        return self._header

    @property
    def parent_header(self) -> dict[str, Any]:
        """The header of the request that caused this message; empty without one."""
        if self._parent_header is None:
            self._parent_header = self._decode(1)
        return self._parent_header

    @property
    def metadata(self) -> dict[str, Any]:
        """What belongs to the message but not to its content."""
        if self._metadata is None:
            self._metadata = self._decode(2)
        return self._metadata

    @property
    def content(self) -> dict[str, Any]:
        """The body, whose fields depend on the message type."""
        if self._content is None:
            self._content = self._decode(3)
        return self._content

    @property
    def note(self) -> str:
        """Why parts could not be decoded; empty if all could. Such a part reads as ``{}``."""
        for part in JSON_PARTS:
            getattr(self, part)
        return self._note

    @property
    def msg_type(self) -> str:
        """The message type; empty if the header has none."""
        found = self.header.get("msg_type", "")
        return found if isinstance(found, str) else ""

    @property
    def detail(self) -> str:
        """A few words that tell this message from others of its type."""
        return _detail(self.msg_type, self.content)

    def verdict(self, key: bytes | None, scheme: str = "hmac-sha256") -> Signature:
        """Check the signature: an HMAC over the four JSON parts, as their bytes were sent.

        Parameters
        ----------
        key
            The key of the connection file; None or empty if it is not at hand.
        scheme
            The connection file's ``signature_scheme``: ``"hmac-"`` and the name of a digest. It
            is not on the wire, and the kernel takes no other.
        """
        signature = self.signature_hex
        if not signature:
            return Signature.UNSIGNED
        if not key:
            return Signature.UNCHECKED
        try:
            expected = hmac.digest(key, b"".join(self._parts), scheme.removeprefix("hmac-")).hex()
        except (TypeError, ValueError):  # no digest of this name here
            return Signature.UNCHECKED
        return Signature.VALID if expected == signature else Signature.INVALID


def _detail(msg_type: str, content: Mapping[str, Any]) -> str:
    found: Any = ""
    if msg_type in _DETAILS:
        found = content.get(_DETAILS[msg_type], "")
    elif msg_type == "comm_msg":
        data = content.get("data")
        found = data.get("method", "") if isinstance(data, dict) else ""
    elif msg_type.endswith("_reply"):
        found = content.get("status", "")
        if found == "ok":
            found = ""
        if msg_type == "debug_reply" and not found:
            found = content.get("command", "")
        elif msg_type == "shutdown_reply" and not found:
            found = "restart" if content.get("restart") is True else ""
    elif msg_type == "shutdown_request":
        found = "restart" if content.get("restart") is True else ""
    return found if isinstance(found, str) else ""


_DETAILS: Final = {
    "status": "execution_state",
    "stream": "name",
    "error": "ename",
    "comm_open": "target_name",
    "debug_request": "command",
    "debug_event": "event",
    "is_complete_reply": "status",
    "input_request": "prompt",
}


HEADER_NAMES: Final = Names("jupyter.header")
PARENT_NAMES: Final = Names("jupyter.parent_header")
# What every reply may have ("Request-Reply"); the status of is_complete_reply is another thing.
_REPLY_KEYS: Final = {
    name: f"jupyter.reply.{name}" for name in ("status", "ename", "evalue", "traceback")
}
_LANGUAGE: Final = {"language_info": Names("jupyter.kernel_info_reply.language_info")}


def _content_names(msg_type: str) -> Names:
    shared = msg_type.endswith("_reply") and msg_type != "is_complete_reply"
    return Names(
        f"jupyter.{msg_type}",
        _LANGUAGE if msg_type == "kernel_info_reply" else {},
        _REPLY_KEYS if shared else {},
    )


_CONTENT_NAMES: Final = {msg_type: _content_names(msg_type) for msg_type in MESSAGE_TYPES}


def message_key(msg_type: str) -> str:
    """Return the key of a message of this type."""
    return f"jupyter.{msg_type}" if msg_type in MESSAGE_TYPES else "jupyter.message"


def names_of(part: str, msg_type: str) -> Names | None:
    """Return the keys of the members of a JSON part; None where they are the user's own."""
    if part == "content":
        return _CONTENT_NAMES.get(msg_type)
    return {"header": HEADER_NAMES, "parent_header": PARENT_NAMES}.get(part)


def part_spans(part: str, data: bytes, base: int, msg_type: str) -> tuple[Span, ...]:
    """Return the spans of one JSON part, whose first byte is at ``base`` in the stream."""
    return json_spans(data, base, names_of(part, msg_type))
