"""A user's type checker knows the public names: it finds every mistake of a file, and none where there is none."""

from __future__ import annotations

import json
import subprocess
import sys
import venv
import zipfile
from pathlib import Path

import pytest

CORRECT = """
import jax
import jax.numpy as jnp
import optax
from flax import nnx

import eggroll
import eggroll.kernels
from eggroll.llm import Decoding, load, settings_for, task_named
from eggroll.training import EarlyStopping, Result, Saving, Scored, fit, named, schedule

key = jax.random.key(0)
params = {"w": jnp.ones(3)}


def loss_fn(params: dict[str, jax.Array], x: jax.Array) -> jax.Array:
    return jnp.sum(params["w"] * x)


estimate = eggroll.value_and_grad(loss_fn, population=4, sigma=0.1, rank=2, chunk="auto")
loss, grads = estimate(params, params["w"], key=key)
(loss, aux), grads = eggroll.value_and_grad(loss_fn, population=4, sigma=0.1, has_aux=True)(params, loss, key=key)
total: jax.Array = loss + grads["w"].sum()

model = nnx.Linear(4, 2, rngs=nnx.Rngs(0))
step = eggroll.nnx.value_and_grad(lambda m, x: m(x).sum(), population=4, sigma=0.1, wrt=nnx.Param)
value, gradient = step(model, jnp.ones((1, 4)), key=key)
nnx.Optimizer(model, optax.sgd(0.1), wrt=nnx.Param).update(model, gradient)
of_model = eggroll.nnx.ES(population=4, sigma=0.1, wrt=nnx.Param, shaping="sign")
trained, of_metrics = of_model.step(of_model.init(model, key), lambda m, x: m(x).sum(), jnp.ones((1, 4)))
print(of_model.model(trained), trained.rest, eggroll.__version__)
paths = [row.path for row in eggroll.nnx.explain(lambda m, x: m(x), model, jnp.ones((1, 4)), rank=2).rows]
print(eggroll.explain(loss_fn, params, total, rules=[("w", eggroll.LowRankRule(rank=2)), (".*", "frozen")]))

es = eggroll.ES(population=8, sigma=optax.constant_schedule(0.1), optimizer=optax.adam(1e-2), shaping="sign")
state = es.init(params, key)
members = es.ask(state)
outputs = members.apply(loss_fn, params["w"])
state, metrics = es.tell(state, members, [float(out) for out in outputs])
state, metrics = es.step(state, loss_fn, params["w"])
full = eggroll.FullRankES(population=4, sigma=lambda generation: 0.1 * 0.9**generation, learning_rate=0.1)
result: Result = fit(es, state, loss_fn, [params["w"]] * 3, generations=3, saving=Saving(every=1), folder="run")
stop = EarlyStopping("fitness_mean", 3)
fit(full, state, Scored(loss_fn, lambda out, x: float(out)), lambda g: total, generations=3, early_stopping=stop)
named("adam", learning_rate=schedule("cosine_decay_schedule", init_value=0.1, decay_steps=3))
names = eggroll.kernels.implementations("lowrank_dot")
rate = settings_for("eggroll", model="m", task="countdown", population=8).rate * result.generation
width = load("folder", dtype="float32").config.width + len(task_named("countdown", sizes=(3,)).name)
decoding = Decoding(max_tokens=width)
"""

# Each line that ends in a comment has one mistake; the comment is a part of what is said of it.
MISTAKES = """
import jax
import jax.numpy as jnp
from flax import nnx

import eggroll
from eggroll.llm import generat  # "generat" is unknown import symbol
from eggroll.llm import settings_for, task_named
from eggroll.training import fit, named, replays  # "replays" is unknown import symbol

key = jax.random.key(0)
params = {"w": jnp.ones(3)}
loss_fn = lambda params: params["w"].sum()
eggroll.value_and_grad(loss_fn, population=4, sigma=0.1, antithetical=True)  # No overloads for "value_and_grad"
es = eggroll.ES(population="many")  # "population"
state = es.init(params, key)
fit(es, state, loss_fn, generations=3, early_stopping=5)  # "early_stopping"
eggroll.value_and_gradient(loss_fn)  # "value_and_gradient" is not a known attribute
eggroll.nnx.value_and_grad(loss_fn, population=4, sigma="0.1")  # "sigma"
eggroll.nnx.ES(poplation=4)  # "poplation"
eggroll.FullRankES(learning_rte=0.1)  # "learning_rte"
eggroll.LowRankRule(rank="x")  # "rank"
settings_for("eggroll", model="m", populaton=8)  # "populaton"
settings_for("eggroll", model="m", sigma="0.1")  # "sigma"
task_named("countdown", sizes=object())  # "object"
named("adam", learning_rate=lambda count: 0.1)  # "learning_rate"
loss, grads = eggroll.value_and_grad(loss_fn, population=4, sigma=0.1)(params)  # "key"
loss, grads = eggroll.grad(loss_fn, population=4, sigma=0.1)(jnp.ones(3), key=key)["w"].numpy()  # "numpy"
"""


def errors(folder: Path, python: str) -> dict[str, dict[int, str]]:
    """File -> line -> what pyright says of it in the folder of a user, who has this interpreter."""
    command = [sys.executable, "-m", "pyright", "--outputjson", "--pythonpath", python, "."]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True)
    assert done.stdout.startswith("{"), done.stdout + done.stderr
    found: dict[str, dict[int, str]] = {}
    for each in json.loads(done.stdout)["generalDiagnostics"]:
        found.setdefault(Path(each["file"]).name, {})[each["range"]["start"]["line"] + 1] = each["message"]
    return found


def installed(wheel: zipfile.ZipFile, folder: Path) -> str:
    """Make an environment that has the wheel in place of the checkout, and all other packages of this one."""
    venv.create(folder)
    (site,) = (folder / "lib").glob("python*/site-packages")
    wheel.extractall(site)
    # Paths that a .pth file names have theirs not read: what installs the checkout is left behind.
    others = [path for path in sys.path if Path(path).name in ("site-packages", "dist-packages")]
    (site / "others.pth").write_text("\n".join(others), encoding="utf-8")
    return str(folder / "bin" / "python")


@pytest.mark.slow
@pytest.mark.parametrize("how", ["editable", "wheel"])
def test_mistakes_are_found_where_they_are(how: str, tmp_path: Path, request: pytest.FixtureRequest) -> None:
    python = sys.executable
    if how == "wheel":
        python = installed(request.getfixturevalue("wheel"), tmp_path / "environment")
    where = "import eggroll.kernels as k; print(k.__file__)"
    file = subprocess.run([python, "-c", where], cwd=tmp_path, check=True, capture_output=True, text=True).stdout
    assert (tmp_path in Path(file).parents) == (how == "wheel")
    user = tmp_path / "user"
    user.mkdir()
    (user / "correct.py").write_text(CORRECT, encoding="utf-8")
    (user / "mistakes.py").write_text(MISTAKES, encoding="utf-8")
    lines = {number: line.split("  # ")[1] for number, line in enumerate(MISTAKES.splitlines(), 1) if "  # " in line}
    found = errors(user, python)
    assert found.keys() == {"mistakes.py"}, found
    said = found["mistakes.py"]
    assert said.keys() == lines.keys(), said
    for number, words in lines.items():
        assert words in said[number], (number, said[number])
