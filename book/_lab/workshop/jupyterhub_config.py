"""JupyterHub for a workshop with this course: what The Littlest JupyterHub needs to be told.

It goes into ``/opt/tljh/config/jupyterhub_config.d/``, whose files are loaded last. Who may log in,
how, and by which spawner their servers start stays as it is there; so another hub on one machine
can load this file, too, as ``tests/test_workshop.py`` does. The page "Give the talk, teach a room"
computes the sizes from what it measures.
"""

import os
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent

#: How many come. Two more seats are for those who teach.
LEARNERS = 30

c: Any = get_config()  # type: ignore[name-defined] # noqa: F821

# Each gets the course as files of their own, and sees its first page.
c.Spawner.cmd = [str(HERE / "start-server")]
c.Spawner.notebook_dir = "~/jupyter-under-the-hood"
c.Spawner.default_url = "/lab/tree/book/index.md"

# Whoever takes more than this loses a kernel, and nobody else does.
c.Spawner.mem_limit = "2G"
c.Spawner.cpu_limit = 2.0

# A start keeps a processor busy for seconds. So not all at once, and with patience.
c.JupyterHub.concurrent_spawn_limit = 2 * (os.cpu_count() or 1)
c.JupyterHub.active_server_limit = LEARNERS + 2
c.Spawner.start_timeout = 300
c.Spawner.http_timeout = 120

# Everybody who knows the address and, on The Littlest JupyterHub, chooses a password.
c.Authenticator.allow_all = True
