"""The door of the dissectors: :func:`dissect` reads both directions of one connection."""

from underhood.dissect.connection import Dissection, Unit, dissect
from underhood.dissect.explanations import Explanation, explain
from underhood.dissect.spans import Span

__all__ = ["Dissection", "Explanation", "Span", "Unit", "dissect", "explain"]
