"""How JupyterHub starts its users' servers on the stage; runs inside the hub's process.

Strategy: JupyterHub's own spawner for local processes, which needs no system users, told by the
stage which port each user's server takes, by which address the proxy reaches it, and by which
address it reaches the hub. So a tap can stand in front of each of them.
"""

from __future__ import annotations

from typing import Any

from jupyterhub.spawner import SimpleLocalProcessSpawner
from traitlets import Dict


class StageSpawner(SimpleLocalProcessSpawner):  # type: ignore[misc]  # jupyterhub is not typed
    """Start single-user servers where the stage wants them."""

    places = Dict(
        config=True,
        help="""
        For each user: `port`, where the server listens; `address`, the port
        by which the proxy reaches it; `hub`, the URL by which it reaches the hub; `environment`,
        what the server finds in its environment.
        """,
    )

    async def start(self) -> tuple[str, int]:
        """Start the server; return the address that the hub gives to the proxy."""
        place = self.places[self.user.name]
        self.port, self.hub_connect_url = place["port"], place["hub"]
        host, _ = await super().start()
        return host, place["address"]

    def user_env(self, env: dict[str, str]) -> dict[str, str]:
        """Complete the user's environment."""
        place: dict[str, Any] = self.places[self.user.name]
        return {**super().user_env(env), **place["environment"]}
