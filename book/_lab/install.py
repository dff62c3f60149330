"""Let the JupyterLab of this Python show chapters as the site does.

Usage: ``python book/_lab/install.py``, with the Python that JupyterLab runs on.

Strategy: two files of settings in that Python's own ``etc/jupyter``, and nothing in anybody's home.
They let a click on a chapter open it as a notebook, answer beforehand what JupyterLab would ask a
new user or the internet, and name this folder as one of JupyterLab's folders of extensions. What
other settings stand in the files stays.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent

#: What is said in which file; see jupyterlab_server/settings_utils.py and the trait's help.
SETTINGS: dict[str, dict[str, dict[str, Any]]] = {
    "labconfig/default_setting_overrides.json": {
        "@jupyterlab/docmanager-extension:plugin": {
            "defaultViewers": {"markdown": "Jupytext Notebook"}
        },
        "@jupyterlab/apputils-extension:notification": {
            "fetchNews": "false",
            "checkForUpdates": False,
        },
    },
    "jupyter_lab_config.json": {"LabApp": {"extra_labextensions_path": [str(HERE)]}},
}


def install(prefix: Path) -> None:
    """Write the settings for the Python that lives at ``prefix``."""
    for name, settings in SETTINGS.items():
        file = prefix / "etc" / "jupyter" / name
        said = json.loads(file.read_text(encoding="utf-8")) if file.exists() else {}
        for section, values in settings.items():
            said.setdefault(section, {}).update(values)
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(json.dumps(said, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    install(Path(sys.prefix))
