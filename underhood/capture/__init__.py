"""The door of the capture: :func:`record`, and the values that a recording yields."""

from underhood.capture.recording import record
from underhood.capture.store import Capture, Chunk, Connection, End, Link

__all__ = ["Capture", "Chunk", "Connection", "End", "Link", "record"]
