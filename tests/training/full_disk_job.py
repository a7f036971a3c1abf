"""A run on a disk that fills up, and then has room again; run with root's rights over mounts.

python -m tests.training.full_disk_job DISK ELSEWHERE        # two empty folders; on the first a small disk is mounted
"""

from __future__ import annotations

import re
import shutil
import sys
import time
from pathlib import Path
from typing import Any

from eggroll.training import Checkpoints, RunError, Saving
from eggroll.training.ledger.reader import summarize
from tests.training.checkpoint_disk import mount
from tests.training.problems import assert_same, left_by, run, strategy

LAST = 12
MANY = 2**16  # members, so that a record of the ledger takes half a megabyte, far more than a checkpoint


def fill_up(disk: Path) -> None:
    """To the last byte."""
    with (disk / "fill").open("wb", buffering=0) as file:
        for size in (4096, 1):
            try:
                while file.write(bytes(size)):
                    pass
            except OSError:
                pass


def refused(message: str, *arguments: Any, **options: Any) -> RunError:
    """The `RunError` of a run."""
    try:
        run(*arguments, **options)
    except RunError as why:
        assert re.search(message, str(why)), why
        return why
    raise AssertionError("the run did not fail")


def a_ledger_that_does_not_fit(disk: Path, elsewhere: Path) -> None:
    """The last checkpoint fits where the ledger's record did not, and must not be ahead of it."""
    es, saving = strategy(population=MANY), Saving(every=4, keep=1)
    small, large = disk / "many", elsewhere / "many"
    expected = run(large, LAST, es=es, saving=saving)
    refused("No space left", small, LAST, es=es, saving=saving)
    assert Checkpoints(small / "checkpoints").generations() == [summarize(small / "ledger.bin").generations]
    shutil.move(small, elsewhere / "moved")
    result = run(elsewhere / "moved", LAST, es=es, saving=saving, resume=True)
    assert 4 < result.resumed < LAST, result.resumed
    assert_same(result, expected)
    assert left_by(elsewhere / "moved") == left_by(large)


def main(disk: Path, elsewhere: Path) -> None:
    mount("-t", "tmpfs", "-o", "size=4m", "tmpfs", str(disk))
    folder, expected = disk / "run", run(elsewhere, LAST)

    def show(record: dict[str, Any]) -> None:
        if record["generation"] == 6:
            while Checkpoints(folder / "checkpoints").generations() != [4]:
                time.sleep(0.01)  # it is saved while the generations after it run
            fill_up(disk)

    why = refused("No space left|the disk is full", folder, LAST, show=show)
    assert why.result.generation >= 6  # nothing in memory is lost
    (disk / "fill").unlink()
    result = run(folder, LAST, resume=True)
    assert result.resumed == 4, result.resumed
    assert_same(result, expected)
    assert left_by(folder) == left_by(elsewhere)

    a_ledger_that_does_not_fit(disk, elsewhere)

    mount("-o", "remount,ro", str(disk))
    refused("Read-only file system", folder, LAST + 4, resume=True)
    refused("Read-only file system", disk / "other", LAST)
    mount("-o", "remount,rw", str(disk))
    assert run(folder, LAST, resume=True).ended == "finished"
    print("done")


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
