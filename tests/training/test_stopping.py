"""A signal asks for an end; a second Ctrl-C insists."""

from __future__ import annotations

import signal
import threading
from types import SimpleNamespace

import pytest

from eggroll.training.stopping import EarlyStopping, Place, Seen, StopRequest


def test_the_first_signal_asks_and_the_second_raises() -> None:
    with StopRequest() as stop:
        assert not stop.asked
        signal.raise_signal(signal.SIGINT)
        assert stop.asked
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)


def test_handlers_are_put_back() -> None:
    before = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    with pytest.raises(ZeroDivisionError), StopRequest():
        assert signal.getsignal(signal.SIGINT) != before[0]
        raise ZeroDivisionError
    assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)] == before


def test_another_thread_may_train() -> None:
    found: list[object] = []

    def work() -> None:
        with StopRequest() as stop:
            found.append((stop.asked, signal.getsignal(signal.SIGINT)))

    before = signal.getsignal(signal.SIGINT)
    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert found == [(False, before)]


def hopeless(values: list[float | None], **options: float | bool) -> list[bool]:
    stopping, seen = EarlyStopping("x", **{"patience": 2, **options}), Seen()  # type: ignore[arg-type]
    return [seen.hopeless(stopping, {"x": value}) for value in values]


def test_a_run_ends_when_nothing_gets_better() -> None:
    assert hopeless([1.0, 2.0, 2.0, 1.5]) == [False, False, False, True]
    assert hopeless([2.0, 1.0, 1.0, 1.5], higher=False) == [False, False, False, True]


def test_a_small_gain_is_none() -> None:
    assert hopeless([1.0, 1.5, 2.0], min_delta=0.9) == [False, False, False]
    assert hopeless([1.0, 1.5, 1.9], min_delta=0.9) == [False, False, True]


def test_what_is_not_finite_is_no_gain() -> None:
    assert hopeless([1.0, float("nan"), None]) == [False, False, True]
    assert hopeless([float("nan"), float("inf")]) == [False, True]


def test_a_record_without_the_metric_does_not_count() -> None:
    stopping, seen = EarlyStopping("x", patience=1), Seen()
    assert not seen.hopeless(stopping, {"x": 1.0})
    assert not any(seen.hopeless(stopping, {"y": 0.0}) for _ in range(5))
    assert seen.hopeless(stopping, {"x": 1.0})


@pytest.mark.parametrize("options", [{"patience": 0}, {"min_delta": -1.0}, {"min_delta": float("nan")}])
def test_early_stopping_that_cannot_be(options: dict[str, float]) -> None:
    with pytest.raises(ValueError, match="patience of at least 1"):
        EarlyStopping("x", **{"patience": 1, **options})  # type: ignore[arg-type]


WHOLE = {"data": 4, "seconds": 1.5, "seen": {"best": None, "since": 2}, "score": -0.5}
ODD = {
    "data": (None, "4", True, -4, 0, 4.0, 10**30, []),
    "seconds": (None, "1", True, -1.0, float("nan"), 10**400, []),
    "seen": (None, [], {"best": "1", "since": 0}, {"best": None, "since": -1}, {"since": 5}, {"since": 1.0}, {"x": 1}),
    "score": ("1", True, float("inf"), 10**400, {}),
}


@pytest.mark.parametrize("name", ODD)
def test_a_record_that_no_run_writes_is_no_place(name):
    state, begun = SimpleNamespace(generation=5), SimpleNamespace(generation=1)
    told = Place.recorded(state, (), WHOLE, begun)
    assert (told.data, told.seconds, told.seen, told.score) == (4, 1.5, Seen(None, 2), -0.5)
    assert Place.recorded(state, (), WHOLE | {"data": {"state": "of the data"}}, begun).data
    for value in ODD[name]:
        with pytest.raises((TypeError, ValueError)):
            Place.recorded(state, (), WHOLE | {name: value}, begun)
