"""The door of the dissectors: :func:`dissect` reads both directions of one connection."""

from underhood.dissect.connection import Dissection, Unit, dissect
from underhood.dissect.spans import Span

__all__ = ["Dissection", "Span", "Unit", "dissect"]
