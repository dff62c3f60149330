"""Draw the picture of the README: one cell, run on a real kernel, as captured.

Usage: ``.venv/bin/python .ci/readme_diagram.py``. Writes ``book/_static/readme-diagram.png``.
"""

from __future__ import annotations

import asyncio
from pathlib import Path
from subprocess import DEVNULL

from jupyter_client.manager import start_new_async_kernel

from underhood import record

TARGET = Path(__file__).parent.parent / "book/_static/readme-diagram.png"


async def main() -> None:
    """Run one cell, and draw what was said about it."""
    async with record("readme") as capture:
        manager, client = await start_new_async_kernel(kernel_name="python3", stderr=DEVNULL)
        reply = await client.execute_interactive('print("hello")', output_hook=lambda _: None)
        client.stop_channels()
        await manager.shutdown_kernel()
    trace = capture.trace().answering(reply["parent_header"]["msg_id"])
    trace.sequence_diagram(title='print("hello")').save(TARGET)


asyncio.run(main())
