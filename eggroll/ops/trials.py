"""Kernels are tried before they are used: on small shapes of the same kind, against float64 and bit for bit.

A kernel that does not compile, raises or computes something else is not used in this process, and a warning says so.
What was found is kept on disk, so that later processes neither try a good one again nor forget a bad one.
"""

from __future__ import annotations

import threading
import warnings
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from eggroll.ops import remembered
from eggroll.ops.cases import NOISE, Case, checked
from eggroll.ops.registry import check_taken, chosen, current_platform
from eggroll.ops.seeded import Seeded
from eggroll.ops.truth import Shape

# Ragged: several tiles along an axis, or more units than one of a GPU's blocks takes; a member's rows fill tiles here,
# in `NOISE` members share them. Whole tiles are for kernels that take nothing else.
RAGGED = {
    "lowrank_dot": Shape(units=2, signs=2, rows=130, depth=70, columns=150),
    "rank_update": Shape(units=67, signs=1, rows=1, depth=70, columns=150),
}
WHOLE = NOISE[1]
RIGHT, WRONG, FAILED, UNKNOWN = "right", "wrong", "failed", "not checked"
NOT_KEPT = "only what another process would find again is kept, of a function that it could import"
STAGES = {"compile": "while it was compiled", "run": "while it ran"}


@dataclass(frozen=True)
class Verdict:
    """What was found about one kernel for one kind of operands.

    Attributes:
        operation: its name.
        implementation: the kernel's name.
        kind: distribution, dtype and rank of the operands, and what else tells them apart.
        chip: on which it was tried.
        state: `right`, `wrong`, `failed` (it raised) or `not checked`.
        reason: why it is not right.
        remembered: whether an earlier process found it.
        kept: why it could not be put down for later processes, or an empty string.
    """

    operation: str
    implementation: str
    kind: str
    chip: str
    state: str
    reason: str = ""
    remembered: bool = False
    kept: str = ""

    @property
    def trusted(self) -> bool:
        """Whether the kernel is used."""
        return self.state in (RIGHT, UNKNOWN)


Key = tuple[str, str, Callable[..., Any], Case, str]
_FOUND: dict[Key, Verdict] = {}
_CRASHED: dict[str, str] = {}  # chip → the kernel that raised while it ran there
_ONE_AT_A_TIME = threading.Lock()


def trusted(operation: str, name: str, function: Callable[..., Any], *args: Any, **options: Any) -> bool:
    """Whether a kernel computes such arguments as the reference does; see `eggroll.ops.registry.trusted`."""
    case, device = case_of(operation, args, options.get("precision")), _device()
    if case is None or device is None:  # nothing to compare with, or lowered for a chip that is not here
        return True
    if _mixed(operation, args):
        chosen[f"{operation} {name}, {case.kind}, mixed dtypes"] = "refused"
        return False
    key = operation, name, function, case, device.device_kind
    if key not in _FOUND:
        check_taken(function, *args, **options)
        with _ONE_AT_A_TIME:
            if key not in _FOUND:
                _FOUND[key] = verdict = _recalled(key, device) or tried(key, device)
                chosen[f"{operation} {name}, {case.kind}"] = "used" if verdict.trusted else "refused"
                _tell(verdict)
    return _FOUND[key].trusted


def tried(key: Key, device: Any) -> Verdict:
    """Runs a kernel's check on a device, and puts down what was found.

    The arguments of whoever asks may be tracers, on a mesh of many processes. A thread of its own has none of that: no
    trace that is under way, no mesh, no setting that holds for a `with` block.
    """
    if key[-1] in _CRASHED:  # on a GPU nothing works any more in this process
        return Verdict(*key[:2], key[3].kind, key[4], FAILED, f"not tried, after {_CRASHED[key[-1]]} crashed")
    answer = [(FAILED, "its check ended without an answer", False)]
    x64 = jax.config.jax_enable_x64  # pyright: ignore[reportAttributeAccessIssue]

    def check() -> None:
        with jax.default_device(device), jax.transfer_guard("allow"), jax.disable_jit(False), jax.enable_x64(x64):
            answer.append(_outcome(key))

    thread = threading.Thread(target=check, name="kernel check", daemon=True)
    thread.start()
    thread.join()
    operation, name, function, case, chip = key
    state, reason, lasting = answer[-1]
    if state == FAILED and reason.startswith(STAGES["run"]):
        _CRASHED.setdefault(chip, f"{name} of {operation}")
    verdict = Verdict(operation, name, case.kind, chip, state, reason)
    at = remembered.key_of(operation, name, function, case.kind, device) if lasting else None
    if at is None:
        return verdict if state == UNKNOWN else replace(verdict, kept=NOT_KEPT)
    return replace(verdict, kept=remembered.write(at, {"state": state, "reason": reason}))


def case_of(operation: str, args: tuple[Any, ...], precision: Any = None) -> Case | None:
    """The numbers that are compared for arguments of this kind; None for an operation that is not known here."""
    if operation not in RAGGED:
        return None
    first, left = args[0], args[-2]
    given = not isinstance(left, Seeded)
    distribution = left.distribution if isinstance(left, Seeded) else "normal"
    dtype = str(jnp.dtype(left.dtype if operation == "rank_update" else first.dtype))
    largest = precision in (lax.Precision.HIGHEST, "highest", "float32", (lax.Precision.HIGHEST,) * 2)
    highest = operation == "lowrank_dot" and dtype == "float32" and largest
    shape = replace(RAGGED[operation], rank=left.shape[-1])
    return Case(operation, shape, distribution, dtype, highest=highest, given=given)


def _mixed(operation: str, args: tuple[Any, ...]) -> bool:
    """Whether factors differ in dtype from one another or from the input: of one dtype alone kernels are tried.

    Not `"rademacher"` noise, whose numbers every dtype holds. Inputs and weights that differ kernels refuse themselves.
    """
    first, left, right = args[0], args[-2], args[-1]
    exact = isinstance(left, Seeded) and left.distribution == "rademacher"
    each = (left, right, first) if operation == "lowrank_dot" else (left, right)  # of a sum weights are first
    return not exact and len({jnp.dtype(x.dtype) for x in each}) > 1


def _outcome(key: Key) -> tuple[str, str, bool]:
    """State and reason, and whether they would be the same another time."""
    _, name, _, case, _ = key
    cases, refusal = [case], ""
    if not case.given and (case.exact or jnp.dtype(case.dtype).itemsize <= 2):  # other products of noise are rounded
        cases.append(replace(case, shape=replace(NOISE[0], rank=case.shape.rank), noise=True, highest=False))
    for asked in cases:
        try:
            found = checked(asked, name)
            if found["verdict"] == "cannot":
                found = checked(replace(asked, shape=replace(WHOLE, rank=case.shape.rank)), name)
        except Exception as why:  # before the kernel had a part in it
            return UNKNOWN, f"nothing to compare with: {type(why).__name__}: {why}", False
        if found["verdict"] == "cannot":
            refusal = found["reason"]
        elif found["verdict"] == "wrong":
            return WRONG, f"{'bits of noise: ' * asked.noise}{found['reason']}", True
        elif found["verdict"] == "failed":
            return FAILED, f"{STAGES[found['stage']]}, {found['reason']}", not found.get("passing")
    return (UNKNOWN, f"it does not take what it is checked with: {refusal}", False) if refusal else (RIGHT, "", True)


def _recalled(key: Key, device: Any) -> Verdict | None:
    """What an earlier process put down."""
    operation, name, function, case, chip = key
    at = remembered.key_of(operation, name, function, case.kind, device)
    content = None if at is None else remembered.read(at)
    if not isinstance(content, dict) or content.keys() != {"state", "reason"}:
        return None
    state, reason = content["state"], content["reason"]
    if state not in (RIGHT, WRONG, FAILED) or not isinstance(reason, str):
        return None
    return Verdict(operation, name, case.kind, chip, state, reason, remembered=True)


def _tell(verdict: Verdict) -> None:
    """Warns of a kernel that is not used, or is used unchecked."""
    who = f"the kernel {verdict.implementation} of {verdict.operation} ({verdict.kind}) on {verdict.chip}"
    if verdict.state == RIGHT:
        return
    if verdict.state == UNKNOWN:
        warnings.warn(f"{who} is used without having been checked: {verdict.reason}", RuntimeWarning, stacklevel=2)
        return
    what = "computes wrong numbers" if verdict.state == WRONG else "fails"
    earlier = ", as an earlier process found" if verdict.remembered else ""
    crashed = verdict.reason.startswith(STAGES["run"]) and not verdict.remembered
    again = " What else this process asks of the device may fail, too; the next one leaves the kernel alone."
    warnings.warn(
        f"{who} {what}{earlier}: {verdict.reason}. XLA does its work, unless the kernel is named.{again * crashed} "
        "Please report this with what `eggroll doctor --json` prints, which tries all kernels again.",
        RuntimeWarning,
        stacklevel=2,
    )


def _device() -> Any:
    """The device of this process that kernels run on or are lowered for; None where it has none of that chip."""
    chip = jax.sharding.get_abstract_mesh().abstract_device  # of the mesh that is in use, or lowered for
    default = jax.config.jax_default_device  # pyright: ignore[reportAttributeAccessIssue]
    try:
        here = (
            jax.local_devices(backend=current_platform()) if default is None or isinstance(default, str) else [default]
        )
    except RuntimeError:  # no such platform
        return None
    return next((device for device in here if chip is None or device.device_kind == chip.device_kind), None)
