"""What an operation needs at least: floating-point operations, elementwise operations, and bytes moved once.

Counts are of the work that the result requires, not of what XLA happens to do; `LEGEND` says how.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise

from bench.tools.limits import HIGHEST, VECTOR, Limits
from eggroll.ops.noise import DISTRIBUTIONS

LEGEND = (
    "Every input is read once and every output written once; what is made on the way stays in registers or cache, and "
    "what members share is made once. Elementwise work on activations (bias, relu, fitness) is left out. N members, "
    "P = N/2 pairs, a layer from K inputs to M outputs, rank r, n random numbers, b bytes a number."
)

# A word is one threefry block: 20 rounds of add, rotate (two shifts and an or) and xor, five key injections of two
# adds, and the xor of its two halves. The counter's high word is zero: one add before the first round.
WORD_OPERATIONS = 20 * 5 + 5 * 2 + 1 + 1
# From bits to a number: shift, mask, sign bit. The normal's logarithm and polynomial: see eggroll.ops.normal.
NUMBER_OPERATIONS = {"rademacher": 3, "normal": 52}


@dataclass(frozen=True)
class Need:
    """The least that an operation has to do.

    Attributes:
        formula: the counts in words.
        work: name of a rate of `Limits` → operations at that rate.
        moved: bytes read and written.
    """

    formula: str
    work: Mapping[str, float] = field(default_factory=dict)
    moved: float = 0.0

    @property
    def flop(self) -> float:
        """Floating-point operations of matrix products."""
        return sum(amount for name, amount in self.work.items() if name != VECTOR)

    def seconds(self, limits: Limits) -> dict[str, float]:
        """Seconds that each limit asks for: matrix products, elementwise operations, memory."""
        matmul = sum(amount / limits.rates[name] for name, amount in self.work.items() if name != VECTOR)
        vector = self.work.get(VECTOR, 0.0) / limits.rates[VECTOR]
        return {"matmul": matmul, VECTOR: vector, "memory": self.moved / limits.bandwidth(self.moved)}


def product(rows: int, k: int, m: int, dtype: str) -> Need:
    """`x [N, K] · W [K, M]`."""
    moved = itemsize(dtype) * (rows * k + k * m + rows * m)
    return Need("2NKM FLOP; b(NK + KM + NM) bytes", {dtype: 2.0 * rows * k * m}, moved)


def forward(members: int, draws: int, k: int, m: int, rank: int, dtype: str) -> Need:
    """Member `i`: `xᵢ·W + (xᵢ·Aᵢ)·Bᵢᵀ`; `draws` of the factors are read."""
    base, own = product(members, k, m, dtype), correction(members, draws, k, m, rank, dtype)
    drawn = "N" if draws == members else "P"
    formula = f"2NKM + 2Nr(K + M) FLOP; b(NK + KM + NM + {drawn}r(K + M)) bytes"
    return Need(formula, {dtype: base.flop + own.flop}, base.moved + own.moved)


def forward_on_the_fly(members: int, units: int, k: int, m: int, rank: int, distribution: str, dtype: str) -> Need:
    """The same with factors of `units` drawn where they are needed: of them, memory holds a key of 8 bytes each."""
    base, own = product(members, k, m, dtype), correction(members, units, k, m, rank, dtype)
    numbers = units * rank * (k + m)
    formula = f"2NKM + 2Nr(K + M) FLOP; {drawn(distribution)}; b(NK + KM + NM) + 16U bytes"
    work = {dtype: base.flop + own.flop, VECTOR: numbers * operations_per_number(distribution)}
    return Need(formula, work, base.moved + 16 * units)


def rank_update_on_the_fly(units: int, k: int, m: int, rank: int, distribution: str, dtype: str) -> Need:
    """`Σ wᵤ·Aᵤ·Bᵤᵀ` of drawn factors; products of half precision noise may be of that dtype, sums are float32."""
    numbers = units * rank * (k + m)
    formula = f"2UrKM FLOP; {drawn(distribution)}; 20U + 4KM bytes"
    work = {HIGHEST if dtype == "float32" else dtype: 2.0 * units * rank * k * m}
    return Need(formula, work | {VECTOR: numbers * operations_per_number(distribution)}, 20.0 * units + 4.0 * k * m)


def drawn(distribution: str) -> str:
    """Operations on the numbers of all units' factors, in words."""
    return f"Ur(K + M)·({_of_a_number(distribution)}) operations"


def correction(members: int, draws: int, k: int, m: int, rank: int, dtype: str) -> Need:
    """What is new beside the base product: `x` and the output pass through its registers anyway."""
    formula = "2Nr(K + M) FLOP; bNr(K + M) bytes, the factors alone"
    return Need(formula, {dtype: 2.0 * members * rank * (k + m)}, itemsize(dtype) * draws * rank * (k + m))


def draw(numbers: int, distribution: str, dtype: str) -> Need:
    """`numbers` random numbers, written."""
    formula = f"n({_of_a_number(distribution)}) operations; bn bytes"
    return Need(formula, {VECTOR: numbers * operations_per_number(distribution)}, itemsize(dtype) * numbers)


def _of_a_number(distribution: str) -> str:
    return f"{WORD_OPERATIONS}·{DISTRIBUTIONS[distribution].bits}/32 + {NUMBER_OPERATIONS[distribution]}"


def operations_per_number(distribution: str) -> float:
    """Elementwise operations for one random number: its share of a word, and what makes a number of it."""
    return WORD_OPERATIONS * DISTRIBUTIONS[distribution].bits / 32 + NUMBER_OPERATIONS[distribution]


def rank_update(pairs: int, k: int, m: int, rank: int, dtype: str) -> Need:
    """`Σ wₚ·Aₚ·Bₚᵀ`, float32."""
    moved = itemsize(dtype) * pairs * rank * (k + m) + 4 * (pairs + k * m)
    return Need("2PrKM FLOP; bPr(K + M) + 4(P + KM) bytes", {HIGHEST: 2.0 * pairs * rank * k * m}, moved)


def summed(rows: int, k: int, m: int, dtype: str) -> Need:
    """`a [N, K] · b [K, M]` that keeps all of float32, with a float32 result."""
    work = {HIGHEST if dtype == "float32" else dtype: 2.0 * rows * k * m}
    return Need("2NKM FLOP; b(NK + KM) + 4NM bytes", work, itemsize(dtype) * (rows * k + k * m) + 4.0 * rows * m)


def step(members: int, k: int, m: int, rank: int, distribution: str, dtype: str, *, given: bool = False) -> Need:
    """A generation of one layer: noise and outputs need not reach memory; factors that are `given` are read."""
    pairs = members // 2
    evaluated = forward(members, pairs, k, m, rank, dtype).flop
    update = rank_update(pairs, k, m, rank, dtype).flop
    numbers = pairs * rank * (k + m)
    work = {dtype: evaluated, HIGHEST: update}
    moved = itemsize(dtype) * members * k + weight_bytes(dtype) * k * m
    flop, weights = "2NKM + 2Nr(K + M) + 2PrKM FLOP", "x read, weights read and written"
    if given:
        return Need(f"{flop}; factors and {weights}", work, moved + itemsize(dtype) * numbers)
    work[VECTOR] = numbers * operations_per_number(distribution)
    return Need(f"{flop}; noise drawn once; {weights}", work, moved)


def mlp_step(sizes: Sequence[int], rows: int, members: int, rank: int, distribution: str) -> Need:
    """A generation of a float32 MLP with biases; members share the `rows` rows, so the first base product, too."""
    pairs, layers = members // 2, list(pairwise(sizes))
    (first_k, first_m), *later = layers
    flop = 2.0 * rows * first_k * first_m  # once
    flop += 2.0 * rows * rank * (pairs * first_k + members * first_m)  # x·A once for a pair
    flop += sum(2.0 * rows * members * (k * m + rank * (k + m)) for k, m in later)
    update = sum(2.0 * pairs * (rank * k * m + m) for k, m in layers)
    numbers = pairs * sum(rank * (k + m) + m for k, m in layers)
    work = {"float32": flop, HIGHEST: update, VECTOR: numbers * operations_per_number(distribution)}
    moved = 4.0 * (rows * sizes[0] + 2 * sum((k + 1) * m for k, m in layers))
    formula = "per layer as the step, rows times members; first base product once, first x·A once for a pair"
    return Need(formula, work, moved)


def weight_bytes(dtype: str) -> int:
    """Bytes read and written of one weight in a step: a narrow one has a float32 copy, which is read and written."""
    return 2 * itemsize(dtype) if dtype == "float32" else 2 * itemsize(dtype) + 8


def itemsize(dtype: str) -> int:
    """Bytes of a number."""
    return {"float32": 4, "bfloat16": 2}[dtype]
