"""Run a cell as a front end does, where no front end is wanted.

Strategy: the two things that any front end must do, and no more: start a kernel over REST, and
talk to it over a WebSocket until reply *and* idle have come.

>>> async with jupyter_server() as server:
...     await run_cell(server.url, "6 * 7", token=server.token)
'42'
"""

from __future__ import annotations

import json
from typing import Any, Final

from underhood.stage.server import request

_PATIENCE_S: Final = 180.0
"""How long a kernel may take to start, in seconds."""


async def run_cell(url: str, code: str, *, token: str) -> str:
    """Start a kernel on a server, run code in it, and leave it running.

    Parameters
    ----------
    url
        Where the server is reached, without a slash at its end.
    code
        What to run.
    token
        What the server, or the hub that it asks, accepts.

    Returns
    -------
    str
        What a reader would see below the cell, as plain text.

    Raises
    ------
    ConnectionError
        If the server does not start a kernel, or the WebSocket closes before the cell has run.
    """
    from jupyter_client.session import Session, json_packer
    from tornado.httpclient import HTTPRequest
    from tornado.websocket import websocket_connect

    secret = {"Authorization": f"token {token}"}
    started = await request("POST", f"{url}/api/kernels", {"name": "python3"}, headers=secret)
    if started.status != 201:
        raise ConnectionError(f"{url} started no kernel: {started.status} {started.reason}")
    session = Session(username="jovyan")
    asked: dict[str, Any] = session.msg("execute_request", {"code": code, "store_history": True})
    socket = await websocket_connect(
        HTTPRequest(
            f"ws{url.removeprefix('http')}/api/kernels/{started.json()['id']}/channels"
            f"?session_id={session.session}",
            headers=secret,
            request_timeout=_PATIENCE_S,  # the server agrees when the kernel has answered
        )
    )
    try:
        await socket.write_message(json_packer({**asked, "channel": "shell"}).decode())
        shown, missing = [], {"execute_reply", "idle"}
        while missing:
            answer = await socket.read_message()
            if answer is None:
                raise ConnectionError(f"{url} closed the WebSocket before the cell had run")
            message = json.loads(answer)
            if message["parent_header"].get("msg_id") == asked["header"]["msg_id"]:
                content = message["content"]
                missing -= {message["msg_type"], content.get("execution_state")}
                shown.append(_text(message["msg_type"], content))
    finally:
        socket.close()
    return "".join(shown).rstrip("\n")


def _text(kind: str, content: dict[str, Any]) -> str:
    """Return what a message adds to the output."""
    match kind:
        case "stream":
            return str(content["text"])
        case "execute_result" | "display_data":
            return f"{content['data'].get('text/plain', '')}\n"
        case "error":
            return f"{content['ename']}: {content['evalue']}\n"
        case _:
            return ""
