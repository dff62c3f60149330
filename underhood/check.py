"""Rules that a healthy conversation keeps, and what a capture shows of those that were broken.

Strategy: one pass sorts the messages of the whole capture by what the rules ask about (who sent
which request, what named it as its parent, what each subscriber was told). A rule is then a short
generator that yields where it was broken, and how. It speaks only where the capture proves it:
what a capture cannot show (a client that it did not see, a reply after its end) is no fault. The
comments say which healthy habits of Jupyter's programs look like faults at first sight.

Where one fault shows on several hops, the hop nearest to its cause is named: a kernel that does
not answer is found between server and kernel, not once more between browser and server.

>>> for finding in capture.trace().check():
...     print(finding)
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Final, TypeAlias

from underhood.capture.store import (
    CLIENT_TO_SERVER,
    DIRECTIONS,
    SERVER_TO_CLIENT,
    Connection,
    Direction,
    Link,
)
from underhood.dissect.jupyter import Signature
from underhood.dissect.spans import UNDECODED, Span
from underhood.dissect.zmtp import GREETING
from underhood.trace import Message, Trace

Where: TypeAlias = Message | Connection

SECOND: Final = 1_000_000_000

PATIENCE_NS: Final = SECOND * 9 // 10
"""How long a heartbeat or a handshake may stay unanswered.

Clients wait a second (``HBChannel.time_to_dead``), which on the wire is a little less.
"""

SETTLED_NS: Final = SECOND // 20
"""How long after its subscription a subscriber surely gets what is published."""


@dataclass(frozen=True, slots=True)
class Finding:
    """One broken rule.

    Parameters
    ----------
    rule
        The name of the :class:`Rule`.
    sentence
        What is wrong, in words.
    message
        The message it concerns; None if it concerns a connection.
    connection
        The connection it concerns; None if it concerns a message.
    advice
        What to do about it.
    """

    rule: str
    sentence: str
    message: Message | None
    connection: Connection | None
    advice: str

    def __str__(self) -> str:
        return f"{self.rule}: {self.sentence}"

    @property
    def time_ns(self) -> int:
        """When it was, in nanoseconds since 1970."""
        if self.message is not None:
            return self.message.time_ns
        assert self.connection is not None
        return self.connection.opened

    @property
    def place(self) -> str:
        """Where to look, in words: ``"message 12"`` or ``"connection 3"``."""
        if self.message is not None:
            return f"message {self.message.number}"
        assert self.connection is not None
        return f"connection {self.connection.id}"


@dataclass(frozen=True, slots=True)
class Rule:
    """What a healthy conversation does.

    Parameters
    ----------
    name
        What findings call a breach of it.
    states
        The rule itself, in a sentence.
    section, url
        The section of the specification that asks for it.
    advice
        What to do when it is broken.
    breaches
        Finds where a conversation breaks it, and says how.
    """

    name: str
    states: str
    section: str
    url: str
    advice: str
    breaches: Callable[[Conversation], Iterator[tuple[Where, str]]] = field(repr=False)


def check(trace: Trace) -> tuple[Finding, ...]:
    """Name what is wrong with a conversation.

    The whole capture is judged, whatever filters made ``trace``, since half a conversation breaks
    many rules; findings are then kept if what they concern is in ``trace``.

    Parameters
    ----------
    trace
        The messages to judge.

    Returns
    -------
    tuple of Finding
        In order of time; empty if all is well.
    """
    whole = trace.whole
    conversation = Conversation(whole)
    found = [
        Finding(
            rule.name,
            sentence,
            where if isinstance(where, Message) else None,
            where if isinstance(where, Connection) else None,
            rule.advice,
        )
        for rule in RULES
        for where, sentence in rule.breaches(conversation)
    ]
    if trace is not whole:
        numbers = {m.number for m in trace}
        connections = {m.connection for m in trace}
        found = [
            f
            for f in found
            if (f.message and f.message.number in numbers)
            or (f.connection and f.connection.id in connections)
        ]
    return tuple(sorted(found, key=lambda f: f.time_ns))


# ---- the conversation, sorted by what the rules ask about


class Conversation:
    """The messages of a capture, sorted by what the rules ask about.

    ``far`` is who is spoken to on a hop, the kernel or the server: what a client says to it on one
    connection, it may answer on another.
    """

    def __init__(self, trace: Trace) -> None:
        self.trace = trace
        self.connections = {c.id: c for c in trace.capture.connections}
        self.on: dict[int, list[Message]] = defaultdict(list)
        self.jupyter: list[Message] = []
        self.sent: dict[tuple[str, str], list[Message]] = defaultdict(list)
        self.told: dict[int, list[Message]] = defaultdict(list)
        self.states: dict[tuple[int, int | str], list[Message]] = defaultdict(list)
        self.sessions: set[tuple[str, str]] = set()
        self.signed: set[str] = set()
        for m in trace:
            self.on[m.connection].append(m)
            if m.jupyter is None:
                continue
            self.jupyter.append(m)
            if m.jupyter.signed_hop and m.jupyter.signature_hex:
                self.signed.add(far(m))
            if m.direction == CLIENT_TO_SERVER:
                self.sent[far(m), m.msg_id].append(m)
                self.sessions.add((far(m), str(m.jupyter.header.get("session"))))
            elif m.parent_id:
                request = self.request(m)
                if request is not None:
                    self.told[request.number].append(m)
                if m.label == "status":
                    of = m.parent_id if request is None else request.number
                    self.states[m.connection, of].append(m)
        self.began = min((c.opened for c in self.connections.values()), default=0)
        self.ended = max(
            (
                time_ns
                for c in self.connections.values()
                for time_ns in (
                    c.opened,
                    *(chunk.time_ns for chunk in c.chunks[-1:]),
                    *(end.time_ns for end in c.ends),
                )
            ),
            default=0,
        )

    def protocol(self, connection: Connection) -> str:
        """Return what a connection speaks."""
        return self.trace.dissections[connection.id].protocol

    def request(self, m: Message) -> Message | None:
        """Return the request that a message names as its parent; None if nobody sent it.

        A ``msg_id`` is not enough to tell: a kernel manager and the clients that it makes share a
        session, and each counts its messages from 0.
        """
        sent = self.sent.get((far(m), m.parent_id), [])
        found = [s for s in sent if m.parent_type in ("", s.label)]
        if len(found) > 1 and m.jupyter is not None:
            when = instant(m.jupyter.parent_header)
            found = [s for s in found if s.jupyter and instant(s.jupyter.header) == when] or found
        return found[-1] if found else None

    def requests(self) -> Iterator[Message]:
        """Yield what clients ask for on shell and control."""
        for m in self.jupyter:
            if (
                m.direction == CLIENT_TO_SERVER
                and m.label.endswith("_request")
                and m.channel in ("shell", "control")
            ):
                yield m

    def replies(self, request: Message) -> list[Message]:
        """Return the replies to a request, on whatever channel they came."""
        label = reply_label(request)
        return [m for m in self.told[request.number] if m.label == label]

    def kernels(self) -> dict[tuple[str, str], list[Connection]]:
        """Return the ZMTP connections of each kernel, by the server's name and the kernel's id."""
        found: dict[tuple[str, str], list[Connection]] = defaultdict(list)
        for c in self.connections.values():
            if self.protocol(c) == "zmtp":
                found[c.link.server, c.link.kernel_id].append(c)
        return found

    def subscribers(self) -> dict[str, list[tuple[Connection, int]]]:
        """Return, by ``far``, the connections that are told its status, and since when.

        The first messages that a kernel publishes may be lost on a subscriber who comes at the same
        moment: that is how publishing works, and why clients repeat their first request.
        """
        found: dict[str, list[tuple[Connection, int]]] = defaultdict(list)
        for number, messages in self.on.items():
            for m in messages:
                if m.label == "SUBSCRIBE" or is_upgrade(m):
                    found[far(m)].append((self.connections[number], m.time_ns + SETTLED_NS))
                    break
        return found

    def shutdown_before(self, link: Link, time_ns: int) -> bool:
        """Whether a kernel had been told to end, not to start again, before this time."""
        return any(
            m.label == "shutdown_request"
            and m.jupyter is not None
            and not m.jupyter.content.get("restart")
            and same_end(m.link, link)
            and m.time_ns < time_ns
            for m in self.jupyter
        )

    def until(self, connection: Connection) -> int:
        """Return until when something could be heard on a connection."""
        end = first_end(connection)
        return self.ended if end is None else end[1]

    def fate(self, m: Message) -> str:
        """Say what became of the connection that a message went unanswered on."""
        connection = self.connections[m.connection]
        end = first_end(connection)
        if end is None:
            return f"the capture ends {seconds(self.ended - m.time_ns)} later"
        who, time_ns = end
        party = m.link.client if who == CLIENT_TO_SERVER else m.link.server
        return f"the {party} closed the connection {seconds(time_ns - m.time_ns)} later"


def far(m: Message) -> str:
    """Return who is spoken to on the message's hop: the kernel, or the server."""
    return m.receiver if m.direction == CLIENT_TO_SERVER else m.sender


def same_end(one: Link, other: Link) -> bool:
    """Whether two links lead to the same kernel or server."""
    return (one.server, one.kernel_id) == (other.server, other.kernel_id)


def reply_label(request: Message) -> str:
    """Return the message type that answers a request."""
    return request.label.removesuffix("_request") + "_reply"


def instant(header: Mapping[str, Any]) -> float:
    """Return the ``date`` of a header in nanoseconds since 1970; infinity if it has none."""
    try:
        return datetime.fromisoformat(str(header.get("date"))).timestamp() * 1e9
    except (ValueError, OverflowError):
        return float("inf")


def is_upgrade(m: Message) -> bool:
    """Whether it is the response that turns HTTP into WebSocket."""
    return m.protocol == "http" and m.direction == SERVER_TO_CLIENT and m.status == 101


def first_end(connection: Connection) -> tuple[str, int] | None:
    """Return who ended a connection first, as a direction, and when; None if it stayed open."""
    return (connection.ends[0].direction, connection.ends[0].time_ns) if connection.ends else None


def left_by_client(connection: Connection) -> bool:
    """Whether the client was the first to go: what it missed then, it did not want."""
    end = first_end(connection)
    return end is not None and end[0] == CLIENT_TO_SERVER


def listed(words: Iterable[str]) -> str:
    """Write a list in words: ``"control, shell and stdin"``."""
    *most, last = sorted(words)
    return f"{', '.join(most)} and {last}" if most else last


def seconds(ns: int) -> str:
    """Write a duration in seconds or milliseconds."""
    return f"{ns / 1e9:.1f} s" if ns >= SECOND else f"{ns / 1e6:.0f} ms"


def nearest_to_cause(found: Iterable[tuple[Message, str]]) -> Iterator[tuple[Message, str]]:
    """Keep, of the same message on several hops, the one that went furthest."""
    last: dict[str, tuple[Message, str]] = {}
    for m, sentence in sorted(found, key=lambda item: item[0].time_ns):
        last[m.msg_id or f"#{m.number}"] = (m, sentence)
    yield from last.values()


# ---- the rules

_rules: list[Rule] = []
_Breaches: TypeAlias = Callable[[Conversation], Iterator[tuple[Where, str]]]

_MESSAGING: Final = "https://jupyter-client.readthedocs.io/en/stable/messaging.html"
_JUPYTER: Final = "Messaging in Jupyter"


def _rule(
    name: str, states: str, section: str, url: str, advice: str
) -> Callable[[_Breaches], _Breaches]:
    def register(breaches: _Breaches) -> _Breaches:
        _rules.append(Rule(name, states, section, url, advice, breaches))
        return breaches

    return register


@_rule(
    "request without reply",
    "Each request on shell or control gets a reply, and each input_request an input_reply.",
    f"{_JUPYTER}, Request-Reply",
    f"{_MESSAGING}#request-reply",
    "Look at what ended the connection, and at the other findings: a kernel that died, hangs, or "
    "refused the message does not answer. Restart it, or repair what it refused.",
)
def _unanswered(talk: Conversation) -> Iterator[tuple[Where, str]]:
    yield from nearest_to_cause(_unanswered_requests(talk))
    yield from _unanswered_prompts(talk)


def _unanswered_requests(talk: Conversation) -> Iterator[tuple[Message, str]]:
    for request in talk.requests():
        if not talk.replies(request) and not any(ok(talk, request) for ok in _EXCUSES):
            yield request, f"{request.label} got no {reply_label(request)}; {talk.fate(request)}"


def _asked_again(talk: Conversation, request: Message) -> bool:
    """Clients and servers repeat kernel_info_request until one is answered, then look away."""
    return request.label == "kernel_info_request" and any(
        m.label == "kernel_info_reply" and far(m) == far(request) and m.time_ns > request.time_ns
        for m in talk.jupyter
    )


def _passed_over(talk: Conversation, request: Message) -> bool:
    """A kernel need not answer what it does not know, and its idle says that it has seen it.

    See "Compatibility" in the messaging specification, which also says what it must know.
    """
    return request.label not in ("execute_request", "kernel_info_request") and any(
        m.label == "status" and m.detail == "idle" for m in talk.told[request.number]
    )


def _gone_as_asked(talk: Conversation, request: Message) -> bool:
    """Who is told to go may be gone before it has answered."""
    return request.label == "shutdown_request" and any(
        (end := first_end(c)) is not None
        and end[0] == SERVER_TO_CLIENT
        and end[1] >= request.time_ns
        for c in talk.connections.values()
        if same_end(c.link, request.link)
    )


def _left_at_once(talk: Conversation, request: Message) -> bool:
    """A browser's tab may be closed at any moment; who goes at once does not want the answer."""
    connection = talk.connections[request.connection]
    soon = talk.until(connection) - request.time_ns < PATIENCE_NS
    return soon and left_by_client(connection)


_EXCUSES: Final = (_asked_again, _passed_over, _gone_as_asked, _left_at_once)


def _unanswered_prompts(talk: Conversation) -> Iterator[tuple[Message, str]]:
    for messages in talk.on.values():
        asked: list[Message] = []
        for m in messages:
            if m.label == "input_request" and m.direction == SERVER_TO_CLIENT:
                asked.append(m)
            elif m.label == "input_reply" and m.direction == CLIENT_TO_SERVER and asked:
                asked.pop(0)
        for m in asked:
            parent = talk.request(m)
            # An interrupt ends the wait for input, and then the request has its reply.
            if parent is not None and not talk.replies(parent):
                yield m, f"input_request got no input_reply; {talk.fate(m)}"


@_rule(
    "HTTP request without response",
    "Each HTTP request gets a response.",
    "RFC 9110, Messages",
    "https://www.rfc-editor.org/rfc/rfc9110#section-3.4",
    "See the server's log for the time of the request: it may have crashed, or still be at work.",
)
def _http_unanswered(talk: Conversation) -> Iterator[tuple[Where, str]]:
    for number, messages in talk.on.items():
        asked = [m for m in messages if is_http(m, CLIENT_TO_SERVER)]
        answered = sum(is_http(m, SERVER_TO_CLIENT) and m.is_final for m in messages)
        # A browser drops what it has asked for when it leaves a page.
        if not left_by_client(talk.connections[number]):
            for m in asked[answered:]:
                yield m, f"{m.label} got no response; {talk.fate(m)}"


def is_http(m: Message, direction: str) -> bool:
    """Whether it is an HTTP message that goes this way."""
    return m.protocol == "http" and m.direction == direction


@_rule(
    "missing busy",
    "A kernel publishes `status: busy` when it begins a request.",
    f"{_JUPYTER}, Kernel status",
    f"{_MESSAGING}#kernel-status",
    "The kernel must publish busy for every request, on iopub, with the request as its parent.",
)
def _missing_busy(talk: Conversation) -> Iterator[tuple[Where, str]]:
    yield from nearest_to_cause(_missing_state(talk, "busy"))


@_rule(
    "missing idle",
    "A kernel publishes `status: idle` when it has completed a request.",
    f"{_JUPYTER}, Kernel status",
    f"{_MESSAGING}#kernel-status",
    "Clients wait for this idle, perhaps for ever. If the kernel died, restart it; if it did not, "
    "it must publish idle for every request, on iopub, with the request as its parent.",
)
def _missing_idle(talk: Conversation) -> Iterator[tuple[Where, str]]:
    yield from nearest_to_cause(_missing_state(talk, "idle"))


def _missing_state(talk: Conversation, state: str) -> Iterator[tuple[Message, str]]:
    subscribers = talk.subscribers()
    for request in talk.requests():
        replies = talk.replies(request)
        for connection, since in subscribers[far(request)]:
            websocket = talk.protocol(connection) == "http"
            if request.time_ns < since or (websocket and connection.id != request.connection):
                continue
            said = {m.detail for m in talk.states[connection.id, request.number]}
            if state in said or not (said or replies):
                continue
            if left_by_client(connection) or _left_before(connection, request, replies):
                continue
            # A kernel that shuts down may be gone before it is idle again.
            if request.label == "shutdown_request":
                continue
            begun = f"got its {replies[0].label}" if replies else f"was said to be {min(said)}"
            yield request, f"{request.label} {begun}, but no status: {state} names it as parent"
            break


def _left_before(connection: Connection, request: Message, replies: list[Message]) -> bool:
    """Whether a subscriber had gone before there was anything to be told."""
    end = first_end(connection)
    return end is not None and end[1] < (replies[0] if replies else request).time_ns


@_rule(
    "status out of order",
    "For each request, busy comes once and before idle, and idle once.",
    f"{_JUPYTER}, Kernel status",
    f"{_MESSAGING}#kernel-status",
    "The kernel must publish busy, then what the request produces, then idle, on one socket.",
)
def _disorder(talk: Conversation) -> Iterator[tuple[Where, str]]:
    def found() -> Iterator[tuple[Message, str]]:
        for messages in talk.states.values():
            seen: list[str] = []
            for m in messages:
                if m.detail in seen:
                    yield m, f"status: {m.detail} came twice for one request"
                elif m.detail == "busy" and "idle" in seen:
                    yield m, "status: busy came after the idle of the same request"
                seen.append(m.detail)

    yield from nearest_to_cause(found())


@_rule(
    "unknown parent",
    "What a kernel sends names a request that a client has sent as its parent, or none.",
    f"{_JUPYTER}, Parent header",
    f"{_MESSAGING}#parent-header",
    "The kernel must copy the header of the request into parent_header as it is.",
)
def _unknown_parent(talk: Conversation) -> Iterator[tuple[Where, str]]:
    unread = {
        (c.link.server, c.link.kernel_id)
        for c in talk.connections.values()
        if any(_undecoded(talk, c, CLIENT_TO_SERVER))
    }
    all_seen = {
        far(m) for m in talk.jupyter if m.link.kernel_id and m.channel in ("shell", "control")
    }

    def found() -> Iterator[tuple[Message, str]]:
        for m in talk.jupyter:
            parent = m.jupyter.parent_header if m.jupyter else {}
            if m.direction == CLIENT_TO_SERVER or not parent:
                continue
            if talk.request(m) is not None:
                continue
            # Iopub is public (and a capture may not know what is iopub): it tells of the requests
            # of other clients too. A kernel's taps see all of its clients; other captures only
            # those that they have heard.
            session = str(parent.get("session", ""))
            heard = (far(m), session) in talk.sessions or far(m) in all_seen
            reply = m.label.endswith("_reply") and m.label != "shutdown_reply"
            if not (reply or heard or m.channel in ("shell", "control", "stdin")):
                continue
            # Jupyter Server asks for kernel_info in the name of each front end that connects.
            if m.jupyter and not m.jupyter.signed_hop and m.parent_type == "kernel_info_request":
                continue
            # A kernel may ask itself: ipykernel's debugger sends its own shell an execute_request.
            if m.jupyter and session and session == str(m.jupyter.header.get("session")):
                continue
            # Its request may be older than the capture, or in bytes that could not be read.
            if instant(parent) < talk.began:
                continue
            if (m.link.server, m.link.kernel_id) in unread:
                continue
            yield m, f"{m.label} names a parent that nobody sent: {m.parent_id!r}"

    yield from nearest_to_cause(found())


@_rule(
    "reply on the wrong channel",
    "A reply comes on the channel of its request.",
    f"{_JUPYTER}, Introduction",
    f"{_MESSAGING}#introduction",
    "The kernel must answer on the socket that the request came on; the client waits there.",
)
def _wrong_channel(talk: Conversation) -> Iterator[tuple[Where, str]]:
    def found() -> Iterator[tuple[Message, str]]:
        for request in talk.requests():
            for reply in talk.replies(request):
                # A kernel tells everybody that it shuts down, on iopub too.
                if reply.channel != request.channel and reply.label != "shutdown_reply":
                    yield (
                        reply,
                        f"{reply.label} came on {reply.channel}, "
                        f"and its request was sent on {request.channel}",
                    )

    yield from nearest_to_cause(found())


@_rule(
    "bad signature",
    "The signature is the HMAC of the four JSON parts with the connection file's key.",
    f"{_JUPYTER}, The Wire Protocol",
    f"{_MESSAGING}#the-wire-protocol",
    "Use the key of this kernel's connection file: with another, the receiver drops the message.",
)
def _bad_signature(talk: Conversation) -> Iterator[tuple[Where, str]]:
    for m in talk.jupyter:
        if m.signature is Signature.INVALID:
            yield m, f"the signature of {m.label} does not fit the kernel's key"


@_rule(
    "missing signature",
    "Where there is a key, every message is signed.",
    f"{_JUPYTER}, The Wire Protocol",
    f"{_MESSAGING}#the-wire-protocol",
    "Use the key of this kernel's connection file: the receiver drops what is not signed.",
)
def _missing_signature(talk: Conversation) -> Iterator[tuple[Where, str]]:
    for m in talk.jupyter:
        # Without a key nothing is signed, and that is allowed.
        if m.signature is Signature.UNSIGNED and (
            far(m) in talk.signed or talk.trace.capture.keys.get(m.link.kernel_id)
        ):
            yield m, f"{m.label} has no signature, and others to this kernel have one"


@_rule(
    "message replayed",
    "Each message has a msg_id of its own.",
    f"{_JUPYTER}, Message Header",
    f"{_MESSAGING}#message-header",
    "Find who sends it again: jupyter_client refuses a signature that it has seen before.",
)
def _replayed(talk: Conversation) -> Iterator[tuple[Where, str]]:
    def found() -> Iterator[tuple[Message, str]]:
        seen: dict[tuple[object, ...], Message] = {}
        for m in talk.jupyter:
            header = m.jupyter.header if m.jupyter is not None else {}
            # What a kernel publishes goes to each subscriber, on a connection of its own.
            ears = far(m) if m.direction == CLIENT_TO_SERVER else m.connection
            same = (ears, m.direction, m.msg_id, m.label, str(header.get("date")))
            first = seen.setdefault(same, m)
            if first is not m and m.msg_id:
                yield m, f"{m.label} was sent before, as message {first.number}"

    yield from nearest_to_cause(found())


@_rule(
    "duplicate identity",
    "Each client has a routing identity of its own.",
    "ZeroMQ Request-Reply (RFC 28), The ROUTER Socket Type",
    "https://rfc.zeromq.org/spec/28/#the-router-socket-type",
    "Give each client a session of its own: build it from the connection file, and call "
    "manager.client() once only.",
)
def _duplicate_identity(talk: Conversation) -> Iterator[tuple[Where, str]]:
    for connections in talk.kernels().values():
        holders: dict[tuple[str, bytes], list[Connection]] = defaultdict(list)
        twice: dict[bytes, list[Connection]] = defaultdict(list)
        for c in connections:
            identity = talk.trace.dissections[c.id].identity
            # Publishers and heartbeats route nothing by identity.
            if not identity or c.link.channel in ("iopub", "heartbeat"):
                continue
            earlier = holders[c.link.channel, identity]
            # A client that connects again has left its old connection before.
            if any((e := first_end(o)) is None or e[1] > c.opened for o in earlier):
                twice[identity].append(c)
            earlier.append(c)
        for identity, later in twice.items():
            channels = listed({c.link.channel for c in later})
            m = next(m for m in talk.on[later[0].id] if m.direction == CLIENT_TO_SERVER)
            name = identity.decode("utf-8", "backslashreplace")
            yield (
                m,
                f"a second connection to {channels} announces the identity {name!r} while the "
                "first is open: the kernel answers only one of them",
            )


@_rule(
    "unanswered heartbeat",
    "A kernel echoes each heartbeat at once, whatever it computes.",
    f"{_JUPYTER}, Heartbeat for kernels",
    f"{_MESSAGING}#heartbeat-for-kernels",
    "The process is stopped, or its host is overloaded: look at it (SIGCONT wakes a stopped one), "
    "or restart the kernel.",
)
def _unanswered_heartbeat(talk: Conversation) -> Iterator[tuple[Where, str]]:
    for number, messages in talk.on.items():
        connection = talk.connections[number]
        if connection.link.channel != "heartbeat":
            continue
        waiting: list[Message] = []
        for m in messages:
            if not _is_beat(m):
                continue
            if m.direction == CLIENT_TO_SERVER:
                waiting.append(m)
            elif waiting:
                waiting.pop(0)
        for m in waiting:
            waited = talk.until(connection) - m.time_ns
            # Who leaves, or is killed, before the beat is due, owes nothing.
            if waited >= PATIENCE_NS and not talk.shutdown_before(m.link, m.time_ns):
                yield m, f"the kernel did not echo {m.label!r} in {seconds(waited)}"


def _is_beat(m: Message) -> bool:
    """Whether it is a message on the heartbeat channel, and no part of the handshake."""
    return m.protocol == "zmtp" and m.label not in _HANDSHAKE and not m.label.isupper()


_HANDSHAKE: Final = ("greeting", "command", "sealed")


@_rule(
    "nobody answers",
    "Who is connected to accepts the connection, and answers a greeting.",
    "ZMTP 3.1 (RFC 37), Overall Behavior",
    "https://rfc.zeromq.org/spec/37/#overall-behavior",
    "Nothing listens there, or it hangs: start or restart it, and read the address again.",
)
def _nobody_answers(talk: Conversation) -> Iterator[tuple[Where, str]]:
    calls: dict[tuple[str, str], list[Connection]] = defaultdict(list)
    for c in talk.connections.values():
        calls[c.link.server, c.link.kernel_id].append(c)
    for connections in calls.values():
        heard = [c for c in connections if any(x.direction == SERVER_TO_CLIENT for x in c.chunks)]
        last_heard = max((c.opened for c in heard), default=0)
        for c in connections:
            # Clients knock before a kernel is up, and after it has been shut down.
            if c in heard or c.opened <= last_heard or talk.shutdown_before(c.link, c.opened):
                continue
            if (
                not c.chunks
                and first_end(c)
                and not left_by_client(c)
                and c.ends[0].kind == "reset"
            ):
                yield c, f"{c.link.label}: the connection was refused"
                break  # the others knock at the same closed door
            until = talk.until(c)
            if talk.protocol(c) == "zmtp" and until - c.opened >= PATIENCE_NS:
                yield talk.on[c.id][0], f"no answer to the greeting in {seconds(until - c.opened)}"
                break


@_rule(
    "handshake refused",
    "Both ends of a connection announce the same security mechanism.",
    "ZMTP 3.1 (RFC 37), Authentication and Confidentiality",
    "https://rfc.zeromq.org/spec/37/#authentication-and-confidentiality",
    "Take the keys from the connection file (curve_publickey, curve_secretkey), or none if it has "
    "none; clients try again and again without a word.",
)
def _handshake_refused(talk: Conversation) -> Iterator[tuple[Where, str]]:
    refused: dict[tuple[str, str, str], list[Message]] = defaultdict(list)
    for number, messages in talk.on.items():
        end = first_end(talk.connections[number])
        if end is None or [m.label for m in messages] != ["greeting", "greeting"]:
            continue
        # The one who hangs up may have said less than it heard: its mechanism comes late.
        heard = next((m for m in messages if m.direction != end[0] and m.size == GREETING), None)
        if heard is not None:
            link, mechanism = talk.connections[number].link, heard.detail.split()[-1]
            refused[link.server, link.kernel_id, mechanism].append(heard)
    for (_, _, mechanism), greetings in refused.items():
        # Once may be an accident, such as a kernel that just ended.
        if len(greetings) > 1:
            m = greetings[0]
            yield (
                m,
                f"the {m.receiver} hung up on a greeting that announces {mechanism}, "
                f"{len(greetings)} times",
            )


@_rule(
    "WebSocket closed abnormally",
    "Who ends a WebSocket connection says so in a close frame, with a code for a normal end.",
    "RFC 6455, Closing the Connection",
    "https://www.rfc-editor.org/rfc/rfc6455#section-7",
    "Look for a crashed server, a proxy's timeout or a lost network; messages may be lost.",
)
def _websocket_closed(talk: Conversation) -> Iterator[tuple[Where, str]]:
    for number, messages in talk.on.items():
        upgrade = next((m for m in messages if is_upgrade(m)), None)
        if upgrade is None:
            continue
        connection = talk.connections[number]
        close = next(
            (m for m in messages if m.protocol == "websocket" and m.label == "close"), None
        )
        if close is not None:
            if close.close_code not in _NORMAL_CLOSE:
                yield close, f"it was closed with the code {close.close_code}"
        elif (end := first_end(connection)) is not None:
            who = connection.link.client if end[0] == CLIENT_TO_SERVER else connection.link.server
            yield connection, f"the {who} ended the connection without a close frame (code 1006)"


_NORMAL_CLOSE: Final = (None, 1000, 1001, 1005)


@_rule(
    "HTTP error status",
    "A request that succeeds is answered with a status below 400.",
    "RFC 9110, Status Codes",
    "https://www.rfc-editor.org/rfc/rfc9110#section-15",
    "401 and 403: send the token or cookie, and X-XSRFToken with a cookie. 404: look at the path. "
    "5xx: see the server's log.",
)
def _http_error(talk: Conversation) -> Iterator[tuple[Where, str]]:
    failed: list[tuple[Message, Message]] = []
    for messages in talk.on.values():
        asked = iter([m for m in messages if is_http(m, CLIENT_TO_SERVER)])
        for m in messages:
            if is_http(m, SERVER_TO_CLIENT) and m.is_final:
                request = next(asked, None)
                if m.status >= 400 and request is not None:
                    failed.append((request, m))
    for request, response in failed:
        # A proxy passes on what it was answered itself.
        if not any(
            inner.sender == response.sender
            and (inner.label, answer.status) == (request.label, response.status)
            and request.time_ns <= inner.time_ns <= answer.time_ns <= response.time_ns
            for inner, answer in failed
        ):
            yield response, f"{request.label} got {response.label}"


@_rule(
    "undecoded bytes",
    "Every byte belongs to a message.",
    "ZMTP 3.1 (RFC 37), Formal Grammar; HTTP/1.1 (RFC 9112); WebSocket (RFC 6455)",
    "https://rfc.zeromq.org/spec/37/#formal-grammar",
    "The capture was cut, began in the middle, or the sender broke its protocol: see the offset.",
)
def _bytes_undecoded(talk: Conversation) -> Iterator[tuple[Where, str]]:
    for connection in talk.connections.values():
        for direction in DIRECTIONS:
            for span in _undecoded(talk, connection, direction):
                arrow = "→" if direction == CLIENT_TO_SERVER else "←"
                yield (
                    connection,
                    f"{connection.link.client} {arrow} {connection.link.server}, "
                    f"{connection.link.channel}: {span.length} bytes at offset {span.start} "
                    f"could not be read: {span.value}",
                )
                break  # what follows is most probably a consequence


def _undecoded(talk: Conversation, connection: Connection, direction: Direction) -> Iterator[Span]:
    dissection = talk.trace.dissections[connection.id]
    # Most messages are Jupyter's, and of these the dissector knows whether all parts were read.
    sound = {
        unit.start
        for unit in dissection.units(direction)
        if unit.jupyter is not None and not unit.jupyter.note
    }
    stack = [span for span in reversed(dissection.spans(direction)) if span.start not in sound]
    while stack:
        span = stack.pop()
        if span.label == UNDECODED:
            yield span
        # A value that could be read as a whole needs no look inside.
        elif not isinstance(span.value, dict | list) or not span.value:
            stack.extend(reversed(span.children))


RULES: Final = tuple(_rules)
"""All rules, in the order in which they are applied."""
