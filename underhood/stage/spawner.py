"""How JupyterHub starts its users' servers on the stage; runs inside the hub's process.

Strategy: JupyterHub's own spawner for local processes, which needs no system users, told by the
stage which port each user's server takes, by which address the hub reaches it, and by which
address it reaches the hub; and JupyterHub's own way to the proxy, told by which address the proxy
reaches each server. So a tap can stand in front of each of them, and tells the hub, which looks
whether a server is up, from the proxy.
"""

from __future__ import annotations

import asyncio
import time
from typing import Any

from jupyterhub.proxy import ConfigurableHTTPProxy
from jupyterhub.spawner import SimpleLocalProcessSpawner
from traitlets import Dict


class StageSpawner(SimpleLocalProcessSpawner):  # type: ignore[misc]  # jupyterhub is not typed
    """Start single-user servers where the stage wants them."""

    places = Dict(
        config=True,
        help="""
        For each user: `port`, where the server listens; `address`, the port
        by which the hub reaches it; `hub`, the URL by which it reaches the hub; `environment`,
        what the server finds in its environment.
        """,
    )

    async def start(self) -> tuple[str, int]:
        """Start the server; return the address by which the hub reaches it."""
        place = self.places[self.user.name]
        self.port, self.hub_connect_url = place["port"], place["hub"]
        host, _ = await super().start()
        return host, place["address"]

    async def wait_for_death(self, timeout: float = 10) -> bool:
        """Wait for the server's end at most ``timeout`` seconds; say if it came.

        JupyterHub looks ever less often, and so is seconds late.
        """
        end = time.monotonic() + timeout
        while await self.poll() is None:
            if time.monotonic() > end:
                return False
            await asyncio.sleep(0.05)
        return True

    def user_env(self, env: dict[str, str]) -> dict[str, str]:
        """Complete the user's environment."""
        place: dict[str, Any] = self.places[self.user.name]
        return {**super().user_env(env), **place["environment"]}


class StageProxy(ConfigurableHTTPProxy):  # type: ignore[misc]
    """Send the proxy to users' servers by doors of its own."""

    doors = Dict(
        config=True,
        help="From the URL by which the hub reaches a server to that by which the proxy does.",
    )

    async def add_route(self, routespec: str, target: str, data: Any) -> None:
        """Add a route to the proxy's table."""
        await super().add_route(routespec, self.doors.get(target, target), data)

    async def get_all_routes(self) -> dict[str, dict[str, Any]]:
        """Return the proxy's table as the hub knows it."""
        routes: dict[str, dict[str, Any]] = await super().get_all_routes()
        known = {proxys: hubs for hubs, proxys in self.doors.items()}
        for route in routes.values():
            route["target"] = known.get(route["target"], route["target"])
        return routes
