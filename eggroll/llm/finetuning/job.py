"""Fine-tunes a language model by evolution: members answer prompts, a scorer rates the answers, weights move."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import jax

from eggroll.engine.annotations import PyTree
from eggroll.llm.answers.decoding import generator, split
from eggroll.llm.finetuning.answering import decoding_of, marker_of, open_model, scorers_of
from eggroll.llm.finetuning.evaluation import Evaluator, Measured
from eggroll.llm.finetuning.model_folders import FACTS, Delivered, adapting_of
from eggroll.llm.finetuning.questions import Questions, asking_of, chosen, questions, task_of
from eggroll.llm.finetuning.run_facts import digest_of, facts_of
from eggroll.llm.finetuning.samples import Completions, Samples
from eggroll.llm.finetuning.settings import FinetuneSettings
from eggroll.llm.finetuning.step import Answered, draw_key
from eggroll.llm.finetuning.strategy import ASKED, choose, strategy
from eggroll.llm.model.files import hub_place, push
from eggroll.llm.model.loading import LanguageModel
from eggroll.llm.rewards.scoring import Scorers
from eggroll.llm.tasks import Task
from eggroll.strategy.state import State
from eggroll.training import processes
from eggroll.training.curve import Drawn, draw_curve
from eggroll.training.errors import RunError
from eggroll.training.folder.disk import read_json
from eggroll.training.folder.files import write_text
from eggroll.training.folder.integrity import is_as_written
from eggroll.training.folder.layout import CURVE, EVALUATION, MODEL, check_kept, holds_run
from eggroll.training.folder.settings import check_options
from eggroll.training.loop import fit
from eggroll.training.metrics import Record, counted, not_counted, read_metrics
from eggroll.training.options import SettingsError
from eggroll.training.processes.deciding import first_decides
from eggroll.training.progress import Shown
from eggroll.training.stopping import EarlyStopping, Result
from eggroll.training.store import Saving

SHOWN = Shown(
    {"reward_mean": "reward {:.3f}", "reward_unperturbed": "without noise {:.3f}", "reward_best": "best {:.3f}"}
    | {"test_reward": "held-out {:.3f}"}
    | {"test_kl": "KL {:.3f}", "test_answer_tokens": "{:.0f} tokens an answer", "test_empty": "{:.0%} empty"},
    speed="tokens_per_second",
    unit="tokens",
)
HELD_OUT = 64  # prompts, unless the user says otherwise


@dataclass(frozen=True)
class Outcome:
    """What a run came to.

    Attributes:
        settings: of the run.
        before: how the model did on held-out prompts.
        after: how the model does that the run leaves.
        generations: updates made.
        resumed: the generation that the run went on from; 0 for one from the start.
        tokens: generated in all generations, evaluations left out; never more than the budget that was asked for.
        seconds: wall time of all generations, compilation included.
        ended: as in `eggroll.training.Result`.
        samples: lines of `samples.jsonl`.
        failed: answers in training that could not be scored.
        delivered: the generation of the model that the run leaves.
    """

    settings: FinetuneSettings
    before: Mapping[str, Any]
    after: Mapping[str, Any]
    generations: int
    resumed: int
    tokens: int
    seconds: float
    ended: str
    samples: list[dict[str, Any]]
    failed: int = 0
    delivered: int | None = None


def finetune(
    settings: FinetuneSettings,
    *,
    show: Callable[[Record], None] = lambda record: None,
    asked_to_stop: Callable[[], bool] | None = None,
    tell: Callable[[str], None] = lambda line: None,
) -> Outcome:
    """Fine-tunes a model and writes the run folder, with the new model in its folder `model`.

    Args:
        settings: from `eggroll.llm.finetuning.settings.settings_for`.
        show: called with every line of the metrics, and first with the generation that it starts at.
        asked_to_stop: as in `eggroll.training.fit`.
        tell: called with each line of what the task says of its files, before the model is loaded.

    Returns:
        What came out. A run that is interrupted writes what there is just the same.

    Raises:
        RunError: settings, a model, a task or prompts that do not fit, a reward that fails for all answers at the
            start, or a folder that holds another run or cannot be written. What ends a run under way leaves its model.
    """
    check_kept(settings.folder, settings.model, resume=settings.resume)
    if settings.resume and not settings.force:
        first_decides(lambda: check_options(settings.folder, settings.to_json(), settings.may_change | FACTS))
    if settings.hub_model_id is not None:  # what the hub refuses it refuses now, and not after the run
        first_decides(lambda: hub_place(str(settings.hub_model_id), private=settings.hub_private_repo))
    task = task_of(settings, tell)
    language = open_model(settings, adapting_of(settings))
    with scorers_of(settings, task) as scorers:
        return Run(settings, task, language, scorers).run(show, asked_to_stop)


class Run:
    """A run about to begin: everything drawn, encoded and checked."""

    def __init__(self, settings: FinetuneSettings, task: Task, language: LanguageModel, scorers: Scorers) -> None:
        self.settings, self.language = settings, language
        self.facts = facts_of(settings, dated="strftime_now" in str(language.tokenizer.chat_template))
        answers = settings.population * settings.prompts // settings.parts
        self.most = answers * task.max_tokens  # tokens of one generation
        self._check_budget(answers, task.max_tokens)
        self.train, self.test = self._drawn(task)
        self.facts["prompt_tokens"] = digest_of(self.train, self.test)
        graphdef, self.params = split(language.model)
        self.es = strategy(settings)
        marker = marker_of(settings, task, language, scorers)
        key = jax.random.key(settings.seed)
        draws = draw_key(key) if settings.temperature else None
        fun = generator(graphdef, decoding_of(settings, task, language))
        near: dict[str, Any] = {"kl": settings.kl or 0.0, "base": self.params, "compared": self._compared}
        if settings.log_completions is not None:
            near["written"] = Completions(settings.folder, settings.log_completions).write
        self.step = Answered(fun, marker, key=draws, budget=self.facts["budget"], chunk=settings.chunk, **near)
        self.state = self._begun(key)
        self.greedy = greedy = generator(graphdef, decoding_of(settings, task, language, greedy=True))
        self.measure = Evaluator(greedy, self.test, marker, budget=self.facts["budget"], base=self.params)
        self.samples = Samples(settings.folder, self.test, settings.samples)
        self.delivered = Delivered(language, settings.folder / MODEL, best=settings.deliver == "best")
        self.before: Mapping[str, Any] = {}
        self._first: Measured | None = None  # of generation 0, if it was measured in this process
        self._last: tuple[int, Measured] | None = None

    def _check_budget(self, answers: int, each: int) -> None:
        budget = self.settings.token_budget
        if budget is not None and budget < self.most:
            raise SettingsError(
                f"got token_budget={budget}, and one generation may generate {self.most} tokens ({answers} answers of "
                f"at most {each}); at least so many are required. Raise it, or lower --population, --prompts or "
                "--max-tokens."
            )

    def _begun(self, key: jax.Array) -> State:
        """The state of generation 0; says now, and not after compiling, what does not fit the model."""
        try:
            state = self.es.init(self.params, key)
            self.step.check(self.es.settled(), state, self._batch(0)[0])
        except (TypeError, ValueError) as why:
            raise SettingsError(str(why)) from why
        return state

    def _drawn(self, task: Task) -> tuple[Questions, Questions]:
        """Questions to train and to test on."""
        settings, language = self.settings, self.language
        date = datetime.fromisoformat(self.facts["date"]) if "date" in self.facts else None
        asking: dict[str, Any] = {**asking_of(settings), "date": date}
        train = questions(language, task, "train", settings.pool, settings.seed, **asking)
        if len(train) < settings.prompts:
            raise SettingsError(f"got prompts={settings.prompts}; the task has {len(train)} to train on. Ask fewer.")
        return train, questions(language, task, "test", settings.eval_prompts, settings.seed, most=HELD_OUT, **asking)

    def run(self, show: Callable[[Record], None], asked_to_stop: Callable[[], bool] | None) -> Outcome:
        """Makes the generations and writes what came out."""
        settings = self.settings
        if self.es.undecided:
            prompts = self.train.take(range(min(ASKED, len(self.train)))).prompts
            choose(self.es, self.state, self.params, self.greedy, prompts, self.facts["budget"])
        self._measure_before()
        try:
            result = self._fit(show, asked_to_stop)
        except RunError as why:
            if why.result is not None and why.result.generation and processes.is_main():
                with suppress(RunError):  # the error on its way says more
                    self.delivered.lost(why.result.state.params)
            raise
        done, after = result.generation, self._last
        measured = after[1] if after is not None and after[0] == done else self.measure(result.state.params)
        tokens = counted(result.carry)
        self.delivered.end(result.state.params, done, measured.numbers(), self.params)
        if processes.is_main():
            self._write(measured, done, tokens, result.ended)
            if settings.hub_model_id is not None:
                push(settings.folder / MODEL, settings.hub_model_id, f"{settings.label}, by eggroll finetune")
        numbers = result.resumed, tokens, result.seconds, result.ended
        failed = sum(int(record.get("scorer_errors") or 0) for record in read_metrics(settings.folder))
        given = self.delivered
        samples = self.samples.read()
        return Outcome(settings, self.before, given.numbers, done, *numbers, samples, failed, given.generation)

    def _fit(self, show: Callable[[Record], None], asked_to_stop: Callable[[], bool] | None) -> Result:
        settings = self.settings
        first = {"test_reward": self.before["reward"]}
        return fit(
            self.es,
            self.state,
            self.step,
            self._batch,
            **settings.of_fit(self.facts),
            carry=not_counted(),
            saving=Saving(**settings.of_saving(), score="test_reward", base=settings.model),
            evaluate=self._evaluate,
            evaluate_every=settings.eval_every,
            early_stopping=EarlyStopping("test_reward", settings.patience) if settings.patience else None,
            until=self._enough,
            started=lambda generation: show({"generation": generation} | ({} if generation else first)),
            show=show,
            asked_to_stop=asked_to_stop,
        )

    def _batch(self, generation: int) -> tuple[Questions]:
        settings = self.settings
        return (self.train.take(chosen(len(self.train), settings.prompts, generation, settings.seed)),)

    def _enough(self, state: State, carry: PyTree) -> bool:
        """Whether the next generation might exceed the budget: how long answers get is known only afterwards."""
        budget = self.settings.token_budget
        return budget is not None and counted(carry) + self.most > budget

    def _compared(self, generation: int) -> bool:
        """Whether an evaluation is known to follow a generation."""
        return generation in (1, self.settings.generations) or generation % self.settings.eval_every == 0

    def _measure_before(self) -> None:
        """How the model did at the start; a run that goes on need not find out again."""
        file = self.settings.folder / EVALUATION
        goes_on = self.settings.resume and holds_run(self.settings.folder)
        if goes_on and not self.settings.force:
            with suppress(RunError, KeyError, TypeError, AttributeError):  # not there or damaged: found out again
                found = read_json(file) if is_as_written(file) else {}
                if all(isinstance(found["before"][name], int | float | None) for name in ("reward", "error")):
                    self.before = found["before"]
                    self.delivered.begin(self.before, found.get("best"))
                    return
        first = self.measure(self.params).checked()
        self.before = first.numbers()
        self.delivered.begin(self.before, None)
        self._first = None if goes_on else first  # the samples of a run that goes on stay

    def _evaluate(self, state: State, carry: PyTree) -> dict[str, float | None]:
        """What is added to some records of the metrics."""
        generation, measured = int(state.generation), self.measure(state.params)
        self._last = generation, measured
        self.delivered.offer(state.params, generation, measured.numbers())
        if processes.is_main():
            self._sample(generation, measured)
            self._write_evaluation({"generation": generation, "latest": measured.numbers()})
        return measured.record() | self.step.comparison

    def _sample(self, generation: int, measured: Measured) -> None:
        if self._first is not None:
            self.samples.add(0, self._first)
            self._first = None
        self.samples.add(generation, measured)

    def _write(self, after: Measured, generation: int, tokens: int, ended: str) -> None:
        """The evaluation and the picture."""
        settings, folder = self.settings, self.settings.folder
        if self._last is None or self._last[0] != generation:  # an interrupted run ends where no evaluation was due
            self._sample(generation, after)
        more = {"generation": generation, "after": after.numbers(), "tokens": tokens, "ended": ended}
        self._write_evaluation(more)
        start = {"generation": 0, "test_reward": self.before["reward"], "test_reward_error": self.before["error"]}
        title = f"{settings.label}, {settings.method}, {settings.population} members, no backpropagation"
        held_out = {"score": "test_reward", "label": "held-out reward", "unit": "", "error": "test_reward_error"}
        drawn = Drawn(title, fitness="reward", spent="tokens", **held_out)
        draw_curve([start, *read_metrics(folder)], folder / CURVE, drawn)

    def _write_evaluation(self, more: Mapping[str, Any]) -> None:
        text = json.dumps({"before": self.before, **self.delivered.record(), **more}, indent=2)
        write_text(self.settings.folder / EVALUATION, text + "\n")
