"""Leads a checkout's `eggroll.kernels` to `kernels/pallas` beside this package; a wheel has that folder here."""

import sys
from importlib.machinery import SourceFileLoader
from pathlib import Path

# By the place of this file, never by an installed finder: that would take another checkout's kernels.
__path__ = [str(Path(__file__).resolve().parents[2] / "kernels" / "pallas")]
__file__ = str(Path(__path__[0], "__init__.py"))
SourceFileLoader(__name__, __file__).exec_module(sys.modules[__name__])
