"""The Kernel Gateway on the stage: a server's kernels that live elsewhere."""

from __future__ import annotations

import asyncio

import psutil
import pytest

from underhood import record
from underhood.stage import jupyter_server
from underhood.stage.gateway import kernel_gateway

pytestmark = pytest.mark.anyio


async def test_a_servers_kernel_lives_behind_the_gateway() -> None:
    async with (
        record() as capture,
        kernel_gateway() as gateway,
        jupyter_server(*gateway.arguments) as server,
    ):
        started = await server.request("POST", "/api/kernels", {"name": "python3"})
        assert started.status == 201
        assert not psutil.Process(server.process.pid).children()
        (kernel,) = psutil.Process(gateway.process.pid).children()
        while not capture.trace().types("iopub_welcome"):  # it speaks
            await asyncio.sleep(0.05)
        stopped = await server.request("DELETE", f"/api/kernels/{started.json()['id']}")
        assert stopped.status == 204
    assert not kernel.is_running()
    trace = capture.trace()
    assert set(trace.parties) == {"client", "server", "gateway", "kernel"}
    assert not trace.between("server", "kernel")
    (asked,) = trace.between("server", "gateway").types("POST /api/kernels")
    assert asked.headers["Authorization"] == f"token {gateway.token}"


async def test_a_gateway_leaves_nothing_behind() -> None:
    async with kernel_gateway() as gateway:
        pid = gateway.process.pid
        assert psutil.pid_exists(pid)
    assert not psutil.pid_exists(pid)
