"""A real Jupyter Kernel Gateway: kernels for a server that lives elsewhere; tapped on both sides.

Strategy: the gateway is a child in a neutral home, with a port from the stage, since it cannot
choose one and tell. Inside a ``record()`` a tap stands in front of that port; what its kernels say
is captured in its process, and joins the recording when it stops.

>>> async with record() as capture, kernel_gateway() as gateway:
...     async with jupyter_server(*gateway.arguments) as server:
...         await server.request("POST", "/api/kernels")
"""

from __future__ import annotations

import contextlib
import secrets
from collections.abc import AsyncIterator
from http import HTTPStatus
from importlib.util import find_spec

from underhood.capture.recording import environment
from underhood.stage.processes import HOST, Child, Home, free_ports
from underhood.stage.replay import MissingActor
from underhood.stage.server import Taps, request


class Gateway:
    """A Kernel Gateway that runs.

    Attributes
    ----------
    url : str
        Where a server reaches it; no slash at its end.
    token : str
        Its secret, made for this run.
    process : Child
        Its process.
    """

    def __init__(self, url: str, token: str, process: Child) -> None:
        self.url, self.token, self.process = url, token, process

    def __repr__(self) -> str:
        return f"<Gateway at {self.url}, {self.process!r}>"

    @property
    def arguments(self) -> tuple[str, ...]:
        """What tells a Jupyter Server on its command line to have its kernels here."""
        return (f"--gateway-url={self.url}", f"--GatewayClient.auth_token={self.token}")


@contextlib.asynccontextmanager
async def kernel_gateway(*, client: str = "server") -> AsyncIterator[Gateway]:
    """Run a Jupyter Kernel Gateway as long as the block runs.

    Parameters
    ----------
    client
        What pictures call the program that asks it for kernels.

    Raises
    ------
    MissingActor
        If it is not installed.
    StartError
        If it is not ready within a minute; with the end of its log.
    """
    if find_spec("kernel_gateway") is None:
        raise MissingActor("the Kernel Gateway is missing: pip install jupyter_kernel_gateway")
    async with contextlib.AsyncExitStack() as stack:
        home = await stack.enter_async_context(Home())
        taps = Taps()
        stack.push_async_callback(taps.close)
        token = secrets.token_hex(16)
        (port,) = free_ports(1)
        process = await home.start(
            [
                *(home.python, "-m", "kernel_gateway"),
                f"--ip={HOST}",
                f"--port={port}",
                "--port_retries=0",
                "--KernelSpecManager.allowed_kernelspecs={'python3'}",
            ],
            name="Kernel Gateway",
            environment={"KG_AUTH_TOKEN": token, **environment("gateway")},
        )
        stack.push_async_callback(process.stop)

        async def ready() -> bool:
            with contextlib.suppress(OSError):
                secret = {"Authorization": f"token {token}"}
                answer = await request("GET", f"http://{HOST}:{port}/api", headers=secret)
                return answer.status == HTTPStatus.OK
            return False

        await process.until(ready)
        yield Gateway(f"http://{HOST}:{taps.before(port, client, 'gateway')}", token, process)
