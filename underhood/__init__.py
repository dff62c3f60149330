"""Capture, dissect and draw what Jupyter says on the wire.

>>> from underhood import record
>>> with record() as capture:        # every kernel started in here is tapped
...     ...
>>> capture.trace().sequence_diagram()
"""

from underhood.capture import Capture, record
from underhood.trace import Message, Trace

load = Capture.load

__all__ = ["Capture", "Message", "Trace", "load", "record"]
