"""What the documentation prints runs as printed: every Python block of every page, and every example.

Each runs in a process and a folder of its own, as somebody would run it who pasted it into a file. Blocks that begin
with a file's name, such as `# my_rewards.py`, are that file.
"""

from __future__ import annotations

import ast
import importlib.util
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

from tests.forked import Forking, forking
from tests.llm.tiny import folder
from tests.quick import quickest

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
BLOCK = re.compile(r"^```python\n(.*?)^```", re.DOTALL | re.MULTILINE)
FILE = re.compile(r"# (\w+\.py)\n")
PAGES = sorted([ROOT / "README.md", *DOCS.glob("*.md")])
MODEL = "models/smollm2"  # what pages call a model folder is one that is tiny
TOKENIZERS = "transformers.models.auto.tokenization_auto"  # which brings what loading that folder does
# What the extra `test` cannot bring everywhere; a page or an example that needs another library which is missing fails.
OPTIONAL = {"gymnax"}
# The line that each example prints, with its numbers, and what has to hold of them.
PRINTED = {
    "equinox_model": (r"fitness (\S+) -> (\S+)", lambda before, after: before < -0.5 and after > -0.1),
    "haiku_model": (r"fitness (\S+) -> (\S+)", lambda before, after: before < -0.5 and after > -0.1),
    "language_model": (r"mean reward (\S+) -> (\S+)", lambda before, after: before < 0.5 and after > 0.7),
    "linen_trainstate": (r"mean squared error (\S+) -> (\S+)", lambda before, after: before > 0.3 and after < 0.05),
    "nnx_cnn": (r"test accuracy (\S+)", lambda accuracy: accuracy > 0.75),
    "nondifferentiable": (r"accuracy (\S+)", lambda accuracy: accuracy > 0.85),
    "own_environment": (r"mean return (\S+) -> (\S+)", lambda before, after: before < 10 and after > 30),
    "population_sweep": (
        r"best of 12: sigma (\S+), learning rate (\S+), loss (\S+)",
        lambda sigma, rate, loss: 1e-4 < rate < 0.1 and loss < 0.2,
    ),
    "python_reward": (r"wrote 'evolve' after (\d+) generations", lambda generations: generations <= 120),
    "resume": (r"resumed after (\d+) of 40 generations, equal: True, replayed: True", lambda after: after == 20),
    "several_devices": (r"(\d) devices, fitness (\S+), equal .*: True", lambda n, fitness: n == 4 and fitness > -0.5),
    "tensorboard_logging": (r"(\d+) lines of metrics, TensorBoard's files written: True", lambda lines: lines == 20),
    "wandb_logging": (r"(\d+) generations logged", lambda generations: generations == 20),
}


class Block(NamedTuple):
    """A Python block, with the files that stand before it on its page."""

    place: str
    code: str
    files: dict[str, str]


def blocks() -> dict[str, Block]:
    """Every Python block by its page and number, those apart that are files."""
    found = {}
    for page in PAGES:
        files = {}
        for number, code in enumerate(BLOCK.findall(page.read_text(encoding="utf-8")), 1):
            if named := FILE.match(code):
                files[named[1]] = code
            else:
                found[f"{page.stem}-{number}"] = Block(f"{page.stem}-{number}", code, dict(files))
    return found


BLOCKS = blocks()
EXAMPLES = sorted(file.stem for file in (DOCS / "examples").glob("*.py"))


def skip_without(code: str) -> None:
    """Skips the test where an optional library is missing that the code imports, or whose environment it makes."""
    used = set(re.findall(r'make\("(\w+):', code))
    for node in ast.walk(ast.parse(code)):
        if isinstance(node, ast.Import):
            used |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            used.add((node.module or "").split(".")[0])
    for name in sorted(used & OPTIONAL):
        if importlib.util.find_spec(name) is None:
            pytest.skip(f"needs {name}, which is not installed here")


@pytest.fixture(scope="module")
def processes() -> Iterator[Forking]:
    """Processes with eight simulated devices, in which warnings of ours are errors; optimised, for some train long."""
    devices = f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count=8"
    settings = {"JAX_PLATFORMS": "cpu", "XLA_FLAGS": devices, "PYTHONPATH": str(ROOT), "WANDB_MODE": "offline"}
    settings["JAX_DISABLE_MOST_OPTIMIZATIONS"] = "false"
    with forking("-W", "error::UserWarning", **settings) as found:
        yield found


def output(processes: Forking, script: Path, where: Path, *imported: str) -> str:
    """What a script prints."""
    done = processes.run(script, where, *imported)
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


@pytest.mark.parametrize("name", quickest(BLOCKS, "activations-1"))
def test_a_block_runs_as_printed(name: str, processes: Forking, tmp_path: Path) -> None:
    block = BLOCKS[name]
    skip_without(block.code)
    imported = ()
    if MODEL in block.code:
        folder(tmp_path / MODEL)
        imported = (TOKENIZERS,)
    for file, code in block.files.items():
        (tmp_path / file).write_text(code, encoding="utf-8")
    script = tmp_path / "pasted.py"
    script.write_text(block.code, encoding="utf-8")
    output(processes, script, tmp_path, *imported)


@pytest.mark.parametrize("name", quickest(EXAMPLES, "resume"))
def test_an_example_prints_what_it_should(name: str, processes: Forking, tmp_path: Path) -> None:
    script = DOCS / "examples" / f"{name}.py"
    skip_without(script.read_text(encoding="utf-8"))
    (line,) = output(processes, script, tmp_path).splitlines()
    pattern, holds = PRINTED[name]
    found = re.fullmatch(pattern, line)
    assert found and holds(*map(float, found.groups())), line


def test_a_script_begins_without_eggroll_and_a_warning_ends_it(processes: Forking, tmp_path: Path) -> None:
    (tmp_path / "a.py").write_text("import sys, warnings\nassert 'eggroll' not in sys.modules\nwarnings.warn('mine')")
    done = processes.run(tmp_path / "a.py", tmp_path)
    assert done.returncode == 1 and done.stderr.splitlines()[-1] == "UserWarning: mine", done.stderr


def test_blocks_and_examples_are_found() -> None:
    page = (DOCS / "examples" / "index.md").read_text(encoding="utf-8")
    assert set(EXAMPLES) == set(PRINTED) == set(re.findall(r"\]\((\w+)\.py\)", page))
    assert {"README-1", "llm-2", "processes-2"} <= set(BLOCKS)
    assert len((ROOT / "README.md").read_text(encoding="utf-8").split()) <= 1300
