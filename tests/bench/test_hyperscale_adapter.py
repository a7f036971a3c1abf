"""The HyperscaleES adapter against a double of that package's interface, written here: no checkout is needed."""

import sys

import jax
import numpy as np
import pytest

from bench.peer_adapters import Work, adapter

NOISER = """
import jax, jax.numpy as jnp

class EggRoll:
    @classmethod
    def init_noiser(cls, params, sigma, lr, *args, solver=None, solver_kwargs=None, rank=1, noise_reuse=0, **kwargs):
        solver = solver(lr, **(solver_kwargs or {}))
        frozen = {"solver": solver, "rank": rank, "noise_reuse": noise_reuse}
        return frozen, {"sigma": sigma, "opt_state": solver.init(params)}

    @classmethod
    def noise(cls, noise, param, key, which):
        epoch, member = which
        key = jax.random.fold_in(jax.random.fold_in(key, epoch), member // 2)
        return jnp.where(member % 2 == 0, 1, -1) * noise["sigma"] * jax.random.normal(key, param.shape)

    @classmethod
    def do_mm(cls, frozen, noise, param, key, which, x):
        return x @ (param + cls.noise(noise, param, key, which)).T

    @classmethod
    def get_noisy_standard(cls, frozen, noise, param, key, which):
        return param + cls.noise(noise, param, key, which)

    @classmethod
    def convert_fitnesses(cls, frozen, noise, raw):
        assert raw.ndim == 1
        return (raw - raw.mean()) / jnp.sqrt(raw.var() + 1e-5)

    @classmethod
    def do_updates(cls, frozen, noise, params, keys, fitnesses, which, es_map):
        def change(param, key, kind):
            each = jax.vmap(lambda one: cls.noise(noise, param, key, one))(which)
            return -jnp.tensordot(fitnesses, each, 1) / len(fitnesses)
        updates, noise["opt_state"] = frozen["solver"].update(
            jax.tree.map(change, params, keys, es_map), noise["opt_state"], params)
        return noise, jax.tree.map(jnp.add, params, updates)
"""

MODELS = """
import jax, jax.numpy as jnp

def simple_es_tree_key(params, key, scan_map):
    leaves, tree = jax.tree.flatten(params)
    return jax.tree.unflatten(tree, list(jax.random.split(key, len(leaves))))

class MM:
    @classmethod
    def rand_init(cls, key, in_dim, out_dim, dtype):
        return None, jax.random.normal(key, (out_dim, in_dim), dtype), (), 1

    @classmethod
    def forward(cls, noiser, settings, noise, frozen, params, keys, which, x):
        return noiser.do_mm(settings, noise, params, keys, which, x)

class MLP:
    @classmethod
    def rand_init(cls, key, in_dim, out_dim, hidden_dims, use_bias, activation, dtype):
        assert use_bias and activation == "relu"
        sizes = [in_dim, *hidden_dims, out_dim]
        params = {str(i): {"weight": jax.random.normal(key, (b, a)) / a**0.5, "bias": jnp.zeros(b)}
                  for i, (a, b) in enumerate(zip(sizes, sizes[1:]))}
        return {"activation": activation}, params, {}, jax.tree.map(lambda x: x.ndim - 1, params)

    @classmethod
    def forward(cls, noiser, settings, noise, frozen, params, keys, which, x):
        for i in params:
            x = x if i == "0" else jax.nn.relu(x)
            x = noiser.do_mm(settings, noise, params[i]["weight"], keys[i]["weight"], which, x)
            x = x + noiser.get_noisy_standard(settings, noise, params[i]["bias"], keys[i]["bias"], which)
        return x
"""


@pytest.fixture
def double(tmp_path, monkeypatch):
    for folder, name, content in (("noiser", "eggroll", NOISER), ("models", "common", MODELS)):
        package = tmp_path / "src" / "hyperscalees" / folder
        package.mkdir(parents=True)
        (package / f"{name}.py").write_text(content)
        (package / "other.py").write_text("import a_library_that_is_nowhere")
        (package / "__init__.py").write_text(f"from . import other, {name}")
    (package.parent / "__init__.py").write_text("from . import models, noiser")
    monkeypatch.setattr(sys, "path", sys.path.copy())
    monkeypatch.setenv("HYPERSCALEES_PATH", str(tmp_path))
    yield
    for name in [name for name in sys.modules if name.split(".")[0] == "hyperscalees"]:
        del sys.modules[name]


@pytest.mark.slow
@pytest.mark.parametrize("work", [Work("layer", 8, width=5), Work("digits", 8, rows=3)], ids=lambda work: work.name)
def test_a_generation_moves_every_parameter_with_new_noise(double, work):
    module = adapter("hyperscale_es")
    assert module.version() == "checkout"
    candidate = module.prepare(work)
    assert str(candidate.note).endswith(": models.other, noiser.other")
    _, first, _ = candidate.step()
    _, second, epoch = candidate.step()
    assert epoch == 2
    leaves = list(zip(jax.tree.leaves(first), jax.tree.leaves(second), strict=True))
    assert sum(a.size for a, _ in leaves) == work.parameters
    assert all(np.isfinite(b).all() and (np.asarray(a) != np.asarray(b)).any() for a, b in leaves)
    assert candidate.inference().shape[0] == 8
