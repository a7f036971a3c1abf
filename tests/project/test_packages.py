"""The packages listed by hand, the directory tree and the wheel agree."""

from __future__ import annotations

import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

# Import name -> directory; the same mapping as [tool.setuptools.package-dir].
TOP_LEVEL = {"eggroll": Path("eggroll"), "eggroll.kernels": Path("kernels/pallas")}


def packages_in_tree(root: Path) -> dict[str, Path]:
    """Return the import name of every directory that has an `__init__.py`, with that directory."""
    found = {}
    for name, directory in TOP_LEVEL.items():
        for init in (root / directory).rglob("__init__.py"):
            below = init.parent.relative_to(root / directory).parts
            found[".".join((name, *below))] = init.parent
    return found


def test_every_package_is_listed(root, pyproject):
    listed = pyproject["tool"]["setuptools"]["packages"]
    assert listed == sorted(listed)
    assert set(listed) == set(packages_in_tree(root))


def test_package_dir_is_what_the_tests_assume(pyproject):
    mapping = pyproject["tool"]["setuptools"]["package-dir"]
    assert {name: Path(directory) for name, directory in mapping.items()} == TOP_LEVEL


def test_every_module_lies_in_a_package(root):
    for directory in TOP_LEVEL.values():
        for module in (root / directory).rglob("*.py"):
            assert (module.parent / "__init__.py").exists(), f"{module.parent} needs an __init__.py"


def test_kernels_itself_is_no_package(root):
    assert not (root / "kernels" / "__init__.py").exists(), "transformers would take it for Hugging Face's `kernels`"


@pytest.fixture(scope="module")
def wheel(root, tmp_path_factory) -> zipfile.ZipFile:
    """Build the wheel from a copy, so that the checkout stays clean."""
    copy = tmp_path_factory.mktemp("source")
    for directory in ("eggroll", "kernels"):
        shutil.copytree(root / directory, copy / directory, ignore=shutil.ignore_patterns("__pycache__"))
    for file in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(root / file, copy / file)
    build = [
        sys.executable,
        "-m",
        "build",
        "--wheel",
        "--no-isolation",
        "--outdir",
        str(copy / "out"),
        str(copy),
    ]
    done = subprocess.run(build, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    (built,) = (copy / "out").glob("*.whl")
    return zipfile.ZipFile(built)


def test_the_wheel_holds_the_tree(root, wheel):
    expected = set()
    for name, directory in packages_in_tree(root).items():
        expected |= {"/".join((*name.split("."), module.name)) for module in directory.glob("*.py")}
    packed = {name for name in wheel.namelist() if ".dist-info/" not in name}
    assert packed == expected | {"eggroll/py.typed"}


def test_the_wheel_s_metadata(wheel):
    (metadata,) = (name for name in wheel.namelist() if name.endswith(".dist-info/METADATA"))
    text = wheel.read(metadata).decode()
    assert "\nName: eggroll-jax\n" in text and "\nLicense-Expression: Apache-2.0\n" in text
    (scripts,) = (name for name in wheel.namelist() if name.endswith("entry_points.txt"))
    assert "eggroll = eggroll.start:main" in wheel.read(scripts).decode()
