"""The settings of a ledger: what an update depends on besides parameters, key and weights, as JSON."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import MISSING, fields
from typing import Any, get_args

import jax
import numpy as np
from jax.sharding import Mesh

from eggroll.strategy.es import ES
from eggroll.strategy.full_rank import FullRankES
from eggroll.strategy.mesh.sharding import Sharding
from eggroll.strategy.plan.leaves import Kind, LeafPlan, Plan
from eggroll.strategy.population import AXIS, Population
from eggroll.strategy.schedules import sigma_at
from eggroll.training.errors import RunError
from eggroll.training.folder.settings import NOTHING, compared
from eggroll.training.folder.versions import version_of
from eggroll.training.ledger.base import joint_digest
from eggroll.training.ledger.mesh import laid_out, mesh_difference, mesh_to_json
from eggroll.training.optimizers import spec_of, to_json

FORMAT = 1
ENVIRONMENT = ("versions", "platform", "devices", "mesh")  # may change in a run without anyone having asked for it
PACKAGES = {"eggroll": "eggroll-jax", "jax": "jax", "jaxlib": "jaxlib", "optax": "optax"}


def settings_of(es: ES, key: jax.Array, base: Mapping[str, str], name: str | None) -> dict[str, Any]:
    """The content of a settings record.

    Args:
        es: the strategy; its plan is left out before its first generation.
        key: typed threefry key of the run.
        base: path → digest, from `eggroll.training.ledger.base.digests`.
        name: what the base is called, such as a model's name; or None.

    Returns:
        `format`, `population`, `antithetic`, `distribution`, `groups`, `noise_reuse`, `sigma` (None: in every record),
        `rank`, `shaping`, `key`, `optimizer` (None: to be given again), `plan`, `base`, `x64`, `versions`, `platform`,
        `devices` and `mesh` (None: no mesh); for full-rank ES also `method` and `learning_rate` (None: half of sigma).

    Raises:
        RunError: a learning rate of full-rank ES that a ledger cannot hold.
    """
    pop = es.settings
    paths = list(base) if es.plan is None else [leaf.path for leaf in es.plan.leaves]
    return {
        "format": FORMAT,
        "population": pop.size,
        "antithetic": pop.antithetic,
        "distribution": pop.distribution,
        "groups": pop.groups,
        "noise_reuse": int(es.noise_reuse),
        "sigma": _constant(es.sigma),
        "rank": int(es.rank),
        "shaping": es.shaping if isinstance(es.shaping, str) else f"custom: {getattr(es.shaping, '__qualname__', '')}",
        "key": np.asarray(jax.random.key_data(key)).tolist(),
        "optimizer": spec_of(es.optimizer),
        "plan": None if es.plan is None else plan_to_json(es.plan),
        "base": {"name": name, "digest": joint_digest(base, paths), "parameters": [base[path] for path in paths]},
        "x64": _x64(),
        "versions": _versions(),
        "platform": jax.default_backend(),
        "devices": 1 if pop.mesh is None else int(pop.mesh.shape[AXIS]),
        "mesh": mesh_to_json(pop),
        **_of_method(es),
    }


def _of_method(es: ES) -> dict[str, Any]:
    if not isinstance(es, FullRankES):
        return {}
    try:
        return {"method": es.method, "learning_rate": to_json("learning_rate", es.learning_rate)}
    except TypeError as why:
        raise RunError(
            "got a learning rate that a ledger cannot hold: a function. Use eggroll.training.schedule(...), such as "
            'schedule("cosine_decay_schedule", init_value=5e-4, decay_steps=100), or write no ledger.'
        ) from why


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
    found = []
    for name in sorted((old.keys() | new.keys()) - {"base", *ENVIRONMENT}):
        was, now = old.get(name), new.get(name)
        if was != now and name == "plan":
            found += _plan_differences(was, now)
        elif was != now:
            found += compared(name, old.get(name, NOTHING), new.get(name, NOTHING))
    return found


def _plan_differences(old: Any, new: Any) -> list[str]:
    if old is None or new is None:
        return []
    was, now = ({leaf["path"]: leaf for leaf in plan} for plan in (old, new))
    paths = [path for path in {**was, **now} if was.get(path) != now.get(path)]
    return [f"the plan of {path}: {was.get(path)} → {now.get(path)}" for path in paths] or ["the plan's order"]


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


def population_of(content: Mapping[str, Any], mesh: Mesh | None = None, sharding: Sharding = None) -> Population:
    """Who the members were, laid out on `mesh` as the run's were as far as that has its axes."""
    names = "antithetic", "distribution", "groups"
    rules, update = laid_out(content.get("mesh"), mesh, sharding)
    return Population(
        content["population"], **{name: content[name] for name in names}, mesh=mesh, sharding=rules, update=update
    )


def elsewhere(content: Mapping[str, Any], population: Population | None = None) -> list[str]:
    """What is not as in the run that wrote the settings, so that bits may differ: as `name: there → here`.

    Args:
        content: the settings.
        population: of the replay. Default None: one that knows no mesh.
    """
    here = {"platform": jax.default_backend(), **_versions()}
    there = {"platform": content["platform"], **content["versions"]}
    found = [line for name in here for line in compared(name, there.get(name, NOTHING), here[name])]
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
    return {short: version_of(package) for short, package in PACKAGES.items()}


def _x64() -> bool:
    return jax.dtypes.canonicalize_dtype(np.float64) == np.float64
