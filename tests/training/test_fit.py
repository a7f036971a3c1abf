"""The loop by itself: the generations of `ES`, one after the other, with records, hooks and ends."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from eggroll.training import Compiled, EarlyStopping, Result, RunError, Saving, Scored, fit, named, read_metrics, replay
from tests.training.problems import (
    CARRY,
    COUNTING,
    N,
    assert_same,
    batches,
    begin,
    fitness,
    predict,
    run,
    strategy,
    usual,
)


def test_it_makes_the_generations_of_the_strategy() -> None:
    es, records = usual(), []
    state, data = begin(es), batches()
    for generation in range(1, 6):
        state, metrics = es.step(state, fitness, *next(data))
        records.append({"generation": generation, "fitness_best": float(metrics["fitness_best"])})
    shown: list[dict[str, Any]] = []
    result = fit(es, begin(es), fitness, batches(), generations=5, show=shown.append)
    assert (result.ended, result.generation, result.resumed, result.carry) == ("finished", 5, 0, ())
    for a, b in zip(jax.tree.leaves(result.state.params), jax.tree.leaves(state.params), strict=True):
        np.testing.assert_array_equal(a, b)
    assert [{k: r[k] for k in records[0]} for r in shown] == [
        {**r, "fitness_best": pytest.approx(r["fitness_best"], rel=1e-5)} for r in records
    ]


def test_a_python_scorer_gives_what_a_jax_fitness_gives() -> None:
    calls: list[tuple[int, ...]] = []

    def scorer(output: np.ndarray, x: np.ndarray, y: np.ndarray) -> float:
        assert isinstance(output, np.ndarray)
        calls.append(output.shape)
        return -float(((output - y) ** 2).mean())

    es = usual()
    in_jax = fit(es, begin(es), fitness, batches(), generations=4)
    on_host = fit(es, begin(es), Scored(predict, scorer), batches(), generations=4)
    assert calls == [(5, 3)] * (4 * N)
    for a, b in zip(jax.tree.leaves(on_host.state.params), jax.tree.leaves(in_jax.state.params), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5)


def test_a_scorer_that_dies_costs_its_pair(caplog: pytest.LogCaptureFixture) -> None:
    shown: list[dict[str, Any]] = []
    scored = 0

    def scorer(output: np.ndarray, x: np.ndarray, y: np.ndarray) -> float:
        nonlocal scored
        scored += 1
        if scored % N == 3:
            raise ZeroDivisionError("a judge that fails")
        return -float(((output - y) ** 2).mean())

    es = usual()
    result = fit(es, begin(es), Scored(predict, scorer), batches(), generations=3, show=shown.append)
    assert result.ended == "finished"
    assert [(r["scorer_errors"], r["nonfinite"]) for r in shown] == [(1, 2)] * 3
    assert caplog.text.count("member 2: ZeroDivisionError: a judge that fails") == 1


def test_the_models_own_state_goes_along() -> None:
    mean = 0.0
    for _, (x, _) in zip(range(3), batches(), strict=False):
        mean = 0.9 * mean + 0.1 * float(x.mean())
    assert float(run(None, 3).carry["mean"]) == pytest.approx(mean, rel=1e-5)


def test_counts_in_which_members_differ_are_no_state_to_carry() -> None:
    def positive(params: Any, seen: Any, x: Any, y: Any) -> Any:
        return fitness(params, x, y), {
            "steps": seen["steps"] + 1,
            **({"n": seen["n"] + (params["b"] > 0).sum()} if "n" in seen else {}),
        }

    es, step = usual(), Compiled(positive, carries=True)
    result = fit(es, begin(es), step, batches(), generations=3, carry={"steps": 2**30})
    assert result.carry["steps"].dtype == jnp.int32 and result.carry["steps"] == 2**30 + 3
    with pytest.raises(TypeError, match="got 'n' of dtype int32 in the state that the model carries along"):
        fit(es, begin(es), step, batches(), generations=3, carry={"steps": 0, "n": 0})


@pytest.mark.slow
def test_scores_of_any_offset_train_alike_and_replay(tmp_path: Path) -> None:
    """Where float32 knows steps of 65536 alone; the optimizer watches the loss."""

    def offset_by(offset: float, folder: Path) -> Result:
        es = strategy(optimizer=named("sgd", learning_rate=0.05))
        scored = Scored(predict, lambda output, x, y: float(offset - ((output - y) ** 2).mean(dtype=np.float64)))
        stopping = EarlyStopping("fitness_mean", patience=2)
        return fit(es, begin(es), scored, batches(), generations=4, folder=folder, early_stopping=stopping)

    plain, far = offset_by(0.0, tmp_path / "plain"), offset_by(1e12, tmp_path / "far")
    assert plain.generation == far.generation
    assert jnp.abs(plain.state.params["w"] - begin(usual()).params["w"]).max() > 0.05
    np.testing.assert_allclose(far.state.params["w"], plain.state.params["w"], atol=1e-3)
    for one, other in zip(read_metrics(tmp_path / "plain"), read_metrics(tmp_path / "far"), strict=True):
        assert other["fitness_mean"] - 1e12 == pytest.approx(one["fitness_mean"], abs=1e-3)
    replayed = replay(begin(usual()).params, tmp_path / "far" / "ledger.bin")
    assert replayed.params["w"].tobytes() == far.state.params["w"].tobytes()


def test_hooks_measure_now_and_then() -> None:
    shown: list[dict[str, Any]] = []
    options = {"evaluate": lambda state, carry: {"size": float(jnp.abs(state.params["w"]).sum())}}
    run(None, 11, evaluate_every=5, show=shown.append, **options)
    assert [r["generation"] for r in shown if "size" in r] == [1, 5, 10, 11]


def test_a_run_ends_once_it_has_what_was_wanted(tmp_path: Path) -> None:
    shown: list[dict[str, Any]] = []
    options: dict[str, Any] = {"until": lambda state, carry: int(state.generation) >= 3, "evaluate_every": 10}
    options["evaluate"] = lambda state, carry: {"size": 1.0}
    result = run(tmp_path, 9, show=shown.append, **options)
    assert (result.ended, result.generation) == ("finished", 3)
    assert [r["generation"] for r in shown if "size" in r] == [1, 3]  # measured at the end, too
    again = run(tmp_path, 9, resume=True, show=shown.append, **options)
    assert (again.ended, again.generation, len(shown)) == ("finished", 3, 3)


def test_a_step_says_what_is_recorded() -> None:
    class Counted(Compiled):
        recorded = ("answers", "speed")

        def __call__(self, *args: Any) -> Any:
            state, carry, metrics = super().__call__(*args)
            return state, carry, {**metrics, "answers": jnp.int32(2**30 + 1), "speed": 1234.5678, "other": 1.0}

    shown: list[dict[str, Any]] = []
    es = usual()
    fit(es, begin(es), Counted(fitness), batches(), generations=1, show=shown.append)
    assert (shown[0]["answers"], shown[0]["speed"], "other" in shown[0]) == (2**30 + 1, 1234.57, False)


def test_data_that_end_end_the_run_and_say_so(caplog: pytest.LogCaptureFixture) -> None:
    es = usual()
    data = [batch for _, batch in zip(range(3), batches(), strict=False)]
    result = fit(es, begin(es), fitness, data, generations=9)
    assert (result.ended, result.generation) == ("out of data", 3)
    (said,) = caplog.messages
    assert "ends after 3 of 9 generations: its data ended with 3 batches" in said and "epochs=None" in said


@pytest.mark.parametrize(("epochs", "made", "ended"), [(2, 6, "out of data"), (None, 9, "finished")])
def test_data_are_gone_through_again(epochs: int | None, made: int, ended: str) -> None:
    es = usual()
    data = [batch for _, batch in zip(range(3), batches(), strict=False)]
    result = fit(es, begin(es), fitness, data, generations=9, epochs=epochs)
    assert (result.ended, result.generation) == (ended, made)
    assert_same(result, fit(es, begin(es), fitness, data * 3, generations=made))


def test_a_run_goes_on_in_its_third_pass(tmp_path: Path) -> None:
    es, data = usual(), [batch for _, batch in zip(range(3), batches(), strict=False)]
    options: dict[str, Any] = {"saving": Saving(every=4), "folder": tmp_path}
    shown: list[dict[str, Any]] = []
    begun = fit(es, begin(es), fitness, data, generations=12, **options)
    assert (begun.ended, begun.generation) == ("out of data", 3)
    options |= {"resume": True, "epochs": None}
    killed = fit(
        es,
        begin(es),
        fitness,
        data,
        generations=12,
        show=shown.append,
        asked_to_stop=lambda: len(shown) == 4,
        **options,
    )
    assert (killed.ended, killed.generation) == ("interrupted", 7)
    result = fit(es, begin(es), fitness, data, generations=12, **options)
    assert result.resumed == 7
    assert_same(result, fit(es, begin(es), fitness, data * 4, generations=12))


def test_a_metric_that_stands_still_ends_the_run() -> None:
    options = {"evaluate": lambda state, carry: {"level": 1.0}, "evaluate_every": 2}
    result = run(None, 30, early_stopping=EarlyStopping("level", patience=3), **options)
    assert (result.ended, result.generation) == ("stopped early", 6)  # measured at 1, 2, 4, 6


def test_asking_ends_the_run_after_the_generation() -> None:
    shown: list[dict[str, Any]] = []
    result = run(None, 30, show=shown.append, asked_to_stop=lambda: len(shown) == 4)
    assert (result.ended, result.generation) == ("interrupted", 4)


def test_an_interrupt_at_once_keeps_the_last_whole_generation() -> None:
    shown: list[dict[str, Any]] = []

    def show(record: dict[str, Any]) -> None:
        shown.append(record)
        if len(shown) == 3:
            raise KeyboardInterrupt

    assert (result := run(None, 30, show=show)).ended == "interrupted at once" and result.generation == 3


def test_time_ends_the_run_and_a_clock_that_is_set_does_not(monkeypatch: pytest.MonkeyPatch) -> None:
    passed = 0.0

    def steady() -> float:
        nonlocal passed
        passed += 1.0
        return passed

    monkeypatch.setattr(time, "perf_counter", steady)
    jumps = iter([2e9, 1e9, 4e9, -1e9] * 1000)
    monkeypatch.setattr(time, "time", lambda: next(jumps))
    shown: list[dict[str, Any]] = []
    result = run(None, 1000, seconds=10, show=shown.append)
    assert result.ended == "out of time" and 2 <= result.generation <= 10
    assert all(0 < r["seconds"] <= 12 and 0 < r["members_per_second"] <= N for r in shown)
    assert [r["seconds"] for r in shown] == sorted(r["seconds"] for r in shown)


def test_nothing_finite_ends_the_run_with_what_it_had(caplog: pytest.LogCaptureFixture) -> None:
    es = strategy()
    data = lambda generation: jnp.float32(jnp.nan if generation == 3 else 1)  # noqa: E731
    result = fit(es, begin(es), lambda params, scale: -jnp.sum(params["w"] ** 2) * scale, data, generations=9)
    assert result.generation == 3 and "no finite fitness" in result.ended
    assert "ends after 3 of 9 generations: got no finite fitness" in caplog.text
    assert all(np.isfinite(x).all() for x in jax.tree.leaves(result.state.params))


def test_members_without_a_number_are_dropped_and_counted() -> None:
    es, shown = strategy(), []
    flags = jnp.arange(N) == 2

    def partly(params: Any, lost: Any) -> Any:
        return jnp.where(lost, jnp.nan, -jnp.sum(params["w"] ** 2) - jnp.sum(params["b"] ** 2))

    step = Compiled(partly, in_axes=(0,))
    result = fit(es, begin(es), step, lambda generation: flags, generations=3, show=shown.append)
    assert result.ended == "finished" and [r["nonfinite"] for r in shown] == [2, 2, 2]


def test_progress_is_shown(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run(tmp_path, 2, progress=True)
    run(tmp_path, 4, progress=True, resume=True)
    out, err = capsys.readouterr()
    assert out == "" and "generation 0/2" in err and "resuming after 2 generations" in err
    last = err.strip().splitlines()[-1]
    assert last.startswith("generation 4/4") and "fitness -" in last and "members/s" in last


def test_without_a_folder_nothing_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    run(None, 2)
    unnamed: Any = ""  # is not the current folder
    with pytest.raises(RunError, match=r"got folder='', which cannot be a file's name \(it is empty\)"):
        run(unnamed, 1)
    assert not list(tmp_path.iterdir())


def test_an_error_carries_what_the_run_had() -> None:
    def show(record: dict[str, Any]) -> None:
        if record["generation"] == 3:
            raise RunError("no more")

    with pytest.raises(RunError, match="no more") as error:
        run(None, 9, show=show)
    assert_same(error.value.result, run(None, 3))
    assert error.value.result.ended == "no more"


@pytest.mark.parametrize(
    "options", [{"generations": 0}, {"generations": 3, "evaluate_every": 0}, {"generations": 3, "epochs": 0}]
)
def test_counts_out_of_range(options: dict[str, int]) -> None:
    es = usual()
    with pytest.raises(ValueError, match="at least 1 is required"):
        fit(es, begin(es), COUNTING, batches(), carry=CARRY, **options)  # type: ignore[arg-type]


@pytest.mark.parametrize("options", [{"every": 0}, {"keep": 0}, {"best": -1}])
def test_saving_that_cannot_be(options: dict[str, int]) -> None:
    with pytest.raises(ValueError, match="at least 1, 1 and 0 are required"):
        Saving(**options)  # type: ignore[arg-type]
