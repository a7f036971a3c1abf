"""A second clone tests itself, in an environment where another one is installed."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

WHERE = """
import eggroll.kernels, eggroll.kernels.tiling, eggroll.ops
print(eggroll.__file__, eggroll.ops.__file__, eggroll.kernels.__file__, eggroll.kernels.tiling.__file__)
"""


@pytest.fixture(scope="module")
def clone(root: Path, files: list[Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Copy what a commit would hold."""
    folder = tmp_path_factory.mktemp("clone")
    for file in files:
        copy = folder / file.relative_to(root)
        copy.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(file, copy)
    return folder


def test_it_imports_its_own_kernels(clone: Path) -> None:
    done = subprocess.run([sys.executable, "-c", WHERE], cwd=clone, check=True, capture_output=True, text=True)
    for file in done.stdout.split():
        assert clone.resolve() in Path(file).resolve().parents
    assert Path(done.stdout.split()[-1]).resolve().parent == clone.resolve() / "kernels" / "pallas"


@pytest.mark.slow
@pytest.mark.parametrize("start", [["-m", "pytest"], ["-P", "-c", "import pytest; raise SystemExit(pytest.main())"]])
def test_it_tests_its_own_files(clone: Path, start: list[str]) -> None:
    # Both forms: `python -m pytest` puts the working directory on the path, `pytest` does not. A fixture of all tests
    # looks where everything was imported from.
    command = [sys.executable, *start, "-n", "0", "-q", "-p", "no:cacheprovider", "tests/ops/test_registry.py"]
    done = subprocess.run(command, cwd=clone, capture_output=True, text=True)
    assert done.returncode == 0 and " passed" in done.stdout, done.stdout + done.stderr
