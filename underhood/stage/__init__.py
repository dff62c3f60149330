"""The stage: real actors that come and go cleanly, tapped while something is recording."""

from underhood.stage.processes import StartError
from underhood.stage.server import jupyter_server

__all__ = ["StartError", "jupyter_server"]
