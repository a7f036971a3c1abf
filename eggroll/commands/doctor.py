"""`eggroll doctor`: what this machine has, whether its kernels are right, and what is used: all that a report needs."""

from __future__ import annotations

import contextlib
import importlib
import itertools
import json
import os
import platform
import re
import sys
import traceback
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from typing import Annotated, Any

import tyro

from eggroll.commands.common import FAILED
from eggroll.training.options import SettingsError

PACKAGES = ("eggroll-jax", "jax", "jaxlib", "libtpu", "numpy", "optax", "flax")
PLUGINS = tuple(f"jax-{kind}-{part}" for kind in ("cuda12", "cuda13", "rocm7") for part in ("plugin", "pjrt"))
# Settings by which numbers and devices are chosen, and nothing that could be a secret.
VARIABLES = re.compile(
    r"(EGGROLL_KERNELS|XLA_|LIBTPU_INIT_ARGS$|JAX_(PLATFORM|ENABLE_X64|DEFAULT_)|CUDA_VISIBLE_|TPU_VIS)"
)


@dataclass(frozen=True)
class Doctor:
    """Print devices and versions, try every kernel for them, and say what is used and why."""

    rank: int = 1
    """Rank of the factors that kernels are tried with."""
    plugin: Annotated[tuple[str, ...], tyro.conf.arg(metavar="[MODULE ...]")] = ()
    """Modules that register kernels of their own."""
    json: bool = False
    """Print one JSON object, for a report."""


def doctor(command: Doctor) -> int:
    """Runs the command; the exit status."""
    if command.rank < 1:
        raise SettingsError(f"got a rank of {command.rank}; at least 1 is required.")
    for name in command.plugin:
        try:
            importlib.import_module(name)
        except ImportError as why:
            raise SettingsError(f"got the plugin {name!r}, which cannot be imported: {why}") from why
    found = examined(command.rank)
    print(json.dumps(found, indent=1) if command.json else "\n".join(_text(found)))
    bad = "error" in found or any(each["state"] in ("wrong", "failed") for each in found["kernels"])
    return FAILED if bad else 0


def examined(rank: int) -> dict[str, Any]:
    """Everything; an `error` says why there is no more."""
    from eggroll.extras import version_of

    versions = {name: version_of(name) for name in (*PACKAGES, *PLUGINS)}
    found: dict[str, Any] = {
        "versions": {name: version for name, version in versions.items() if version != "unknown"},
        "python": platform.python_version(),
        "system": platform.platform(),
        "variables": {name: value for name, value in sorted(os.environ.items()) if VARIABLES.match(name)},
        "kernels": [],
        "chosen": [],
    }
    try:
        return found | _on_devices(rank, found["kernels"])
    except Exception:  # of any kind: a report of what there is, and of this
        return found | {"error": traceback.format_exc()}


def _on_devices(rank: int, kernels: list[dict[str, Any]]) -> dict[str, Any]:
    """The devices, a verdict for every kernel and kind of operands, and what is chosen."""
    import jax

    from eggroll.ops import remembered
    from eggroll.ops.registry import current_platform

    described = [
        {"id": each.id, "kind": each.device_kind, "platform": each.platform, "process": each.process_index}
        for each in jax.devices()
    ]
    device = jax.local_devices(backend=current_platform())[0]
    found: dict[str, Any] = {
        "platform": device.platform,
        "driver": device.client.platform_version,
        "devices": described,
        "processes": jax.process_count(),
    }
    with contextlib.suppress(OSError):
        found["remembered_in"] = str(remembered.folder())
    for verdict in _verdicts(rank, device):
        kernels.append(asdict(verdict))
    return found | {"chosen": _chosen(rank, kernels)}


def _cases(operation: str, rank: int) -> Iterator[Any]:
    """Every kind of operands that the engine asks for, and factors that are arrays."""
    from eggroll.ops.cases import Case
    from eggroll.ops.trials import RAGGED

    shape = replace(RAGGED[operation], rank=rank)
    for dtype, distribution in itertools.product(("float32", "bfloat16"), ("rademacher", "normal")):
        yield Case(operation, shape, distribution, dtype)
        if dtype == "float32" and operation == "lowrank_dot":
            yield Case(operation, shape, distribution, dtype, highest=True)
    for dtype in ("float32", "bfloat16"):
        yield Case(operation, shape, "normal", dtype, given=True)


def _verdicts(rank: int, device: Any) -> Iterator[Any]:
    """Tries one kernel after another, and says first which: one that hangs is known by the last line."""
    from eggroll.ops.registry import candidates
    from eggroll.ops.trials import RAGGED, tried

    for operation in RAGGED:
        for name, function in candidates(operation).items():
            for case in _cases(operation, rank):
                print(f"eggroll: trying {name} of {operation}, {case.kind}", file=sys.stderr, flush=True)
                yield tried((operation, name, function, case, device.device_kind), device)


def _chosen(rank: int, kernels: list[dict[str, Any]]) -> list[dict[str, str]]:
    """For each kind of operands the implementation that is used on this machine, and why."""
    from eggroll.ops.registry import REFERENCE, SWITCH
    from eggroll.ops.registry import kernels as used
    from eggroll.ops.trials import RAGGED, RIGHT

    found = []
    for operation, case in [(each, case) for each in RAGGED for case in _cases(each, rank)]:
        tried = [each for each in kernels if (each["operation"], each["kind"]) == (operation, case.kind)]
        right = [each["implementation"] for each in tried if each["state"] == RIGHT]
        why = "; ".join(
            f"{each['implementation']}: {each['state']}, {each['reason']}" for each in tried if each["reason"]
        )
        if right and used(operation):
            choice, why = right[0], "the first that is right"
        elif right:
            choice, why = REFERENCE, f"{SWITCH} is off"
        else:
            choice, why = REFERENCE, why or "there are no kernels for this platform"
        found.append({"operation": operation, "kind": case.kind, "implementation": choice, "why": why})
    return found


def _text(found: dict[str, Any]) -> Iterator[str]:
    """The same for people."""
    yield ", ".join(f"{name} {version}" for name, version in found["versions"].items())
    yield f"Python {found['python']} on {found['system']}"
    for name, value in found["variables"].items():
        yield f"{name}={value}"
    if "error" in found:
        yield f"\n{found['error']}"
        return
    kinds = [f"{len([*same])} {kind}" for kind, same in itertools.groupby(each["kind"] for each in found["devices"])]
    yield f"{found['platform']}: {', '.join(kinds)}; {found['processes']} process(es); {found['driver']}"
    for each in found["kernels"]:
        about = f": {each['reason']}" if each["reason"] else ""
        yield f"{each['state']:>12}  {each['operation']} {each['implementation']}, {each['kind']}{about}"
    reasons = {each["kept"] for each in found["kernels"]} - {""}
    for reason in sorted(reasons):
        yield f"Some of this is found anew by every process: {reason}"
    yield "What is used:"
    if not found["kernels"]:
        yield "  plain XLA for everything: there are no kernels for this platform"
        return
    for each in found["chosen"]:
        yield f"  {each['operation']}, {each['kind']}: {each['implementation']} ({each['why']})"
