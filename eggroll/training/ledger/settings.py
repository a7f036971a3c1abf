"""The settings of a ledger: what an update depends on besides parameters, key and weights, as JSON."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import MISSING, fields
from typing import Any, get_args

import jax
import numpy as np
import optax
from jax.sharding import Mesh

from eggroll.extras import versions
from eggroll.ops.registry import chosen
from eggroll.strategy.methods import METHODS
from eggroll.strategy.plan.leaves import Kind, LeafPlan, Plan
from eggroll.strategy.population import AXIS, Population, Sharding
from eggroll.strategy.protocol import Strategy
from eggroll.strategy.update.optimizer import sigma_at
from eggroll.training.errors import RunError, check_known
from eggroll.training.folder import settings as folder
from eggroll.training.ledger.format import FORMAT, joint_digest
from eggroll.training.ledger.mesh import laid_out, mesh_difference, mesh_to_json
from eggroll.training.optimizers import from_json, spec_of, to_json

NOT_KEPT = ("rules", "small_layers", "chunk", "share_rngs")
DECODED = ("shaping", "sigma", "optimizer", "mesh", "sharding", "update")  # from the settings otherwise, or not at all
ENVIRONMENT = ("versions", "platform", "devices", "mesh", "kernels")  # change in a run without anyone having asked
HEADER = ("format", "method", "key", "plan", "base", "x64", "devices", *ENVIRONMENT)
CUSTOM = "custom: "  # before the name of a shaping of one's own
PACKAGES = ("eggroll", "jax", "jaxlib", "optax")


def settings_of(es: Strategy, key: jax.Array, base: Mapping[str, str], name: str | None) -> dict[str, Any]:
    """The content of a settings record.

    Args:
        es: the strategy; its plan is left out before its first generation.
        key: typed threefry key of the run.
        base: path → digest, from `eggroll.training.ledger.format.digests`.
        name: what the base is called, such as a model's name; or None.

    Returns:
        `format`, the strategy's options but its rules, which are in the plan, and its chunk (`sigma` None: in every
        record; `optimizer` None: to be given again; other functions by their names), `key`, `plan`, `base`, `x64`,
        `versions`, `platform`, `devices`, `mesh` (None: no mesh); `kernels`, where any were tried.

    Raises:
        RunError: an option that a ledger cannot hold.
    """
    paths = list(base) if es.plan is None else [leaf.path for leaf in es.plan.leaves]
    options = {each: value for each, value in es.options().items() if each not in NOT_KEPT}
    return {
        "format": FORMAT,
        **{each: _recorded(each, value) for each, value in options.items()},
        "key": np.asarray(jax.random.key_data(key)).tolist(),
        "plan": None if es.plan is None else plan_to_json(es.plan),
        "base": {"name": name, "digest": joint_digest(base, paths), "parameters": [base[path] for path in paths]},
        "x64": _x64(),
        "versions": _versions(),
        "platform": jax.default_backend(),
        "devices": 1 if es.settings.mesh is None else int(es.settings.mesh.shape[AXIS]),
        "mesh": mesh_to_json(es.settings),
        **({"kernels": dict(chosen)} if chosen else {}),
    }


def _recorded(name: str, value: Any) -> Any:
    if name == "sigma":
        return _constant(value)
    if name == "shaping":  # its results, the weights, are in every record
        return value if isinstance(value, str) else CUSTOM + getattr(value, "__qualname__", "")
    if name == "optimizer":
        return None if value is None else spec_of(value)
    try:
        return to_json(name, value)
    except TypeError as why:
        raise RunError(
            f"got a {name.replace('_', ' ')} that a ledger cannot hold: a function. Use eggroll.training.schedule"
            '(...), such as schedule("cosine_decay_schedule", init_value=5e-4, decay_steps=100), or write no ledger.'
        ) from why


def strategy_of(
    content: Mapping[str, Any],
    optimizer: Callable[[Any], optax.GradientTransformation],
    mesh: Mesh | None = None,
    sharding: Sharding = None,
) -> Strategy:
    """The strategy that wrote the settings, laid out on `mesh` as the run was as far as that has its axes.

    What decides no update is as it happens to be: shaping, rules and chunk.

    Args:
        content: the settings.
        optimizer: makes the optimizer from what the settings hold of it; called if the strategy has one.
        mesh: of the replay.
        sharding: of the replay.

    Raises:
        KeyError: settings that are missing.
        ValueError: a method or a setting that is not known, or settings that do not fit together.
    """
    name = content.get("method", "eggroll")
    if name not in METHODS:
        raise ValueError(f"the method {name!r}")
    cls = METHODS[name].strategy()
    options = {each: from_json(value) for each, value in content.items() if cls.takes(each) and each not in DECODED}
    options |= {each: content[each] for each in ("population", "antithetic", "distribution", "groups", "noise_reuse")}
    if cls.takes("optimizer"):
        options["optimizer"] = optimizer(content["optimizer"])
    if cls.takes("mesh"):
        rules, update = laid_out(content.get("mesh"), mesh, sharding)
        options |= {"mesh": mesh, "sharding": rules, "update": update}
    sigma = content["sigma"]
    es = cls.from_options({**options, "sigma": 1.0 if sigma is None else sigma})
    check_known("settings", content, (*HEADER, *es.options()), ValueError)
    check_known("a base", content.get("base") or (), ("name", "digest", "parameters"), ValueError)
    return es


def _constant(sigma: Any) -> float | None:
    """Sigma as the update is compiled with it: a number, which JSON keeps to the last bit; None if it is traced."""
    found: list[Any] = []
    jax.eval_shape(lambda g: found.append(sigma_at(sigma, g)), jax.ShapeDtypeStruct((), np.int32))
    return found[0] if isinstance(found[0], float) else None


def differences(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    """What differs in settings, the environment and an unknown plan left out, as `name: old → new`.

    Example:
        >>> differences({"rank": 1, "platform": "cpu"}, {"rank": 2, "platform": "gpu"})
        ['rank: 1 → 2']
    """
    kept = [{name: x for name, x in each.items() if name not in ("base", "plan", *ENVIRONMENT)} for each in (old, new)]
    for content in kept:
        if content.get("shaping", "").startswith(CUSTOM):  # its name says nothing: a configuration has its results
            del content["shaping"]
    known = all(content.get("plan") for content in (old, new))
    for content, plan in zip(kept, (old.get("plan"), new.get("plan")), strict=True) if known else ():
        content["parameters"] = [leaf["path"] for leaf in plan or ()]
        content |= {f"the plan of {leaf['path']}": leaf for leaf in plan or ()}
    return folder.differences(*kept)


def plan_to_json(plan: Plan) -> list[dict[str, Any]]:
    """The leaf plans, without what has its default value.

    Example:
        >>> plan_to_json(Plan((LeafPlan("w", (4, 3), "float32", "low_rank", 1, (0,), (1,)),)))[0]["left_axes"]
        [0]
    """
    return [
        {
            f.name: list(value) if isinstance(value := getattr(leaf, f.name), tuple) else value
            for f in fields(LeafPlan)
            if f.default is MISSING or getattr(leaf, f.name) != f.default
        }
        for leaf in plan.leaves
    ]


def plan_from_json(leaves: Any) -> Plan:
    """The inverse of `plan_to_json`.

    Example:
        >>> plan_from_json([{"path": "b", "shape": [3], "dtype": "float32", "kind": "dense"}]).leaves[0].shape
        (3,)
    """
    plans = []
    for leaf in leaves:
        values: dict[str, Any] = {name: tuple(v) if isinstance(v, list) else v for name, v in leaf.items()}
        plans.append(LeafPlan(**values))
        if plans[-1].kind not in get_args(Kind):
            raise ValueError(f"a parameter that is {plans[-1].kind!r}")
    return Plan(tuple(plans))


def elsewhere(content: Mapping[str, Any], population: Population | None = None) -> list[str]:
    """What is not as in the run that wrote the settings, so that bits may differ: as `name: there → here`.

    Args:
        content: the settings.
        population: of the replay. Default None: one that knows no mesh.
    """
    there, here = {"platform": content["platform"], **content["versions"]}, {"platform": jax.default_backend()}
    found = folder.differences(there, {**here, **_versions()})
    layout = mesh_difference(content.get("mesh"), population and mesh_to_json(population))
    return found if layout is None else [*found, layout]


def check_format(content: Mapping[str, Any]) -> None:
    """Raises RunError for settings that this version, or this process, cannot replay."""
    if content.get("format") != FORMAT:
        raise RunError(
            f"got a ledger of format {content.get('format')!r}; this version of eggroll replays format {FORMAT}."
        )
    if content["x64"] != _x64():
        raise RunError(
            f"got a ledger written with jax_enable_x64={content['x64']}, which decides the dtypes of an update; set "
            f'jax.config.update("jax_enable_x64", {content["x64"]}) first.'
        )


def _versions() -> dict[str, str]:
    return {name: version for name, version in versions().items() if name in PACKAGES}


def _x64() -> bool:
    return jax.dtypes.canonicalize_dtype(np.float64) == np.float64
