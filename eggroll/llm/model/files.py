"""Files of a model: only ordinary ones are read, of a size that they can have; transformers; what the hub is given."""

from __future__ import annotations

import json
import math
import os
import stat
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

from eggroll.extras import needed_for
from eggroll.training.errors import RunError
from eggroll.training.folder import disk

__all__ = [
    "check_file",
    "check_ordinary",
    "hub_place",
    "inside",
    "is_file",
    "push",
    "read_json",
    "silent",
    "transformers",
]
__all__ += ["write_json"]

PARTS = ["*.json", "*.safetensors", "*.jinja", "*.model", "*.txt"]  # of a hub's repository
MOST_BYTES = 1 << 28  # of a file that is read at once; tokenizers of 260,000 tokens have an eighth of it
SHOWN = 80  # characters of a name in a message
SWITCH = "TRANSFORMERS_NO_ADVISORY_WARNINGS"


def is_file(source: str | Path) -> bool | None:
    """True for a file, False for a folder, None for nothing.

    Raises:
        RunError: a device, a pipe, or what cannot be looked at.
    """
    shown = (
        repr(str(source)) if len(str(source)) <= SHOWN else f"{str(source)[:SHOWN]!r}… ({len(str(source))} characters)"
    )
    try:
        mode = os.stat(source).st_mode
    except (FileNotFoundError, NotADirectoryError, ValueError):
        return None
    except OSError as why:
        raise RunError(f"got the model {shown}, which cannot be read ({why.strerror}); name another.") from why
    if not stat.S_ISREG(mode) and not stat.S_ISDIR(mode):
        raise RunError(f"got the model {shown}, which is neither a file nor a folder but a device, pipe or socket.")
    return stat.S_ISREG(mode)


def check_ordinary(folder: Path) -> None:
    """Raises `RunError` if what is read of a folder never ends, as a pipe, too large, or elsewhere."""
    for part in PARTS:
        for file in (*folder.glob(part), *folder.glob(f"additional_chat_templates/{part}")):
            check_file(file, math.inf if file.suffix == ".safetensors" else MOST_BYTES)
            if not inside(folder, str(file.relative_to(folder))):
                raise RunError(f"{file} is a link out of its folder; copy the file there that it stands for.")


def check_file(file: Path, most: float = math.inf) -> None:
    """Raises `RunError` unless a file is an ordinary one of at most so many bytes."""
    try:
        found = file.stat()
    except (OSError, RuntimeError) as why:  # of links in a circle
        raise RunError(f"{file} cannot be read ({why}); fetch or copy it again, or remove it.") from why
    if not stat.S_ISREG(found.st_mode):
        raise RunError(f"{file} is no ordinary file; copy the file there that it stands for, or remove it.")
    if found.st_size > most:
        raise RunError(f"{file} has {found.st_size:,} bytes; at most {most:,} are read: fetch or copy it again.")


def inside(folder: Path, name: Any) -> bool:
    """Whether a name is that of a file in the folder, or a link into the store of the hub's cache that it lies in."""
    if not isinstance(name, str) or not name or "\0" in name or Path(name).is_absolute() or ".." in Path(name).parts:
        return False
    home, file = folder.resolve(), (folder / name).resolve()
    store = [home.parent.parent / "blobs"] * (home.parent.name == "snapshots")
    return any(file.is_relative_to(place) for place in (home, *store))


def read_json(file: Path) -> dict[str, Any] | None:
    """The object in a JSON file; None if there is no file.

    Raises:
        RunError: it cannot be read, or holds something else.
    """
    if not os.path.lexists(file):
        return None
    return disk.read_json(file, "Fetch or copy it again.", largest=MOST_BYTES)


def write_json(file: Path, value: Any) -> None:
    """Writes a JSON file as transformers does."""
    file.write_text(json.dumps(value, indent=2, sort_keys=True) + "\n", encoding="utf-8")


@needed_for("language models")
def transformers() -> ModuleType:
    """Imports it, without its advice to install PyTorch, which nothing here needs; the environment is as before."""
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
    """Warnings of transformers are not shown inside: it warns of keys in configurations that it wrote there itself."""
    logging = transformers().logging
    before = logging.get_verbosity()
    logging.set_verbosity_error()
    try:
        yield
    finally:
        logging.set_verbosity(before)


@needed_for("models on the hub")
def hub_place(name: str, *, private: bool = False) -> None:
    """Makes a repository on the Hugging Face hub, unless there is one; raises `RunError` where the hub gives none."""
    from huggingface_hub import HfApi

    with _on_hub(name):
        HfApi().create_repo(name, private=private, exist_ok=True)


@needed_for("models on the hub")
def push(folder: Path, name: str, message: str) -> str:
    """Puts the files of a folder into a repository of the hub, in one commit.

    Returns:
        The address of the commit.

    Raises:
        RunError: the hub does not take them.
    """
    from huggingface_hub import CommitOperationAdd, HfApi

    files = sorted(file for file in folder.iterdir() if file.is_file() and file.name != disk.MANIFEST)
    with _on_hub(name):
        added = [CommitOperationAdd(file.name, file) for file in files]
        return str(HfApi().create_commit(name, added, commit_message=message).commit_url)


@contextmanager
def _on_hub(name: str) -> Iterator[None]:
    try:
        yield
    except Exception as why:  # no network, no login, no access: each an error of its own class
        said = next(iter(str(why).strip().splitlines()), type(why).__name__).rstrip(" .:")
        raise RunError(
            f"got the hub's model {name!r}, and the hub does not take it ({said}). Log in with `hf auth login`, or set "
            "HF_TOKEN, and check the name: OWNER/NAME."
        ) from why
