"""What a process has to say when it is ended from outside and cannot say it any more."""

from __future__ import annotations

import subprocess

# Prints the last line that came, once its input ends: when the process that writes it closes it, or is gone.
WITNESS = """trap '' INT TERM HUP
while IFS= read -r line; do last=$line; done
[ -z "$last" ] || printf '%s\\n' "$last" >&2"""


class LastWords:
    """A line that is printed to stderr when this process ends, however that comes about.

    JAX ends a process whose coordinator is gone by `abort()` from a thread of its own, out of Python's reach; SIGKILL
    asks nobody. So a shell of a megabyte waits at the other end of a pipe.

    Args:
        text: one line. Where there is no shell nothing will be printed.
    """

    def __init__(self, text: str) -> None:
        try:
            self._shell = subprocess.Popen(["/bin/sh", "-c", WITNESS], stdin=subprocess.PIPE, start_new_session=True)
        except OSError:
            self._shell = None
        self.change(text)

    def change(self, text: str) -> None:
        """Other words in place of the earlier ones; with the empty text there are none, now and later."""
        if self._shell is None or self._shell.stdin is None:
            return
        try:
            self._shell.stdin.write(text.replace("\n", " ").encode() + b"\n")
            self._shell.stdin.flush()
            if not text:
                self._shell.stdin.close()
                self._shell.wait(timeout=5)
        except (OSError, subprocess.TimeoutExpired):  # the witness is gone, or its machine very slow
            pass
        if not text:
            self._shell = None
