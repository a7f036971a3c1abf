"""What a task is: prompts, and a scorer of the finished text."""

from __future__ import annotations

import hashlib
import random
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from eggroll.training.errors import RunError

Split = Literal["train", "test"]
SPLITS = ("train", "test")
Degenerate = Literal["worst", "scored"]
REPEATS, MANY = 3.5, 16  # of the same, the last perhaps in part; digits that are no number any more
HELD_OUT = 5  # one problem in so many is for tests
TRIES = 200  # draws for one new problem, before there are taken to be no more


class TooFewError(RunError):
    """A task has fewer problems than were asked for.

    Attributes:
        available: how many it has.
        found: them, where they were drawn to find out.
    """

    def __init__(self, message: str, available: int, found: Sequence[Problem] = ()) -> None:
        super().__init__(message)
        self.available, self.found = available, list(found)


@dataclass(frozen=True)
class Problem:
    """One question.

    Attributes:
        prompt: what the model is asked, as the user's message; of a conversation, all of it as text.
        data: what the scorer needs to know, for example the right answer. Picklable.
        messages: of a conversation, each a dict with "role" and "content", which the model is asked in place of the
            prompt. Default (): the prompt is all.
        of: the set that it is of, where there are several to test on. Default "".
    """

    prompt: str
    data: Any = None
    messages: tuple[Mapping[str, Any], ...] = ()
    of: str = ""


class Task(ABC):
    """Prompts and a reward. A class of one's own needs `problems` and `reward`.

    Attributes:
        name: for logs and folders.
        system: the system message of every prompt; None: the model's own default, if its chat template has one.
        max_tokens: tokens that an answer may have, unless the user says otherwise.
        worst: the least reward that there can be: that of an answer whose reward fails. None: unknown; the lowest
            reward of the other answers then.
        degenerate: what an answer gets that says nothing, as `is_degenerate` tells, or that was cut off at
            `max_tokens`: "worst", the least reward, or "scored", what is said of any other.
        said: what users are told of it before it is used, a line each: which files it read, and as what.
    """

    name: str
    system: str | None = None
    max_tokens: int = 64
    worst: float | None = None
    degenerate: Degenerate = "scored"
    said: tuple[str, ...] = ()

    @property
    def scored_by(self) -> Callable[..., Any]:
        """What scorers are given: `reward`, unless it has parts that they are to tell apart."""
        return self.reward

    @abstractmethod
    def problems(self, split: Split, count: int, seed: int) -> list[Problem]:
        """Draws problems, different from one another.

        Args:
            split: "train" or "test". No problem is in both, whatever the seeds.
            count: how many.
            seed: the same seed gives the same problems, on every machine.

        Returns:
            `count` problems.

        Raises:
            TooFewError: the task has fewer.
        """

    @abstractmethod
    def reward(self, text: str, problem: Problem) -> float:
        """How good an answer is, the more the better.

        Called in worker processes, to which the task travels by pickle: one whose class lies in a module by name, one
        of a script or notebook whole.

        Args:
            text: the answer, without the prompt and without special tokens.
            problem: the one that was asked.

        Returns:
            A finite number.
        """

    def size(self, split: Split) -> int | None:
        """How many different problems there are; None: no limit that matters."""
        return None


class Listed(Task):
    """A task with a list of problems of its own."""

    def __init__(self, train: list[Problem], test: list[Problem]) -> None:
        self._problems = {"train": train, "test": test}

    def size(self, split: Split) -> int:
        """How many problems there are."""
        return len(self._problems[checked(split)])

    def problems(self, split: Split, count: int, seed: int) -> list[Problem]:
        """Draws without replacement; all problems, in their order, where as many are asked for as there are.

        Of several sets as evenly as they allow.
        """
        available = self._problems[checked(split)]
        if count > len(available):
            raise too_few(self.name, split, len(available), count)
        if count == len(available):
            return list(available)
        sets: dict[str, list[Problem]] = {}
        for problem in available:
            sets.setdefault(problem.of, []).append(problem)
        found: list[Problem] = []
        for number, (name, each) in enumerate(sorted(sets.items(), key=lambda item: len(item[1]))):
            share = min(len(each), (count - len(found)) // (len(sets) - number))
            found += random.Random(f"{split} {seed}" + (f" {name}" if name else "")).sample(each, share)
        return found


class Generated(Task):
    """A task that makes up problems with `draw`; to which split one belongs is decided by its hash."""

    @abstractmethod
    def draw(self, rng: random.Random) -> Problem:
        """Makes up one problem; all that is random comes from `rng`."""

    def identity(self, problem: Problem) -> str:
        """Problems of the same identity count as the same. Default: the prompt."""
        return problem.prompt

    def problems(self, split: Split, count: int, seed: int) -> list[Problem]:
        """Draws until there are `count` different ones of the split."""
        rng = random.Random(f"{checked(split)} {seed}")
        found: dict[str, Problem] = {}
        while len(found) < count:
            for _ in range(TRIES):
                problem = self.draw(rng)
                identity = self.identity(problem)
                if identity not in found and split_of(identity) == split:
                    found[identity] = problem
                    break
            else:
                raise too_few(self.name, split, len(found), count, list(found.values()))
        return list(found.values())


def split_of(identity: str, held_out: int = HELD_OUT) -> Split:
    """The split to which a problem belongs: one in `held_out` is for tests, by its hash, so that no seed mixes them.

    Example:
        >>> from collections import Counter
        >>> Counter(split_of(f"{a} + {b} =") for a in range(100) for b in range(100))
        Counter({'train': 8003, 'test': 1997})
    """
    number = int.from_bytes(hashlib.sha256(identity.encode()).digest()[:8], "big")
    return "test" if number % held_out == 0 else "train"


def divided(problems: list[Problem]) -> tuple[list[Problem], list[Problem]]:
    """(train, test): one in five, at least one, by hash, is for tests; problems of the same prompt stay together."""
    prompts = sorted({problem.prompt for problem in problems}, key=lambda p: hashlib.sha256(p.encode()).digest())
    held_out = set(prompts[: max(1, len(prompts) // HELD_OUT)])
    train = [problem for problem in problems if problem.prompt not in held_out]
    return train, [problem for problem in problems if problem.prompt in held_out]


def is_degenerate(text: str) -> bool:
    r"""Whether an answer says nothing: it has no letter or digit, or half of it or more repeats itself to its end.

    Example:
        >>> [is_degenerate(text) for text in (" \n", "...", "no no no no", "It is 12 12 12 12 12")]
        [True, True, True, True]
        >>> [is_degenerate(text) for text in ("12", "No.", "100000", "2 + 2 + 2 = 6")]
        [False, False, False, False]
    """
    spaced = " ".join(text.casefold().split())
    end = max((i for i, letter in enumerate(spaced, 1) if letter.isalnum()), default=0)
    reverse = spaced[:end][::-1]
    # Knuth, Morris and Pratt: how much of the beginning of `reverse` each of its prefixes ends with, in linear time.
    borders = [0]
    for letter in reverse[1:]:
        border = borders[-1]
        while border and reverse[border] != letter:
            border = borders[border - 1]
        borders.append(border + (reverse[border] == letter))
    for length, border in enumerate(borders, 1):
        period = length - border
        again = border and 2 * length >= len(reverse) and length >= REPEATS * period
        if again and (length >= MANY or not reverse[:period].isdigit()):
            return True
    return not reverse


def checked(split: str) -> Split:
    """The name of a split, if it is one."""
    if split not in SPLITS:
        raise ValueError(f'got the split {split!r}; "train" or "test" is required.')
    return split  # pyright: ignore[reportReturnType]


def too_few(name: str, split: Split, available: int, wanted: int, found: Sequence[Problem] = ()) -> TooFewError:
    """The error of a task that has fewer problems than were asked for."""
    return TooFewError(
        f"the task {name!r} has {available} different problems to {split} on, and {wanted} were asked for; ask for at "
        f"most {available}, or choose a task with more.",
        available,
        found,
    )
