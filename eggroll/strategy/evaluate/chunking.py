"""How the members of a generation are laid out in memory: what each costs, how many at once, who shares noise."""

from __future__ import annotations

import math
import os
from collections import OrderedDict
from collections.abc import Callable, Hashable, Sequence
from typing import Any, NamedTuple, TypeVar

import jax
import numpy as np

from eggroll.engine import jax_compat
from eggroll.engine.annotations import Atom, Index, Jaxpr, JaxprEqn, PyTree, Var
from eggroll.engine.factored import Program, abstract, partition
from eggroll.engine.interpreter import Policy
from eggroll.ops.noise import DISTRIBUTIONS
from eggroll.strategy.evaluate.planning import Member, abstract_key
from eggroll.strategy.evaluate.tracing import Rows
from eggroll.strategy.noise.sampler import Sampler
from eggroll.strategy.plan.leaves import Plan
from eggroll.strategy.population import Population

OTHER, WEIGHT, OWN = range(3)  # shared data, parameters that members share, what differs between members


class Need(NamedTuple):
    """What one member more costs.

    Attributes:
        bytes: that the largest operation reads and writes, what all members share left out.
        flops: multiplications of the largest product of a member's own rows with a matrix that all share; 0: none.
        rows: how many rows a member brings to that product.
        columns: of each matrix that such products are with.
        loops: whether a member's own values go through a loop.
    """

    bytes: int = 0
    flops: int = 0
    rows: int = 0
    columns: frozenset[int] = frozenset()
    loops: bool = False

    def join(self, other: Need) -> Need:
        """The larger of both, operation by operation."""
        flops, rows = max((self.flops, self.rows), (other.flops, other.rows))
        columns, loops = self.columns | other.columns, self.loops or other.loops
        return Need(max(self.bytes, other.bytes), flops, rows, columns, loops)


def member_need(sampler: Sampler, program: Program, params: PyTree, rows: Rows) -> Need:
    """What one member more costs while it is evaluated.

    Base weights, whatever is made of them alone, and base products on shared inputs are the same for every member; a
    parameter that falls back to its dense form is not.

    Args:
        sampler: draws the members' noise.
        program: the traced function of one member.
        params: the parameters, or their shapes.
        rows: the other arguments.

    Returns:
        Zeros for a function that no member's noise reaches.
    """
    words = jax.ShapeDtypeStruct((1, sampler.streams.words), np.uint32)
    noise = jax.eval_shape(sampler.draw_one, words)
    arrays, merge, _ = partition(rows.abstract())
    leaves, tree = jax.tree.flatten(params)

    def member(noise: Any, unit: Index, index: Index, arrays: list[Any], leaves: list[Any], key: jax.Array) -> PyTree:
        # sigma is a plain number here: its value has no part in the shapes.
        who = Member(noise, key, unit, index, 1.0)
        return who.evaluate(program, sampler, Policy("allow"), tree.unflatten(leaves), merge(arrays))

    zero = np.int32(0)
    traced = jax.make_jaxpr(member)(noise, zero, zero, arrays, [abstract(leaf) for leaf in leaves], abstract_key())
    own = [OWN] * (len(jax.tree.leaves(noise)) + 2) + [OTHER if axis is None else OWN for axis in rows.axes]
    return largest_operations(traced, [*own, *[WEIGHT] * len(leaves), OTHER])


def largest_operations(jaxpr: Jaxpr, kinds: Sequence[int]) -> Need:
    """The largest operation and the largest shared product on a member's own values.

    Args:
        jaxpr: open or closed.
        kinds: for each input `OWN` if it differs between members, `WEIGHT` for parameters, else `OTHER`.

    Returns:
        What they need for one member.
    """
    return _walk(jaxpr, kinds)[0]


def _walk(jaxpr: Jaxpr, kinds: Sequence[int]) -> tuple[Need, list[int]]:
    """(the largest operations, the kind of each output): what is made of several kinds is of the highest."""
    jaxpr, _ = jax_compat.open_jaxpr(jaxpr)
    known = dict(zip(jaxpr.invars, kinds, strict=True))
    largest = Need()
    for eqn in jaxpr.eqns:
        kind = max((_kind(v, known) for v in eqn.invars), default=OTHER)
        known.update(dict.fromkeys(eqn.outvars, kind))
        if kind < OWN:
            continue
        size = sum(_bytes(v.aval) for v in {v for v in eqn.invars if _kind(v, known) == OWN} | {*eqn.outvars})
        largest = largest.join(Need(size)).join(_shared_product(eqn, known))
        for inner in jax_compat.inner_jaxprs(eqn):
            largest = largest.join(_walk_inner(eqn, inner, known))
    return largest, [_kind(v, known) for v in jaxpr.outvars]


def _kind(v: Atom, known: dict[Var, int]) -> int:
    return OTHER if isinstance(v, jax_compat.Literal) else known.get(v, OTHER)


def _shared_product(eqn: Any, known: dict[Var, int]) -> Need:
    """A product of the member's own rows with a weight that all members share."""
    kinds = [_kind(v, known) for v in eqn.invars]
    if eqn.primitive.name != "dot_general" or sorted(kinds) != [WEIGHT, OWN]:
        return Need()
    contract, batch = eqn.params["dimension_numbers"]
    side = kinds.index(WEIGHT)
    shape = eqn.invars[side].aval.shape
    summed = math.prod(shape[a] for a in contract[side])
    columns = math.prod(n for a, n in enumerate(shape) if a not in (*contract[side], *batch[side]))
    numbers = math.prod(eqn.outvars[0].aval.shape)
    return Need(0, numbers * summed, numbers // max(columns, 1), frozenset((columns,)))


def _walk_inner(eqn: JaxprEqn, jaxpr: Jaxpr, known: dict[Var, int]) -> Need:
    """The largest operation inside a call, a branch or a step of a loop."""
    inputs = jax_compat.open_jaxpr(jaxpr)[0].invars
    # Predicates, and constants of a loop's condition, come first and are no inputs of this jaxpr.
    kinds = [_kind(v, known) for v in eqn.invars[max(len(eqn.invars) - len(inputs), 0) :]]
    kinds = kinds if len(kinds) == len(inputs) else [OWN] * len(inputs)
    need, outs = _walk(jaxpr, kinds)
    loop = eqn.primitive.name in ("scan", "while")
    if loop and len(outs) >= len(eqn.outvars):  # a body, not a condition
        scan = eqn.primitive.name == "scan"
        first, count = jax_compat.scan_counts(eqn.params) if scan else (len(kinds) - len(outs), len(outs))
        carried = [outs[i - first] if first <= i < first + count else OTHER for i in range(len(kinds))]
        # What one step makes of a carry is what the next one gets.
        need, _ = _walk(jaxpr, [max(a, b) for a, b in zip(kinds, carried, strict=True)])
    return need.join(Need(loops=loop))


def _bytes(aval: Any) -> int:
    itemsize = getattr(getattr(aval, "dtype", None), "itemsize", 0)
    return int(np.prod(getattr(aval, "shape", ()), dtype=np.int64)) * itemsize


CPU_WORKING_SET = 8 << 20  # bytes: what an operation reads and writes for a chunk stays in the caches
ENOUGH_ROWS = 1024  # in a product with a shared matrix: with fewer, reading the matrix takes longer than multiplying
CPU_SHARE = 1 / 16  # of the machine's memory, that a chunk may take for the sake of enough rows
FEW_ROWS, FEW_BYTES = 4 * ENOUGH_ROWS, 8 * CPU_WORKING_SET  # a population this small is not worth a loop over chunks
ACCELERATOR_SHARE = 0.25  # of the memory that the device reports
ACCELERATOR_WORKING_SET = 1 << 30  # bytes, where the device does not tell its memory


Kept = TypeVar("Kept")
_CHOSEN: OrderedDict[Hashable, Any] = OrderedDict()
REMEMBERED = 256  # choices


def remembered(key: Hashable, choose: Callable[[], Kept]) -> Kept:
    """What was chosen or found earlier in this process for the same key; else `choose()`, kept."""
    if key not in _CHOSEN:
        _CHOSEN[key] = choose()
        if len(_CHOSEN) > REMEMBERED:
            _CHOSEN.popitem(last=False)
    _CHOSEN.move_to_end(key)
    return _CHOSEN[key]


def auto_units(need: int, units: int, rows: int = 0, *, few_bytes: int = FEW_BYTES) -> int:
    """Units (pairs, or single members) in a chunk under `chunk="auto"`: as many as fit the working set.

    On a CPU the working set is a cache's size, but more where so few members bring few rows to the products with shared
    matrices, which every chunk reads again (one row each: a decoder). All units are one chunk where they make no more
    than `FEW_ROWS` and `few_bytes`: a loop that puts outputs together would take longer. On an accelerator it is a
    share of its memory. A near divisor of the population is preferred: no smaller last chunk has to be compiled.

    Args:
        need: bytes of one unit: what its largest operation reads and writes, and its noise.
        units: units in all.
        rows: of one unit in the largest product with a matrix that all members share. Default 0: there is none.
        few_bytes: of a population that is one chunk.

    Returns:
        Between 1 and `units`.
    """
    fitting = _budget() // max(need, 1)
    if rows and jax.default_backend() == "cpu":
        if units * rows <= FEW_ROWS and units * need <= few_bytes:
            return units
        fitting = max(fitting, min(-(-ENOUGH_ROWS // rows), int(_host_memory() * CPU_SHARE) // max(need, 1)))
    return near_divisor(units, max(1, min(units, fitting)))


def keep_words(need: int) -> bool:
    """Whether all random words of a generation are kept from its evaluation to its update."""
    return need <= 4 * _budget()


def units_per_update(plan: Plan, units: int) -> int:
    """Units whose noise is summed at once in the estimator: on a CPU as much noise as there are sums to add it to."""
    budget = _budget()
    if jax.default_backend() == "cpu":
        sums = 4 * sum(math.prod(leaf.shape) for leaf in plan.leaves)
        budget = min(max(budget, 2 * sums), 4 * budget)
    return near_divisor(units, max(1, min(units, budget // max(4 * plan.numbers, 1))))


def near_divisor(n: int, limit: int) -> int:
    """The largest divisor of `n` in the upper half of what the limit allows; else the limit."""
    for d in range(limit, max(limit // 2, 0), -1):
        if n % d == 0:
            return d
    return limit


def _host_memory() -> int:
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, ValueError, OSError):  # not on every system
        return 4 << 30


def _budget() -> int:
    if jax.default_backend() == "cpu":
        return CPU_WORKING_SET
    stats = jax.local_devices()[0].memory_stats() or {}
    limit = stats.get("bytes_limit")
    return int(limit * ACCELERATOR_SHARE) if limit else ACCELERATOR_WORKING_SET


LARGE = 1 << 16  # multiplications of a row; in smaller products, copies of the noise cost more than they save


class Arrangement(NamedTuple):
    """How members are evaluated.

    Attributes:
        units: how many at once on a device.
        copies: whether each member has its unit's noise to itself, as bytes.
    """

    units: int
    copies: bool = False


def may_copy(population: Population, sampler: Sampler) -> bool:
    """Whether noise of a member's own can pay at all; what an epilogue cannot take would be widened in memory."""
    leaves = sampler.plan.leaves
    return (
        jax.default_backend() == "cpu"
        and jax_compat.CORRECTIONS_ARE_FREE
        and DISTRIBUTIONS[population.distribution].integers  # bytes
        and all(leaf.rank == 1 for leaf in leaves if leaf.kind == "low_rank")
        and not any(sampler.seeded(leaf) or leaf.is_complex for leaf in leaves)
        and not sampler.plan.sites
    )


def arrange(population: Population, sampler: Sampler, need: Need, units: int) -> Arrangement:
    """The arrangement of a function that needs so much for a member, for `units` units on each device.

    Each member gets a copy of its noise where that pays (see `jax_compat.CORRECTIONS_ARE_FREE`) and it has a single row
    (with more, sharing saves more), outside of loops (each turn would read the copies).

    Args:
        population: who the members are.
        sampler: draws their noise.
        need: of one member.
        units: in all, on a device.
    """
    one_row = need.rows == 1 and need.flops >= LARGE and not need.loops
    if one_row and may_copy(population, sampler):
        arranged = Arrangement(_at_once(population, sampler, need, units, copies=True), copies=True)
        if not _square(arranged.units, units, population.signs, need):
            return arranged
    return Arrangement(_at_once(population, sampler, need, units, copies=False))


def _at_once(population: Population, sampler: Sampler, need: Need, units: int, *, copies: bool) -> int:
    """Units in a chunk."""
    signs = population.signs
    if population.chunk != "auto":
        return min(units, -(-int(population.chunk) // signs))
    size = signs * need.bytes + (signs if copies else 4) * sampler.plan.numbers
    # In an epilogue intermediate results are never stored.
    return auto_units(size, units, signs * need.rows, few_bytes=FEW_BYTES * (2 if copies else 1))


def _square(at_once: int, units: int, signs: int, need: Need) -> bool:
    """Whether a chunk, or the rest, is as many members as a product has columns: its epilogue takes twice as long."""
    return bool(need.columns & {at_once * signs, units % at_once * signs})
