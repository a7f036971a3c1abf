"""Does one implementation of a kernel compute the right numbers? A line of JSON for each case, as it is done.

`bench.gpu_check` runs this in processes of its own. A line `{"started": i}` comes before the work on case `i`, so that
whoever reads knows on which case a process died or hung; `--start i` goes on from there. The process ends with status
3 after an operation that failed while it ran, because on a GPU everything after it would fail, too.
"""

from __future__ import annotations

import argparse  # not tyro: this runs with JAX and numpy alone
import importlib
import json
import sys
from collections.abc import Sequence

from bench.tools.kernel_cases import OPERATIONS, cases
from eggroll.ops.cases import checked

BROKEN = 3  # exit status: nothing that this process computes can be trusted any more


def parsed(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--operation", choices=OPERATIONS, required=True)
    parser.add_argument("--implementation", required=True, help="a name from eggroll.kernels.implementations")
    parser.add_argument("--start", type=int, default=0, help="number of the first case")
    parser.add_argument("--part", type=int, default=0, help="which of the parts of all cases")
    parser.add_argument("--parts", type=int, default=1, help="how many parts there are, for as many processes")
    parser.add_argument("--quick", action="store_true", help="some small shapes")
    parser.add_argument("--plugin", action="append", default=[], help="a module that registers implementations")
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> None:
    """Check all cases from `--start` on."""
    options = parsed(argv)
    for name in options.plugin:
        importlib.import_module(name)
    for number, case in enumerate(cases(options.operation, quick=options.quick)):
        if number < options.start or number % options.parts != options.part:
            continue
        print(json.dumps({"started": number, "case": case.name}), flush=True)
        found = checked(case, options.implementation)
        print(json.dumps({"number": number, "case": case.name, **found}), flush=True)
        if found.get("stage") == "run":
            sys.exit(BROKEN)


if __name__ == "__main__":
    main()
