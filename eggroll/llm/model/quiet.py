"""The library transformers, without its advice to install PyTorch, which nothing here needs."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from types import ModuleType

from eggroll.extras import needed_for

__all__ = ["silent", "transformers"]

SWITCH = "TRANSFORMERS_NO_ADVISORY_WARNINGS"


@needed_for("language models")
def transformers() -> ModuleType:
    """Imports it; the environment is as before afterwards."""
    if "transformers" not in sys.modules and SWITCH not in os.environ:
        os.environ[SWITCH] = "1"
        try:
            import transformers
        finally:
            del os.environ[SWITCH]
    import transformers

    return transformers


@contextmanager
def silent() -> Iterator[None]:
    """Its warnings are not shown inside: it warns of keys in configurations that it wrote there itself."""
    logging = transformers().logging
    before = logging.get_verbosity()
    logging.set_verbosity_error()
    try:
        yield
    finally:
        logging.set_verbosity(before)
