"""Every dataset of the `reasoning_gym` package as a task, with its own verifier."""

from __future__ import annotations

import contextlib
import decimal
import difflib
import hashlib
import importlib
import io
import warnings
from collections.abc import Iterator
from typing import Any

import numpy as np

from eggroll.extras import needed_for
from eggroll.llm.tasks.base import Degenerate, Problem, Split, Task, checked, is_degenerate, split_of, too_few
from eggroll.llm.tasks.options import check_common
from eggroll.training.errors import RunError

TAGGED = (
    "Think the problem through, then write your final answer, in the form that the problem asks for and with nothing "
    "else, between <answer> and </answer>."
)
PLAIN = "Write the answer in the form that the problem asks for, and nothing else."
RIGHT = 0.99  # the score from which on an answer is wholly right
HALF = 2  # of all questions are for tests: some datasets take a second for each question that is thrown away
LARGEST = 10_000  # questions of a dataset object: some are made when it is


class ReasoningGym(Task):
    """A dataset of `reasoning_gym`, by name: about a hundred generators of problems, each with its own verifier.

    The reward is what the dataset's `score_answer` says: mostly 1 for a right answer and 0 or 0.01 for a wrong one; 0
    where it raises, as some do for answers that they cannot parse. An answer without the tags that were asked for
    scores 0, whatever it says; of several, the last counts. So does an empty one, one that was cut off, and one that
    repeats itself and is not wholly right. Half of all questions are for tests, by the hash of the
    question: no question is in both, whatever the seeds.

    Args:
        dataset: its name in `reasoning_gym`, such as "chain_sum".
        tags: whether the system message asks for `<answer>…</answer>` around the answer, and only that is scored; else
            the whole text is. Default True.
        system: the system message. Default: one that says how to answer.
        max_tokens: tokens that an answer may have. Default 256.
        degenerate: what an answer gets that says nothing, as `Task.degenerate` has it. Default "worst"; "scored": what
            the dataset says.
        **config: of the dataset, for example `max_terms=3`; see its own documentation.

    Raises:
        RunError: the package is missing, there is no such dataset, or it does not take these options.
        ValueError: `tags`, `system` or `max_tokens` that is none.

    Example:
        >>> task = ReasoningGym("chain_sum", max_terms=2)  # doctest: +SKIP
        >>> problem = task.problems("train", 1, seed=0)[0]  # doctest: +SKIP
        >>> task.reward(f"<answer>{problem.data['answer']}</answer>", problem)  # doctest: +SKIP
        1.0

    References:
        Stojanovski et al., Reasoning Gym: Reasoning Environments for Reinforcement Learning with Verifiable Rewards,
        arXiv 2505.24760.
    """

    worst = 0.0

    def __init__(
        self,
        dataset: str,
        /,
        *,
        tags: bool = True,
        system: str | None = None,
        max_tokens: int = 256,
        degenerate: Degenerate = "worst",
        **config: Any,
    ) -> None:
        check_common(system, max_tokens, degenerate)
        if not isinstance(tags, bool):
            raise ValueError(f"got tags={tags!r}; true or false is required.")
        self.name, self.max_tokens, self.degenerate = f"reasoning_gym:{dataset}", max_tokens, degenerate
        self.system = (TAGGED if tags else PLAIN) if system is None else system
        self._dataset, self._tags, self._config = dataset, tags, config
        names = _package("factory").DATASETS
        if dataset not in names:
            near = difflib.get_close_matches(dataset, names, 3, 0.5) or sorted(names)[:3]
            raise RunError(
                f"reasoning_gym has no dataset {dataset!r}; near it are {', '.join(near)}, of {len(names)} in all."
            )
        unknown = {"seed", "size", "dataset", "name"} & set(config)
        if unknown:
            raise RunError(f"got the option {min(unknown)!r}, which the task chooses itself; leave it out.")
        self._verifier = self._made(seed=0, size=1)  # wrong options are found here

    def problems(self, split: Split, count: int, seed: int) -> list[Problem]:
        """Draws `count` different questions."""
        found: dict[str, Problem] = {}
        chunk = 0
        while len(found) < count:
            before = len(found)
            for entry in self._entries(f"{self._dataset} {checked(split)} {seed} {chunk}", 4 * count + 8):
                question = entry["question"]
                if question not in found and split_of(question, HALF) == split:
                    found[question] = Problem(question, entry)
                if len(found) >= count:
                    break
            if len(found) == before:
                raise too_few(self.name, split, before, count, list(found.values()))
            chunk += 1
        return list(found.values())

    def reward(self, text: str, problem: Problem) -> float:
        """What the dataset's own verifier says of the answer."""
        answer = _tagged(text) if self._tags else text.strip()
        strict = self.degenerate == "worst"
        if answer is None or (strict and not answer):
            return 0.0
        try:
            with _apart():
                score = float(self._verifier.score_answer(answer, problem.data))
            return 0.0 if strict and score < RIGHT and is_degenerate(text) else score
        except ImportError:
            raise
        except Exception:  # a few verifiers raise where an answer cannot be parsed
            return 0.0

    def __reduce__(self) -> tuple:
        """The verifier is made again where the task arrives, then and not within the time of the first answer."""
        options = {"tags": self._tags, "system": self.system, "max_tokens": self.max_tokens, **self._config}
        options["degenerate"] = self.degenerate
        return _rebuilt, (self._dataset, options)

    def _entries(self, words: str, size: int) -> Iterator[dict[str, Any]]:
        """Questions from a dataset object whose seed these words are."""
        number = int.from_bytes(hashlib.sha256(words.encode()).digest()[:4], "big") // 4  # some use it plus an index
        size = min(size, LARGEST)
        dataset = self._made(seed=number, size=size)
        for index in range(size):
            with _apart():
                try:
                    entry = dataset[index]
                except IndexError:  # a dataset with no more questions
                    return
            yield entry

    def _made(self, *, seed: int, size: int) -> Any:
        create = _package("factory").create_dataset
        try:
            with warnings.catch_warnings(), _apart():
                warnings.simplefilter("ignore", ResourceWarning)  # files that a dataset does not close
                return create(self._dataset, seed=seed, size=size, **self._config)
        except Exception as why:  # whatever a dataset raises for options it does not like
            options = f"with the options {self._config}" if self._config else "without options"
            raise RunError(
                f"reasoning_gym's {self._dataset!r} cannot be made {options}: {type(why).__name__}: {why}"
            ) from why


@contextlib.contextmanager
def _apart() -> Iterator[None]:
    """What datasets do to the process is undone: a few print, one sets all decimals' precision, one seeds NumPy."""
    state = np.random.get_state()
    try:
        with contextlib.redirect_stdout(io.StringIO()), decimal.localcontext(decimal.DefaultContext):
            yield
    finally:
        np.random.set_state(state)


def _rebuilt(dataset: str, options: dict[str, Any]) -> ReasoningGym:
    return ReasoningGym(dataset, **options)


def _tagged(text: str) -> str | None:
    """What stands in the last answer block; None if there is none."""
    before, end, _ = text.rpartition("</answer>")
    _, start, answer = before.rpartition("<answer>")
    return answer.strip() if end and start else None


@needed_for("tasks named reasoning_gym:…")
def _package(module: str) -> Any:
    importlib.import_module("reasoning_gym")  # registers the datasets
    return importlib.import_module(f"reasoning_gym.{module}")
