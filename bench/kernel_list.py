"""On what device does this run, and which implementations of the kernels does it have? One line of JSON."""

from __future__ import annotations

import argparse  # not tyro: this runs with JAX and numpy alone
import importlib
import json
from collections.abc import Sequence

import jax

from bench.tools.environment import describe
from bench.tools.kernel_cases import OPERATIONS
from eggroll.kernels import implementations


def main(argv: Sequence[str] | None = None) -> None:
    """Print it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--plugin", action="append", default=[], help="a module that registers implementations")
    for name in parser.parse_args(argv).plugin:
        importlib.import_module(name)
    platform = jax.default_backend()
    names = {operation: implementations(operation, platform=platform) for operation in OPERATIONS}
    print(json.dumps(describe() | {"implementations": names}), flush=True)


if __name__ == "__main__":
    main()
