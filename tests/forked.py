"""Processes that begin where importing the packages below eggroll has ended, which takes longer than most scripts.

One process imports them, and nothing of eggroll, and asks JAX for no device. Each script runs in a child that it
forks: with modules, settings, devices, working directory and end of its own, as `python SCRIPT` would.
"""

from __future__ import annotations

import importlib
import json
import os
import runpy
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

IMPORTED = ("jax", "jax.numpy", "numpy", "optax", "flax.nnx", "flax.linen")


class Forking:
    """The process that forks; `run` asks it for a child."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self._process = process

    def run(self, script: Path, where: Path, *imported: str) -> subprocess.CompletedProcess[str]:
        """What a script leaves that runs in the folder `where`: exit status, output and error output.

        Modules of packages below eggroll are `imported` beforehand, once for all scripts.
        """
        assert self._process.stdin and self._process.stdout
        print(json.dumps([str(script), str(where), *imported]), file=self._process.stdin, flush=True)
        status = int(self._process.stdout.readline())
        out, err = ((where / name).read_text(encoding="utf-8") for name in (".stdout", ".stderr"))
        return subprocess.CompletedProcess(str(script), status, out, err)


@contextmanager
def forking(*options: str, **environment: str) -> Iterator[Forking]:
    """Starts it, as `python OPTIONS` with these variables besides this process's own."""
    command = [sys.executable, *options, __file__]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    with subprocess.Popen(command, **pipes, env=os.environ | environment) as process:
        yield Forking(process)


def serve() -> None:
    """Forks a child for each line, and says how it ended."""
    for line in iter(sys.stdin.readline, ""):
        script, where, *imported = json.loads(line)
        for name in (*IMPORTED, *imported):
            importlib.import_module(name)
        assert not any(name.split(".")[0] == "eggroll" for name in sys.modules)
        if not (child := os.fork()):
            return begin(script, where)
        print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)


def begin(script: str, where: str) -> None:
    """Turns this process into that of the script, which has five minutes."""
    signal.alarm(300)
    os.chdir(where)
    for number, name, how in ((0, os.devnull, os.O_RDONLY), (1, ".stdout", os.O_WRONLY), (2, ".stderr", os.O_WRONLY)):
        os.dup2(os.open(name, how | os.O_CREAT), number)
    sys.argv[:] = [script]
    sys.path[0] = str(Path(script).parent)
    runpy.run_path(script, run_name="__main__")


if __name__ == "__main__":
    serve()
