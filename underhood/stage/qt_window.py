"""The Qt console's own process, with somebody at its keys.

Strategy: this is `jupyter qtconsole`, started as its command starts it, and one thing more: orders
that arrive on standard input, one JSON list a line, are carried out in its window, and each is
answered by a line of JSON. ``["press", keys]`` delivers keys by Qt's own test library, as a
keyboard would; ``["read"]`` gives the text that it shows, ``["picture"]`` a PNG in base64.
Where standard input ends, so does the window.

It is run by path, in a process of its own, and imports Qt only there.
"""

from __future__ import annotations

import base64
import json
import os
import sys
from typing import Any

_SIZE = (760, 420)


class _Keys:
    """Carries out orders in a window."""

    def __init__(self, window: Any) -> None:
        from qtpy.QtCore import QSocketNotifier

        self._window, self._orders = window, b""
        self._notifier = QSocketNotifier(0, QSocketNotifier.Type.Read)
        self._notifier.activated.connect(self._hear)

    def _hear(self, *_: object) -> None:
        said = os.read(0, 1 << 16)
        if not said:  # whoever gave the orders has gone
            os._exit(0)
        *lines, self._orders = (self._orders + said).split(b"\n")
        for line in lines:
            name, *arguments = json.loads(line)
            answer = getattr(self, name)(*arguments)
            os.write(1, json.dumps(answer).encode() + b"\n")

    def press(self, keys: str) -> str:
        """Press keys; a carriage return is Enter."""
        from qtpy.QtCore import Qt
        from qtpy.QtTest import QTest

        control = self._window.active_frontend._control
        for key in keys:
            if key == "\r":
                QTest.keyClick(control, Qt.Key.Key_Return)
            else:
                QTest.keyClicks(control, key)
        return ""

    def read(self) -> str:
        """Return the text in the window."""
        return str(self._window.active_frontend._control.toPlainText())

    def picture(self) -> str:
        """Return what the window looks like."""
        from qtpy.QtCore import QBuffer

        buffer = QBuffer()
        self._window.grab().save(buffer, "PNG")
        return base64.b64encode(buffer.data().data()).decode()


def main() -> None:
    """Open the window."""
    from qtconsole.qtconsoleapp import JupyterQtConsoleApp

    console = JupyterQtConsoleApp.instance()
    console.initialize(sys.argv[1:])
    console.window.resize(*_SIZE)
    keys = _Keys(console.window)
    console.start()
    del keys


if __name__ == "__main__":
    main()
