"""Functions of the user's, by the module that they are in and their name. Quick to import."""

from __future__ import annotations

import contextlib
import importlib
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

from eggroll.training.errors import RunError

TRIAL = 120.0  # seconds for a module to be imported
RETURNED, CLOSED = 77, 78  # how a trial ends that was not ended by the module
_TRIAL = """
import importlib, os, signal, sys
leave = os._exit
signal.alarm({seconds})  # should whoever waits for this be gone
try:
    importlib.import_module({name!r})
except (Exception, GeneratorExit, SystemExit):  # told where it is imported for good
    leave({returned})
try:
    [os.fstat(number) for number in range(3)]
    [print(end="", file=file, flush=True) for file in (sys.stdout, sys.stderr)]
except (OSError, ValueError):
    leave({closed})
leave({returned})
"""


def python(code: str) -> list[str]:
    """A command that runs code, which may use `sys`, where Python looks for modules as it does here."""
    flags = subprocess._args_from_interpreter_flags()  # pyright: ignore[reportAttributeAccessIssue]
    path = [entry for entry in sys.path if isinstance(entry, str)]
    # unbuffered: what a reward prints is not lost when its process is ended
    return [sys.executable, *flags, "-u", "-c", f"import sys; sys.path[:] = {path!r}; {code}"]


def check_import(name: str, what: str) -> None:
    """Imports the module of "module:function" in a process of its own, as it may end or hold up whoever imports it.

    What it raises is no concern here: `function_named` tells. A module that is imported already is not tried.

    Args:
        name: of module and function.
        what: it is, for messages.

    Raises:
        RunError: the module ended the process, closed its output, or took longer than two minutes.

    Example:
        >>> check_import("math:fsum", "the reward")
    """
    module = name.partition(":")[0]
    if not module or module in sys.modules:
        return
    code = _trial(module)
    if code is None:
        said = f"it took longer than {TRIAL:g} s; what takes long belongs in the function"
    elif code == CLOSED:
        said = "it closed standard input, output or error; leave them open"
    else:
        how = f"status {code}" if code >= 0 else f"signal {signal.strsignal(-code) or -code}"
        said = f"it ended the process, by {how}; a module must not do that, nor need more memory than there is"
    if code != RETURNED:
        raise RunError(f"importing {module!r} for {what} {name!r} failed: {said}.")


def _trial(module: str) -> int | None:
    """How a process ended that imported the module, or None if it did not."""
    code = f"sys.path.insert(0, {str(Path.cwd())!r})\n"
    code += _TRIAL.format(name=module, seconds=int(TRIAL), returned=RETURNED, closed=CLOSED)
    none, variables = subprocess.DEVNULL, {**os.environ, "JAX_PLATFORMS": "cpu"}  # the accelerator is the run's
    process = subprocess.Popen(
        python(code), stdin=none, stdout=none, stderr=none, env=variables, start_new_session=True
    )
    try:
        return process.wait(TRIAL)
    except subprocess.TimeoutExpired:
        return None
    finally:
        with contextlib.suppress(OSError):
            os.killpg(process.pid, signal.SIGKILL)  # and what the module started
        process.wait()


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
            module = importlib.import_module(name)
        if os.getpid() != importing:  # a copy of this process that the module forked, and that would run it once more
            real(1)
        return module
    finally:
        os._exit = real
        sys.path.remove(here)
        if here not in sys.path:
            sys.path.append(here)  # what the function imports when it is called
