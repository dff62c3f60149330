"""The words of pictures: durations, sentences, lists, the same in all of them.

Strategy: everything that a picture says in words about a message comes from here, so that what a
screen reader says, what a table shows and what an arrow is labelled with never differ.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Final

from underhood.draw.palette import CHANNELS

if TYPE_CHECKING:
    from underhood.trace import Message

_UNITS: Final = ((1_000_000_000, "s"), (1_000_000, "ms"), (1_000, "µs"))
_THIN: Final = "\N{NARROW NO-BREAK SPACE}"
_LONGEST: Final = 160  # characters of a free text (a prompt, an error's name) that are shown
# Neither XML nor a terminal takes these as they are: control characters, halves of surrogates.
_UNFIT: Final = re.compile("[\x00-\x1f\x7f-\x9f\ud800-\udfff\ufffe\uffff]")


def tint(message: Message) -> str:
    """Return the name under which the palette has the message's channel."""
    if message.protocol == "websocket" and message.jupyter is None:
        return "websocket"
    return message.channel if message.channel in CHANNELS else "other"


def channel(message: Message) -> str:
    """Return the name of the message's channel, as a reader knows it."""
    return "websocket" if tint(message) == "websocket" else message.channel


def milliseconds(ns: int) -> str:
    """Write a time in milliseconds, to one decimal below a hundred."""
    ms = ns / 1e6
    return f"{ms:.1f}" if abs(ms) < 99.95 else f"{ms:,.0f}".replace(",", _THIN)


def in_words(ns: int) -> str:
    """Write a duration with its unit: ``"340 µs"``, ``"2.1 ms"``, ``"1.3 s"``."""
    for size, unit in _UNITS:
        if ns >= size:
            value = ns / size
            return f"{value:.1f} {unit}" if value < 9.95 else f"{value:.0f} {unit}"
    return f"{ns} ns"


def octets(count: int) -> str:
    """Write a number of bytes: ``"1 byte"``, ``"512 bytes"``, ``"12 345 bytes"``."""
    return "1 byte" if count == 1 else f"{count:,} bytes".replace(",", _THIN)


def messages(count: int) -> str:
    """Write a number of messages: ``"no messages"``, ``"one message"``, ``"14 messages"``."""
    return {0: "no messages", 1: "one message"}.get(count, f"{count} messages")


def joined(words: Iterable[str]) -> str:
    """Join words as in "a, b and c"."""
    found = list(words)
    return " and ".join((", ".join(found[:-1]), found[-1])) if len(found) > 1 else "".join(found)


def plain(text: str) -> str:
    """Return text on one line, cut where it is very long, without what cannot be shown."""
    if len(text) > _LONGEST:
        text = text[: _LONGEST - 1] + "…"
    return _UNFIT.sub(
        lambda found: " " if found[0] in "\t\n\r" else "\N{REPLACEMENT CHARACTER}", text
    )


def says(message: Message) -> str:
    """Return what a message is in a word or two: ``"status: busy"``."""
    label = plain(message.label) or "message"
    return f"{label}: {plain(message.detail)}" if message.detail else label


def round_step(least: float) -> float:
    """Return the smallest of 1, 2 or 5 times a power of ten that is not below ``least``."""
    if least <= 0:
        return 0.0
    power = 1e-6
    while True:
        for factor in (1, 2, 5):
            if factor * power >= least:
                return factor * power
        power *= 10


class Clock:
    """Says when messages passed: since the first of a trace, or since what they answer.

    Parameters
    ----------
    trace
        The messages; the first one's time is zero.
    """

    def __init__(self, trace: Sequence[Message]) -> None:
        self.start = trace[0].time_ns if len(trace) else 0
        self.end = trace[-1].time_ns if len(trace) else 0
        self._requests: dict[str, int] = {}
        for message in trace:
            if message.label.endswith("_request"):
                self._requests.setdefault(message.msg_id, message.time_ns)

    def since_start(self, message: Message) -> int:
        """Return the nanoseconds since the first message."""
        return message.time_ns - self.start

    def when(self, message: Message) -> str:
        """Say when a message passed: since the request that it answers, if that is known."""
        asked = self._requests.get(message.parent_id) if self._requests else None
        if asked is not None and message.time_ns >= asked:
            return f"{in_words(message.time_ns - asked)} after the request"
        if message.time_ns == self.start:
            return "at the start"
        return f"{in_words(message.time_ns - self.start)} after the first message"

    def sentence(self, message: Message, fate: str = "") -> str:
        """Say a message in a sentence.

        As in ``"iopub, kernel to client, status: idle, 12 ms after the request"``.
        """
        found = (
            f"{channel(message)}, {message.sender} to {message.receiver}, {says(message)}, "
            f"{self.when(message)}"
        )
        return f"{found}, {fate}" if fate else found
