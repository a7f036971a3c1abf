"""Functions of the user's, by the module that they are in and their name. Quick to import."""

from __future__ import annotations

import contextlib
import importlib
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

from eggroll.training.errors import RunError


def function_named(name: str, what: str, form: str, example: str) -> Callable[..., Any]:
    """The function or class that "module:function" names.

    Args:
        name: of both.
        what: it is, for messages.
        form: what is asked for, for messages.
        example: of it.

    Raises:
        RunError: there is none.

    Example:
        >>> function_named("math:fsum", "the reward", "module:function", "my_rewards:politeness")([0.5, 0.5])
        1.0
    """
    module_name, _, function_name = name.partition(":")
    if not module_name or not function_name.isidentifier():
        raise RunError(f"got {what} {name!r}; {form} is required, for example {example}.")
    try:
        module = _imported(module_name)
    except ModuleNotFoundError as why:
        if why.name is None or not (module_name + ".").startswith(why.name + "."):
            raise RunError(f"the module {module_name!r} of {what} {name!r} needs {why.name!r}: {why}") from why
        raise RunError(
            f"there is no module {module_name!r} for {what} {name!r}, neither in {Path.cwd()} nor where Python "
            f"looks; {form} names a file {module_name.replace('.', '/')}.py there, without its ending."
        ) from None
    except KeyboardInterrupt:  # Ctrl-C while a large module is imported
        raise
    except BaseException as why:  # whatever a module's own code raises, SystemExit of a script among it
        said = f"{type(why).__name__}: {why}".rstrip(": ")
        exits = "; a module must not end the process that imports it" if isinstance(why, SystemExit) else ""
        raise RunError(f"importing {module_name!r} for {what} {name!r} failed: {said}{exits}.") from why
    function = getattr(module, function_name, None)
    if not callable(function):
        got = "no such name" if not hasattr(module, function_name) else f"a {type(function).__name__}, not a function"
        raise RunError(f"got {what} {name!r}, and {function_name!r} in {module.__file__ or module_name} is {got}.")
    return function


def _imported(name: str) -> Any:
    """A module, looked for in the current directory first; for all other modules that comes last from now on."""
    here, real, importing = str(Path.cwd()), os._exit, os.getpid()

    def exits(status: int) -> NoReturn:
        if os.getpid() != importing:  # a child that the module forked
            real(status)
        raise SystemExit(status)

    importlib.invalidate_caches()  # the file may be new
    sys.path.insert(0, here)
    try:
        with contextlib.redirect_stdout(sys.stderr):  # what a module prints is no part of a command's output
            os._exit = exits  # else a command would end here, by the module's status and without a word
            return importlib.import_module(name)
    finally:
        os._exit = real
        sys.path.remove(here)
        if here not in sys.path:
            sys.path.append(here)  # what the function imports when it is called
