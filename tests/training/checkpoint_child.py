"""A process that saves until it is killed; with the name of a moment, it kills itself there.

python -m tests.training.checkpoint_child FOLDER [MOMENT]
"""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path
from typing import Any

from eggroll.training.checkpoints import folder as checkpoints_folder
from eggroll.training.checkpoints import manager as module
from eggroll.training.checkpoints.manager import Checkpoints
from eggroll.training.folder import disk
from tests.training.checkpoint_states import small

LAST = 4  # the generation that the moments belong to


def die(*_: Any, **__: Any) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def arm(moment: str, checkpoints: Checkpoints) -> None:
    """Puts the end in the place of what would come next."""
    if moment == "before the manifest":
        module.write_manifest = die
    elif moment == "before the manifest's name":
        disk.Held.replace = die  # Orbax renames in another way
    elif moment == "during the removal of an old one":
        checkpoints_folder.shutil.rmtree = die
    elif moment == "while Orbax writes":
        checkpoints._arrays.finish = die
    elif moment == "before Orbax begins":
        checkpoints._arrays.start = die


def main(folder: Path, moment: str = "") -> None:
    checkpoints = Checkpoints(folder, keep=2)
    generation = 0
    while not moment or generation < LAST:
        generation += 1
        if generation == LAST and moment:
            arm(moment, checkpoints)
        checkpoints.save(generation, small(generation), {"generation": generation})
        checkpoints.wait()
        print(generation, flush=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]), *sys.argv[2:])
