"""How much does GRPO, by backpropagation, learn from as many generated tokens as evolution has?

A language model, a task of `eggroll finetune`, and nothing of evolution: for each prompt a group of answers is drawn at
temperature 1 with the project's own generator, rewards become z-scores within the group, and AdamW follows the clipped
policy gradient (arXiv 2402.03300) through the float32 decoder. Against the tokens generated so far: mean reward of the
drawn answers, and of greedy answers to held-out prompts. Updates, and so the seconds that backpropagation takes, are no
part of the count. Curves are kept, one a seed.

Memory: weights, gradient, its sum and AdamW's two moments (20 bytes a weight), and the activations of a microbatch.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import jax
import numpy as np
import tyro

from bench.grpo_loss import Objective
from bench.grpo_training import Grpo, Recipe
from bench.options import Common
from bench.report import Report
from bench.tiny_language import tiny_language
from eggroll.llm.decoding import Decoding, generator, split
from eggroll.llm.loading import LanguageModel, load
from eggroll.llm.prompts import Prompts, answer_texts, encode
from eggroll.llm.scoring import Scorers
from eggroll.llm.tasks import Problem, Task, task_named


@dataclass(frozen=True)
class Options(Common):
    """Options of bench.grpo.

    Attributes:
        model: Hugging Face folder, hub id or GGUF file; a quick run makes a tiny random one.
        task: name of a task, such as `conciseness`.
        max_tokens: of an answer; default: the task's.
        tokens: generated in training, stop tokens included, after which a run ends.
        prompts: in a round.
        answers: drawn for each prompt.
        pool: training prompts to take turns with.
        held_out: prompts that are evaluated.
        every: rounds between two evaluations.
        seeds: runs.
        first_seed: of the first run; decides order and draws, not the held-out prompts.
        learning_rate: of AdamW.
        weight_decay: of AdamW.
        max_norm: of the gradient.
        clip: of the ratio.
        kl: weight of the divergence from the first model.
        epochs: updates with the same answers.
        microbatch: answers that are backpropagated through at once.
        workers: processes that score; default: one a core.
    """

    model: str = ""
    task: str = "arithmetic"
    max_tokens: int | None = None
    tokens: int = 200_000
    prompts: int = 8
    answers: int = 8
    pool: int = 256
    held_out: int = 128
    every: int = 5
    seeds: int = 1
    first_seed: int = 0
    learning_rate: float = 1e-5
    weight_decay: float = 0.0
    max_norm: float = 1.0
    clip: float = 0.2
    kl: float = 0.0
    epochs: int = 1
    microbatch: int = 8
    workers: int | None = None

    def reduced(self) -> Options:
        """Small enough to see in seconds that the script works."""
        sizes: dict[str, Any] = {"max_tokens": 4, "prompts": 2, "answers": 2, "microbatch": 4}
        return replace(self, **sizes, tokens=40, pool=4, held_out=4, every=2, workers=1)

    @property
    def recipe(self) -> Recipe:
        """Of these options."""
        names = "answers", "learning_rate", "weight_decay", "max_norm", "epochs", "microbatch"
        return Recipe(**{name: getattr(self, name) for name in names}, objective=Objective(self.clip, self.kl))


def main(argv: list[str] | None = None) -> None:
    options = tyro.cli(Options, args=argv, description=__doc__)
    options = options.reduced() if options.quick else options
    if not (options.model or options.quick):
        raise SystemExit("got no --model; a Hugging Face folder, a hub id or a GGUF file is required.")
    language = load(options.model, dtype="float32") if options.model else tiny_language()
    curves = [run(language, options, options.first_seed + i, print) for i in range(options.seeds)]
    report = Report("grpo", options, [row(curve) for curve in curves], notes=NOTES, summary=summary(curves))
    report.series = curves
    report.finish(quick=options.quick, out=options.out)


class Asker:
    """Prompts in, rewards out.

    Args:
        language: the model, of which tokenizer and special tokens are used.
        task: what is asked.
        scorers: open.
    """

    def __init__(self, language: LanguageModel, task: Task, scorers: Scorers) -> None:
        self._language, self._task, self._scorers = language, task, scorers

    def encoded(self, problems: list[Problem]) -> Prompts:
        """The problems' prompts, padded to one length."""
        language, most = self._language, self._task.max_tokens
        prompts, context = [p.prompt for p in problems], language.config.context
        return encode(
            language.tokenizer, prompts, system=self._task.system, context=context, max_tokens=most, pad=language.pad
        )

    def rewards(self, answers: Any, problems: list[Problem]) -> np.ndarray:
        """One a row of the answers."""
        texts = answer_texts(self._language.tokenizer, answers, stop=self._language.stop)
        return self._scorers.score(texts, problems).values


def run(language: LanguageModel, options: Options, seed: int, say: Callable[[str], None]) -> dict[str, Any]:
    """A curve of points, from a run with one seed."""
    task = task_named(options.task, **({} if options.max_tokens is None else {"max_tokens": options.max_tokens}))
    train = task.problems("train", options.pool, 0)
    graphdef, params = split(language.model)
    drawn = Decoding(task.max_tokens, temperature=1.0, stop=language.stop, pad=language.pad)
    grpo = Grpo(graphdef, params, generator(graphdef, drawn), options.recipe)
    points: list[dict[str, Any]] = []
    with Scorers(task.reward, workers=options.workers) as scorers:
        asker = Asker(language, task, scorers)
        held_out = Greedy(asker, task.problems("test", options.held_out, 0), graphdef, drawn)
        prompts, order = asker.encoded(train), np.random.default_rng(seed)
        start, spent, found = time.perf_counter(), 0.0, {}
        for round_number in range(1 << 30):
            done = grpo.tokens >= options.tokens
            if round_number % options.every == 0 or done:
                before = time.perf_counter()
                point = {"round": round_number, "tokens": grpo.tokens, "seconds": before - start - spent, **found}
                points.append(point | held_out(grpo.params))
                spent += time.perf_counter() - before
                say(f"seed {seed}: {points[-1]}")
            if done:
                return {"seed": seed, "points": points}
            chosen = order.choice(len(train), options.prompts, replace=False)
            asked = [train[i] for i in np.repeat(chosen, options.answers)]
            key = jax.random.fold_in(jax.random.key(seed), round_number)
            tokens, pads = prompts.tokens[chosen], prompts.start[chosen]
            found = grpo.step(tokens, pads, lambda answers, asked=asked: asker.rewards(answers, asked), key)
    raise AssertionError


class Greedy:
    """Evaluates parameters on the same problems every time: mean reward of greedy answers, with its standard error."""

    def __init__(self, asker: Asker, problems: list[Problem], graphdef: Any, decoding: Decoding) -> None:
        self._asker, self._problems, self._prompts = asker, problems, asker.encoded(problems)
        self._answer = jax.jit(generator(graphdef, replace(decoding, temperature=0.0)))

    def __call__(self, params: Any) -> dict[str, float]:
        """The mean reward and its standard error over the problems."""
        answers = jax.device_get(self._answer(params, *self._prompts))
        rewards = self._asker.rewards(answers, self._problems)
        error = float(rewards.std(ddof=1)) / math.sqrt(len(rewards))
        return {"held_out": float(rewards.mean()), "held_out_error": error}


def row(curve: dict[str, Any]) -> dict[str, Any]:
    """One run's line of the table."""
    first, last = curve["points"][0], curve["points"][-1]
    return {
        "seed": curve["seed"],
        "rounds": last["round"],
        "tokens": last["tokens"],
        "held_out_before": first["held_out"],
        "held_out_after": last["held_out"],
        "best_held_out": max(point["held_out"] for point in curve["points"]),
        "standard_error": last["held_out_error"],
        "drawn_reward": last.get("reward"),
        "seconds": last["seconds"],
    }


def summary(curves: list[dict[str, Any]]) -> dict[str, Any]:
    """Held-out reward before and after, mean over seeds with its standard error."""
    rows = [row(curve) for curve in curves]
    after = np.array([r["held_out_after"] for r in rows])
    error = float(after.std(ddof=1)) / math.sqrt(len(after)) if len(after) > 1 else None
    return {
        "held_out_before": float(np.mean([r["held_out_before"] for r in rows])),
        "held_out_after": float(after.mean()),
        "held_out_after_error_over_seeds": error,
        "tokens": float(np.mean([r["tokens"] for r in rows])),
        "seconds": float(np.mean([r["seconds"] for r in rows])),
    }


NOTES = [
    "held out: mean reward of greedy answers to prompts that are not trained on. Standard error: over these prompts. "
    "Drawn reward: mean of the last round's answers, at temperature 1.",
    "tokens: generated in training, stop tokens included; those of the evaluation are left out, and so are its "
    "seconds. Compilation is in the seconds.",
]

if __name__ == "__main__":
    main()
