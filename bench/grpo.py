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
from itertools import count
from typing import Any, Literal

import jax
import numpy as np
import tyro

from bench.tools.grpo_loss import Objective
from bench.tools.grpo_training import Grpo, Recipe
from bench.tools.options import Common
from bench.tools.report import Report
from bench.tools.tiny_language import tiny_language
from eggroll.llm.answers.decoding import generator, split
from eggroll.llm.finetuning.answering import decoding_of, marker_of, open_model
from eggroll.llm.finetuning.asked import Asked
from eggroll.llm.finetuning.evaluation import Evaluator
from eggroll.llm.finetuning.job import HELD_OUT
from eggroll.llm.finetuning.questions import Questions, chosen, questions, task_of
from eggroll.llm.model.loading import LanguageModel
from eggroll.llm.rewards.scoring import Scorers
from eggroll.llm.tasks import Task


@dataclass(frozen=True)
class Options(Common):
    """Options of bench.grpo.

    Attributes:
        model: Hugging Face folder, hub id or GGUF file; a quick run makes a tiny random one.
        task: name of a task, such as `conciseness`.
        task_options: of the task, each `name=value`, as in `eggroll finetune`.
        system: system message; default: the task's.
        max_tokens: of an answer; default: the task's.
        degenerate: what an answer gets that says nothing; default: what its scoring says, as in the paper.
        tokens: generated in training, stop tokens included, after which a run ends.
        prompts: in a round.
        answers: drawn for each prompt.
        pool: training prompts to take turns with; default: as many as the task has, up to 1024.
        held_out: prompts that are evaluated; default: as many as the task has, up to 64.
        every: rounds between two evaluations.
        seeds: runs.
        first_seed: of the first run; decides prompts and draws.
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
    task_options: tuple[str, ...] = ()
    system: str | None = None
    max_tokens: int | None = None
    degenerate: Literal["worst", "scored"] = "scored"
    tokens: int = 200_000
    prompts: int = 8
    answers: int = 8
    pool: int | None = None
    held_out: int | None = None
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
    def asked(self) -> Asked:
        """What `eggroll finetune` calls it."""
        names = "model", "task", "task_options", "system", "max_tokens", "degenerate", "workers"
        return Asked(**{name: getattr(self, name) for name in names}, dtype="float32")

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
    language = open_model(options.asked) if options.model else tiny_language()
    curves = [run(language, options, options.first_seed + i, print) for i in range(options.seeds)]
    report = Report("grpo", options, [row(curve) for curve in curves], notes=NOTES, summary=summary(curves))
    report.series = curves
    report.finish(quick=options.quick, out=options.out)


def run(language: LanguageModel, options: Options, seed: int, say: Callable[[str], None]) -> dict[str, Any]:
    """A curve of points, from a run with one seed: prompts as `eggroll finetune --seed` has them."""
    task = task_of(options.asked)
    train, test = drawn(language, task, options, seed)
    graphdef, params = split(language.model)
    greedy = decoding_of(options.asked, task, language, greedy=True)
    grpo = Grpo(graphdef, params, generator(graphdef, replace(greedy, temperature=1.0)), options.recipe)
    points, found = [], {}
    with Scorers(task.reward, workers=options.workers, worst=task.worst) as scorers:
        marker = marker_of(options.asked, task, language, scorers)
        evaluator = Evaluator(generator(graphdef, greedy), test, marker)
        start, spent = time.perf_counter(), 0.0
        for n in count():
            done = grpo.tokens >= options.tokens
            if n % options.every == 0 or done:
                before = time.perf_counter()
                now = evaluator(grpo.params)
                points.append({"round": n, "tokens": grpo.tokens, "seconds": before - start - spent, **found})
                points[-1] |= {
                    "held_out": now.reward,
                    "held_out_error": now.error,
                    "held_out_tokens": now.answers.tokens,
                }
                spent += time.perf_counter() - before
                say(f"seed {seed}: {points[-1]}")
            if done:
                break
            asked = train.take(chosen(len(train), options.prompts, n, seed))
            problems = [problem for problem in asked.problems for _ in range(options.answers)]
            key = jax.random.fold_in(jax.random.key(seed), n)
            found = grpo.step(*asked.prompts, lambda a, p=problems: marker.rewards(a, p).values, key)
    return {"seed": seed, "points": points}


def drawn(language: LanguageModel, task: Task, options: Options, seed: int) -> tuple[Questions, Questions]:
    """Questions to train and to test on."""
    train = questions(language, task, "train", options.pool, seed)
    if len(train) < options.prompts:
        raise SystemExit(f"got prompts={options.prompts}; there are {len(train)} to train on. Ask fewer.")
    return train, questions(language, task, "test", options.held_out, seed, most=HELD_OUT)


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
