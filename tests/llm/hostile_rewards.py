"""Rewards that do what rewards should not, for processes that import this file."""

from __future__ import annotations

import contextlib
import itertools
import os
import pickle
import re
import signal
import struct
import subprocess
import sys
import time
from fractions import Fraction
from pathlib import Path

import numpy as np


def length(text, problem):
    return len(text)


def by_order(text, problem):
    """Does what the text says; anything else is worth its length."""
    orders = {
        "raise": lambda: {}["no such key"],
        "exit": lambda: sys.exit("enough"),
        "die": lambda: os._exit(3),
        "leave": lambda: os._exit(0),
        "segfault": lambda: os.kill(os.getpid(), signal.SIGSEGV),
        "sleep": lambda: time.sleep(600),
        "spin": spin,
        "stubborn": stubborn,
        "deaf": lambda: all(itertools.repeat(True)),  # never looks for signals
        "regex": lambda: re.match(r"(a|aa)+$", "a" * 60 + "b"),
        "string": lambda: "0.5",
        "bytes": lambda: b"1",
        "none": lambda: None,
        "nan": lambda: float("nan"),
        "inf": lambda: float("inf"),
        "list": lambda: [1.0],
        "array": lambda: np.ones(1),
        "complex": lambda: 1j,
        "true": lambda: True,
        "numpy": lambda: np.float32(0.5),
        "scalar": lambda: np.array(2),
        "fraction": lambda: Fraction(1, 4),
        "recursion": lambda: by_order("recursion", problem),
        "unprintable": unprintable,
        "number that unpickles": lambda: Bomb(problem.data),
        "object that unpickles": lambda: [Bomb(problem.data)],
        "error that unpickles": lambda: explode(problem.data),
        "terminal": lambda: {}["\x1b[2J\nand \u202emore"],
        "raw": lambda: raw("\x1b[2J\nand \u202emore"),
        "long": lambda: {}["x" * 1_000_000],
        "pickle": lambda: say(pickle.dumps(Bomb(problem.data)), pickle.dumps((0, Bomb(problem.data)))),
        "json": lambda: say(b'{"__class__": "eval"}\n' * 1000),
        "nothing but zeros": lambda: say(bytes(1000)),
        "another's reply": lambda: say(*(REPLY.pack(k, 1e9, 0) for k in range(20, 40))),
        "half a reply": lambda: say(b"\0") or time.sleep(600),
        "silence": lambda: os.closerange(3, 64) or time.sleep(600),
        "fork": lambda: os.fork() or 7,
    }
    return orders.get(text, lambda: float(len(text)))()


def spin():
    while True:
        pass


def stubborn():
    while True:
        with contextlib.suppress(BaseException):  # takes the time limit for an error of its own
            time.sleep(0.01)


class Unprintable(Exception):
    def __init__(self, needed):
        super().__init__(needed)

    def __str__(self):
        raise RuntimeError("no")


def unprintable():
    raise Unprintable("x")


class Bomb(float):
    """A number that writes a file where it is unpickled."""

    def __new__(cls, file):
        made = super().__new__(cls, 2)
        made.file = file
        return made

    def __reduce__(self):
        return Path.touch, (Path(self.file),)


class ExplodingError(Exception):
    def __reduce__(self):
        return Path.touch, (Path(self.args[0]),)


def explode(file):
    raise ExplodingError(file)


def raw(text):
    raise ValueError(text)


REPLY = struct.Struct("<IdH")  # as eggroll's own


def say(*messages):
    """Writes into every channel that this process may have."""
    for descriptor in range(3, 64):
        for message in messages:
            with contextlib.suppress(OSError):
                os.write(descriptor, message)


CHILD = "import time; time.sleep(600)"


def with_child(text, problem):
    """Starts a process, forks another, writes their ids, and does what the text says."""
    started = subprocess.Popen([sys.executable, "-c", CHILD]).pid, os.fork()
    if not started[1]:
        time.sleep(600)
    Path(problem.data).write_text(" ".join(map(str, started)))
    return by_order(text, problem)


def modules(text, problem):
    return float(text in sys.modules)


def environment(text, problem):
    return float(os.environ.get(text) == problem.data)


def process(text, problem):
    return os.getpid()


def variable(text, problem):
    return float(text in os.environ)


def variables(text, problem):
    Path(problem.data).write_text("\n".join(os.environ))
    return 0
