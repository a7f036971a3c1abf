"""Where the command `eggroll` begins: Ctrl-C ends it with a line, also while the rest is still being imported."""

from __future__ import annotations

import sys

from eggroll.extras import MissingPackageError, needed_for


def main() -> int:
    """Runs the command line; the exit status, as `eggroll.cli.main`."""
    try:
        with needed_for("commands"):
            from eggroll.cli import main as run

        return run()
    except MissingPackageError as why:
        print(f"eggroll: {why}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("eggroll: interrupted", file=sys.stderr)
        return 130
