"""The core does without the packages of the extras, and what needs one says which."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from eggroll.extras import PACKAGES, MissingPackageError, needed_for

BLOCK = f"import sys; sys.modules.update(dict.fromkeys({sorted(PACKAGES)}))\n"  # each import of one fails

CORE = """
import jax, jax.numpy as jnp, optax
from flax import nnx
import eggroll, eggroll.llm, eggroll.training

key = jax.random.key(0)
model = nnx.Linear(3, 2, rngs=nnx.Rngs(0))
eggroll.nnx.value_and_grad(lambda m, x: m(x).sum(), population=4, sigma=0.1)(model, jnp.ones((1, 3)), key=key)
es = eggroll.ES(population=4, sigma=0.1, optimizer=optax.sgd(0.1))
result = eggroll.training.fit(es, es.init(jnp.ones(2), key), lambda p: -(p**2).sum(), generations=2)
assert result.generation == 2
eggroll.llm.Decoder, eggroll.llm.task_named("countdown")
"""

# What is asked for, and the package and extra that the answer names.
ASKED = {
    "import sys; from eggroll.start import main; sys.exit(main())": ("tyro", "train"),
    "import eggroll.training.curve": ("matplotlib", "train"),
    "from eggroll.llm import Scorers; Scorers(len)": ("cloudpickle", "llm"),
    "import eggroll.recipes.digits": ("scikit-learn", "train"),
    "from eggroll.training import Checkpoints; Checkpoints('there')": ("orbax-checkpoint", "train"),
    "from eggroll.training import Saving; Saving(tensorboard=True)": ("tensorboardX", "tensorboard"),
    "from eggroll.training import Saving; Saving(report_to=('trackio',))": ("trackio", "trackio"),
    "from eggroll.llm import task_named; task_named('reasoning_gym:chain_sum')": ("reasoning-gym", "reasoning"),
    "from pathlib import Path; from eggroll.llm import load; Path('m.gguf').touch(); load('m.gguf')": ("gguf", "gguf"),
    "from pathlib import Path; from eggroll.llm import custom_task; Path('p.parquet').touch()\n"
    "custom_task(reward='operator:contains', prompts='p.parquet')": ("pyarrow", "data"),
    "from eggroll.llm import load; load('owner/name')": ("huggingface-hub", "llm"),
    "import eggroll.llm; open('config.json', 'w').write('{\"model_type\": \"llama\"}'); eggroll.llm.load('.')": (
        "transformers",
        "llm",
    ),
}


def python(code: str, folder: Path) -> subprocess.CompletedProcess:
    """Run it where no package of an extra is installed."""
    return subprocess.run([sys.executable, "-c", BLOCK + code], cwd=folder, capture_output=True, text=True)


def test_the_core_does_without_extras_and_what_is_missing_is_named(tmp_path: Path) -> None:
    lines = [f"try_({code!r})" for code in ASKED]
    catch = (
        "def try_(code):\n"
        "    try:\n        exec(code, {})\n"
        "    except (ImportError, SystemExit) as why:\n        print(f'{type(why).__name__}: {why}', flush=True)\n"
    )
    done = python(CORE + catch.replace("exec(", "sys.stderr = sys.stdout; exec(") + "\n".join(lines), tmp_path)
    said = done.stdout.splitlines()
    assert done.returncode == 0 and "SystemExit: 2" in said, done.stdout + done.stderr
    said.remove("SystemExit: 2")
    for (package, extra), line in zip(ASKED.values(), said, strict=True):
        assert f"got no package {package}, which" in line, line
        assert line.endswith(f'pip install "eggroll-jax[{extra}]"'), line


def test_the_extras_are_those_of_the_project(pyproject: dict) -> None:
    extras = pyproject["project"]["optional-dependencies"]
    brought = {"huggingface-hub", "tokenizers"}  # by transformers
    brought.add("gymnax")  # by no extra: it asks for an older JAX, and its message says so
    for package, extra in PACKAGES.values():
        assert package in brought or any(bound.startswith(package + ">=") for bound in extras[extra]), package
    (everything,) = extras["all"]
    rare = {"atari", "brax", "jumanji", "navix", "trackio", "wandb"}  # simulators' hundreds of megabytes, and services
    assert set(everything.partition("[")[2].rstrip("]").split(",")) == set(extras) - {"all", "docs", "test"} - rare


def test_other_imports_that_fail_are_not_renamed() -> None:
    with pytest.raises(ModuleNotFoundError, match="No module named 'nowhere'") as raised, needed_for("tests"):
        import nowhere  # noqa: F401  # pyright: ignore[reportMissingImports]
    assert not isinstance(raised.value, MissingPackageError)


def test_what_is_there_is_not_imported() -> None:
    code = "import sys, eggroll.extras as e; e.check_installed('gguf', 'files'); assert 'gguf' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)
