"""How many members write how many answers at once, so that caches, logits and noise fit in memory."""

from __future__ import annotations

import math
import os
import sys
from dataclasses import dataclass
from pathlib import Path

import jax

from eggroll.llm.answers.decoding import Decoding
from eggroll.llm.model.config import DecoderConfig
from eggroll.llm.model.decoder import empty_cache
from eggroll.strategy.evaluate.chunking import ENOUGH_ROWS, near_divisor
from eggroll.training.errors import RunError

__all__ = ["Fit", "Need", "answer_need", "available", "fit", "in_words"]

ACCELERATOR_SHARE = 0.8  # of what is free on the device
CGROUP = Path("/sys/fs/cgroup")
HOST_SHARE = 0.4  # of what is free on the machine, which others use too


@dataclass(frozen=True)
class Need:
    """Bytes that generation takes, beside the parameters.

    Attributes:
        cache: of one answer: keys and values of all layers, for the prompt and the answer.
        logits: of one answer: of one token, with what drawing makes of them.
        activations: of one answer: what is largest in a layer, while the prompt is read or a token is written.
        noise: of one member; of full rank, its perturbed copy.
    """

    cache: int
    logits: int
    activations: int
    noise: int = 0

    @property
    def answer(self) -> int:
        """Of one answer; where half of the rows go on by themselves, their caches are there twice for a moment."""
        return self.cache + max(self.logits, self.activations, self.cache // 2)

    def total(self, members: int, prompts: int) -> int:
        """Of `members` that write `prompts` answers each."""
        return members * (self.noise + prompts * self.answer)

    def __str__(self) -> str:
        parts = ", ".join(f"{name} {in_words(getattr(self, name))}" for name in ("cache", "logits", "activations"))
        return f"an answer takes {parts}; a member {in_words(self.noise)} besides"


@dataclass(frozen=True)
class Fit:
    """What is done at once.

    Attributes:
        members: at once on a device: what `ES(chunk=...)` and `members.apply(..., chunk=...)` take.
        prompts: of a member, in one call.
        bytes: that this takes.
        alone: answers, each with its member's noise to itself, that take no more.
    """

    members: int
    prompts: int
    bytes: int
    alone: int = 0


def answer_need(config: DecoderConfig, decoding: Decoding, time: int, *, itemsize: int = 4, noise: int = 0) -> Need:
    """What one answer takes, from the sizes alone.

    Args:
        config: of the decoder.
        decoding: how long answers are, and how tokens are chosen.
        time: columns of the prompts, pads included.
        itemsize: bytes of a weight. Default 4: float32.
        noise: bytes of one member's noise. Default 0: no members.

    Returns:
        Bytes; those of the compiled program lie near them (a test compares).
    """
    if jax.default_backend() == "cpu":
        itemsize = max(itemsize, 4)  # half precision is computed in float32, of which copies are kept
    length = time + decoding.max_tokens - 1
    shared = config.key_value_heads * config.head_width
    cache = sum(part.size for part in jax.eval_shape(lambda: empty_cache(config, 1, length))) * itemsize
    drawing = 0 if decoding.temperature == 0 else 1 + (decoding.top_k is not None) + 2 * (decoding.top_p is not None)
    logits = (2 + drawing) * config.vocabulary * 4

    def layer(rows: int, seen: int) -> int:
        """The larger of attention and MLP for `rows` tokens that look at `seen` columns."""
        stream = 2 * rows * config.width * itemsize
        heads = config.heads * config.head_width
        attention = (3 * rows * heads + 2 * seen * shared) * itemsize + 2 * config.heads * rows * seen * 4
        wide = 5 if noise else 3  # gate, up and their product; with members what noise adds to the first two
        return stream + max(attention, rows * mlp(wide) * itemsize)

    def mlp(wide: int) -> int:
        """What a token takes inside."""
        experts = config.experts
        if experts is None:
            return wide * config.hidden
        # A CPU multiplies by every expert's matrix, the rows of the others being 0.
        copies = experts.count if jax.default_backend() == "cpu" else 1
        return experts.chosen * (wide * config.hidden + (1 + copies) * max(config.width, config.hidden))

    return Need(cache, logits, max(layer(time, time), layer(1, length)), noise)


def fit(
    need: Need, *, members: int, prompts: int, budget: float | None = None, unit: int = 2, chunk: int | None = None
) -> Fit:
    """The most that is done at once within a budget; equal parts where not everything is.

    A member's prompts stay together as far as they can, as they share its noise. On a CPU no more answers are written
    at once than fill a matrix product: more would not be faster.

    Args:
        need: of one answer and member.
        members: on a device.
        prompts: of a member.
        budget: bytes. Default None: `available()`.
        unit: members that stay together: 2 (default), an antithetic pair; or 1.
        chunk: members at once, if that is decided already. Default None: chosen.

    Returns:
        What to do at once.

    Raises:
        RunError: not even one unit with one prompt fits, or `chunk` members do not; it says what would.
    """
    budget = available() if budget is None else budget
    unit = min(unit, members)
    chunk = None if chunk is None else -(-chunk // unit) * unit  # pairs are evaluated whole
    least = chunk or unit
    most = int((budget / least - need.noise) // need.answer)  # prompts
    if most < 1:
        raise _too_little(need, least, unit, budget, chunk)
    size = -(-prompts // -(-prompts // min(most, prompts)))  # equal parts
    if chunk is not None:
        return _fitted(need, min(chunk, members), size, unit)
    at_once = int(budget // need.total(1, size))
    if jax.default_backend() == "cpu":
        at_once = min(at_once, max(unit, ENOUGH_ROWS // size))
    at_once = near_divisor(members // unit, max(1, min(members, at_once) // unit)) * unit
    return _fitted(need, at_once, size, unit)


def _fitted(need: Need, members: int, prompts: int, unit: int) -> Fit:
    total = need.total(members, prompts)
    return Fit(members, prompts, total, total // (unit * need.noise + need.answer))


def _too_little(need: Need, least: int, unit: int, budget: float, chunk: int | None) -> RunError:
    what = f"{least} member{'s' * (least > 1)} with one prompt each need {in_words(need.total(least, 1))}"
    fitting = int(budget // need.total(1, 1)) // unit * unit
    advice = f"chunk={fitting} would fit. " if chunk is not None and fitting else ""
    return RunError(
        f"{what} ({need}), beside the model; {in_words(budget)} may be used. {advice}Otherwise allow more memory, "
        "write fewer tokens, shorten the prompts, or use bfloat16 weights."
    )


def available() -> float:
    """Bytes that generation may take by default: a share of what is free on the device, on a CPU of the machine's."""
    stats = jax.local_devices()[0].memory_stats() or {}
    if "bytes_limit" in stats:
        return ACCELERATOR_SHARE * (stats["bytes_limit"] - stats.get("bytes_in_use", 0))
    return HOST_SHARE * _free_on_host()


def _free_on_host() -> int:
    """What the system says it could give, within a container's limit; 4 GB where it says nothing."""
    return min(_free_on_machine(), _free_in_container())


def _free_in_container() -> int:
    """What control groups (version 2) leave; no bound where there are none."""
    try:
        limit, used = ((CGROUP / name).read_text().strip() for name in ("memory.max", "memory.current"))
        return sys.maxsize if limit == "max" else max(int(limit) - int(used), 0)
    except (OSError, ValueError):
        return sys.maxsize


def _free_on_machine() -> int:
    try:
        lines = dict(line.split(":", 1) for line in Path("/proc/meminfo").read_text().splitlines())
        return int(lines["MemAvailable"].split()[0]) * 1024
    except (OSError, KeyError, ValueError):
        pass
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 2
    except (AttributeError, ValueError, OSError):
        return 4 << 30


def in_words(size: float) -> str:
    """Bytes for people.

    Example:
        >>> in_words(3_210_000_000), in_words(45_600)
        ('3.21 GB', '45.6 kB')
    """
    power = min(max(int(math.log10(max(size, 1)) // 3), 0), 4)
    return f"{size / 1000**power:.3g} {('B', 'kB', 'MB', 'GB', 'TB')[power]}"
