"""Prints which pins of `bench/wheels.txt` this Python lacks, or has older than `pyproject.toml` allows.

Runs before anything is installed, so it needs nothing but Python.
"""

from __future__ import annotations

import importlib.metadata
import pathlib
import re
import tomllib
from collections.abc import Callable, Mapping, Sequence

ROOT = pathlib.Path(__file__).resolve().parents[1]
REQUIREMENT = re.compile(r"([A-Za-z0-9-]+)(?:[=>]=([0-9.]+))?")


def pins() -> list[str]:
    """`name==version` of every package that is packed."""
    lines = (line.split("#")[0].strip() for line in (ROOT / "bench" / "wheels.txt").read_text().splitlines())
    return [line for line in lines if line]


def bounds() -> dict[str, str]:
    """The oldest version of each dependency that is supported."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    wanted = project["dependencies"] + project["optional-dependencies"]["train"]
    found = (REQUIREMENT.match(text) for text in wanted)
    return {match[1]: match[2] for match in found if match}


def lacking(wanted: Sequence[str], oldest: Mapping[str, str], installed: Callable[[str], str | None]) -> list[str]:
    """Those of the pins `wanted` that are not installed, or older than `oldest` says."""
    missing = []
    for pin in wanted:
        name = pin.split("==")[0]
        version = installed(name)
        if version is None or numbers(version) < numbers(oldest.get(name, "0")):
            missing.append(pin)
    return missing


def numbers(version: str) -> tuple[int, ...]:
    """`"0.12.8"` → `(0, 12, 8)`."""
    return tuple(int(part) for part in re.findall(r"\d+", version)[:3])


def installed_version(name: str) -> str | None:
    """None where there is no such package."""
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


if __name__ == "__main__":
    print("\n".join(lacking(pins(), bounds(), installed_version)))
