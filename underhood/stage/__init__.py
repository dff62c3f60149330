"""The stage: real actors that come and go cleanly, tapped while something is recording."""

from underhood.stage.browser import web_page
from underhood.stage.ensemble import front_ends
from underhood.stage.hub import jupyterhub
from underhood.stage.lab import jupyterlab, notebook
from underhood.stage.processes import Home, StartError
from underhood.stage.replay import MissingActor, ReplayError
from underhood.stage.server import jupyter_server

__all__ = [
    "Home",
    "MissingActor",
    "ReplayError",
    "StartError",
    "front_ends",
    "jupyter_server",
    "jupyterhub",
    "jupyterlab",
    "notebook",
    "web_page",
]
