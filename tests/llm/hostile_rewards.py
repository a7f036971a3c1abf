"""Rewards that do what rewards should not, for processes that import this file."""

from __future__ import annotations

import contextlib
import itertools
import os
import re
import signal
import sys
import time
from fractions import Fraction

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


def slow(text, problem):
    time.sleep(0.4)
    return 1


def modules(text, problem):
    return float(text in sys.modules)


def environment(text, problem):
    return float(os.environ.get(text) == problem.data)


def process(text, problem):
    return os.getpid()


def nested():
    def inner(text, problem):
        return 0

    return inner
