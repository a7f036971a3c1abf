"""Importing eggroll is silent, changes nothing, and leaves Hugging Face's `kernels` alone."""

from __future__ import annotations

import ast
import importlib
import json
import subprocess
import sys

import pytest

SNAPSHOT = """
import json, os, sys
environment = dict(os.environ)
import eggroll
assert eggroll.__version__ == VERSION and 'ES' in dir(eggroll) and 'jax' not in sys.modules
assert environment == dict(os.environ)
import flax, flax.nnx, jax, optax
before = dict(jax.config.values)
import eggroll.kernels
eggroll.kernels.rank_update
for name in eggroll.__all__:
    getattr(eggroll, name)  # loads its file
changed = [name for name, value in jax.config.values.items() if before.get(name, value) != value]
print(json.dumps(changed))
"""

USE_TRANSFORMERS = """
import importlib.util
spec = importlib.util.find_spec('kernels')
assert spec is None or spec.origin is None, spec  # None, or an empty namespace: never a file of ours
import transformers
transformers.AutoConfig.for_model('llama')
from transformers.utils import is_kernels_available
assert not is_kernels_available()
import eggroll.kernels
assert eggroll.kernels.lowrank_dot
"""


def python(root, *arguments: str) -> subprocess.CompletedProcess:
    """Run the interpreter in a directory, with warnings as errors."""
    done = subprocess.run([sys.executable, "-W", "error", *arguments], cwd=root, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done


def test_import_needs_no_jax_until_a_name_does_changes_no_setting_and_prints_nothing(tmp_path, pyproject):
    """And from anywhere."""
    done = python(tmp_path, "-c", SNAPSHOT.replace("VERSION", repr(pyproject["project"]["version"])))
    assert json.loads(done.stdout) == []  # and printed nothing else
    assert done.stderr == ""


@pytest.mark.parametrize(
    "name", ["eggroll", "eggroll.kernels", "eggroll.llm", "eggroll.nnx", "eggroll.rl", "eggroll.training"]
)
def test_dir_lists_what_is_for_users_and_no_helper(name):
    module = importlib.import_module(name)
    rooms = {"engine", "kernels", "llm", "nnx", "rl", "strategy", "training"} if name == "eggroll" else set()
    assert {each for each in dir(module) if not each.startswith("__")} == {*module.__all__, *rooms}


@pytest.mark.slow
@pytest.mark.parametrize("how", ["-c", "-m"])
def test_transformers_imports_from_the_repository_root(root, how):
    if how == "-c":
        python(root, "-c", USE_TRANSFORMERS)
    else:
        python(root, "-m", "timeit", "-n", "1", "-r", "1", USE_TRANSFORMERS)


def test_nothing_imports_torch(files, pyproject):
    for file in files:
        # bench.peers measures PyTorch libraries beside ours, for those who have installed them; the golden values of
        # the language models come from transformers.
        golden = file.parts[-4:] == ("tests", "llm", "golden", "make.py")
        if file.suffix == ".py" and "peer_adapters" not in file.parts and not golden:
            text = file.read_text(encoding="utf-8")
            for name in imported(ast.parse(text)) if "torch" in text else ():
                assert name.split(".")[0] not in ("torch", "torchvision"), f"{file} imports {name}"
    project = pyproject["project"]
    for wanted in (project["dependencies"], *project["optional-dependencies"].values()):
        assert not [requirement for requirement in wanted if requirement.startswith("torch")]


def imported(tree: ast.AST) -> set[str]:
    """Return the modules that a file imports, wherever it does."""
    names = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            names.add(node.module)
    return names


def test_kernels_and_their_operations_depend_on_jax_and_numpy_alone(root):
    allowed = {"jax", "numpy", *sys.stdlib_module_names}
    for folder in (root / "kernels" / "pallas", root / "eggroll" / "ops"):
        for file in folder.rglob("*.py"):
            found = imported(ast.parse(file.read_text(encoding="utf-8")))
            names = {name.split(".")[0] for name in found if not name.startswith("eggroll.ops")}
            assert names <= allowed, f"{file} imports {sorted(names - allowed)}"


def test_one_file_touches_jax_internals(root):
    for directory in ("eggroll", "kernels"):
        for file in (root / directory).rglob("*.py"):
            text = file.read_text(encoding="utf-8")
            private = (
                [name for name in imported(ast.parse(text)) if name.startswith("jax._src")] if "_src" in text else []
            )
            assert not private or file.name == "jax_compat.py", f"{file} imports {private}"
