"""What a reward sees of the environment: what programs need, and no secrets."""

from __future__ import annotations

import os
from collections.abc import Sequence

from eggroll.training.errors import RunError

# Whole names: a variable that only begins like these could hold a secret.
PASSED = (
    *("PATH", "HOME", "USER", "LOGNAME", "TMPDIR", "TEMP", "TMP", "TZ", "XDG_CACHE_HOME"),
    *("LANG", "LANGUAGE", "LC_ALL", "LC_COLLATE", "LC_CTYPE", "LC_MESSAGES", "LC_MONETARY", "LC_NUMERIC", "LC_TIME"),
    *("PYTHONPATH", "PYTHONHOME", "PYTHONHASHSEED", "PYTHONUTF8", "PYTHONIOENCODING", "PYTHONWARNINGS"),
    *("PYTHONDONTWRITEBYTECODE", "PYTHONPYCACHEPREFIX", "PYTHONNOUSERSITE", "PYTHONUSERBASE", "PYTHONSAFEPATH"),
    *("VIRTUAL_ENV", "CONDA_PREFIX", "LD_LIBRARY_PATH", "DYLD_LIBRARY_PATH", "DYLD_FALLBACK_LIBRARY_PATH"),
)
ONE_THREAD = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")  # there is a process for every core


def environment(names: Sequence[str] = ()) -> dict[str, str]:
    """The variables that a reward sees.

    Args:
        names: of further variables that it is given.

    Raises:
        RunError: one of them is not set.

    Example:
        >>> environment()["JAX_PLATFORMS"]
        'cpu'
    """
    missing = [name for name in names if name not in os.environ]
    if missing:
        raise RunError(
            f"got the variable {missing[0]!r} for the reward, which is not set; the name of one that is, without its "
            "value, is required. Set it, or leave it out."
        )
    passed = {name: os.environ[name] for name in (*PASSED, *ONE_THREAD, *names) if name in os.environ}
    # A reward that imports JAX leaves the accelerator to the run.
    return dict.fromkeys(ONE_THREAD, "1") | passed | {"JAX_PLATFORMS": "cpu"}
