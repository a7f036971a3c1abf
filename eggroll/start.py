"""Where the command `eggroll` begins: Ctrl-C ends it with a line, also while the rest is still being imported."""

from __future__ import annotations

import sys


def main() -> int:
    """Runs the command line; the exit status, as `eggroll.cli.main`."""
    try:
        from eggroll.cli import main as run

        return run()
    except KeyboardInterrupt:
        print("eggroll: interrupted", file=sys.stderr)
        return 130
