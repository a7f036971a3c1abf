"""Data of every kind find their place again."""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable, Iterator
from typing import Any

import grain
import numpy as np
import pytest

from eggroll.training.data import as_source
from eggroll.training.errors import RunError

READ = grain.ReadOptions(num_threads=0, prefetch_buffer_size=0)


def noisy() -> Iterator[tuple[np.ndarray, int]]:
    rng = np.random.default_rng(0)
    for i in itertools.count():
        yield rng.random(3), i


def shuffled() -> Any:
    data = grain.MapDataset.range(20).shuffle(seed=3).repeat(None).map(lambda i: np.full(2, i))
    return data.to_iter_dataset().batch(2)


def loader(epochs: int | None = None, records: int = 20) -> Any:
    sampler = grain.samplers.IndexSampler(records, grain.sharding.NoSharding(), shuffle=True, num_epochs=epochs, seed=5)
    source: Any = grain.sources.RangeDataSource(0, records, 1)
    return grain.DataLoader(data_source=source, sampler=sampler, worker_count=0, read_options=READ)


class Shuffled:
    """Another order each time that it is gone through, which only going through it again tells."""

    def __init__(self) -> None:
        self.rng = np.random.default_rng(0)

    def __iter__(self) -> Iterator[int]:
        yield from self.rng.permutation(4).tolist()


PASSES: dict[str, Callable[[], Any]] = {
    "a list": lambda: [np.full(1, i) for i in range(4)],
    "an object": Shuffled,
    "a Grain map": lambda: grain.MapDataset.range(4).shuffle(seed=3),
    "a Grain iterable": lambda: grain.MapDataset.range(8).shuffle(seed=3).to_iter_dataset().batch(2),
    "a Grain loader": lambda: loader(epochs=1, records=4),
}

KINDS: dict[str, Callable[[], Any]] = {
    "nothing": lambda: None,
    "a function": lambda: lambda generation: (np.full(2, generation), generation),
    "a generator": noisy,
    "a list": lambda: [np.full(1, i) for i in range(12)],
    "a Grain data set": shuffled,
    "a Grain loader": loader,
}


def check_goes_on(make: Callable[[], Any], batches: int, stops: tuple[int, ...], **options: Any) -> None:
    """What follows after a stop is what an uninterrupted source gives."""
    whole = as_source(make(), **options)
    expected = [whole.next() for _ in range(batches)]
    for taken in stops:
        first = as_source(make(), **options)
        for _ in range(taken):
            first.next()
        position = json.loads(json.dumps(first.position()))
        again = as_source(make(), **options)
        again.seek(position)
        for want in expected[taken:]:
            got = again.next()
            assert len(got) == len(want)
            for a, b in zip(got, want, strict=True):
                np.testing.assert_array_equal(a, b)


@pytest.mark.first(4)
@pytest.mark.parametrize("kind", KINDS)
def test_a_source_goes_on_where_it_was(kind: str) -> None:
    check_goes_on(KINDS[kind], 9, (0, 1, 4))


@pytest.mark.parametrize(("kind", "epochs"), list(zip(PASSES, (3, None, 3, None, 3), strict=True)))
def test_a_source_goes_on_in_any_pass(kind: str, epochs: int | None) -> None:
    check_goes_on(PASSES[kind], 12, (4, 10), epochs=epochs)
    source = as_source(PASSES[kind](), epochs=epochs)
    seen = [int(np.sum(source.next()[0])) for _ in range(12)]
    assert sorted(seen[:4]) == sorted(seen[4:8]) == sorted(seen[8:])  # each pass has all of it
    if kind in ("an object", "a Grain map"):
        assert seen[:4] != seen[4:8], "shuffled anew"
    if epochs:
        with pytest.raises(StopIteration):
            source.next()


def test_a_run_whose_data_ended_goes_on_with_more_epochs() -> None:
    for kind in ("a list", "a Grain iterable"):
        first = as_source(PASSES[kind]())
        batches = [first.next() for _ in range(4)]
        again = as_source(PASSES[kind](), epochs=2)
        again.seek(first.position())
        np.testing.assert_array_equal(again.next()[0], batches[0][0])
        with pytest.raises(RunError, match=r"got epochs=1; the run .* is in pass 2|end after 4 batches.*taken 5"):
            as_source(PASSES[kind]()).seek(again.position())


class Once:
    """An iterable that can be gone through once, as it is no iterator itself."""

    def __init__(self) -> None:
        self.left = iter([1, 2])

    def __iter__(self) -> Iterator[int]:
        return self.left


class Wrapped(Once):
    def __iter__(self) -> Iterator[int]:
        yield from self.left


@pytest.mark.parametrize("epochs", [2, None])
@pytest.mark.parametrize(
    "data", [noisy(), iter([1, 2]), iter(shuffled()), map(abs, [1])], ids=lambda data: type(data).__name__
)
def test_what_has_one_pass_is_refused_for_more(data: Any, epochs: int | None) -> None:
    with pytest.raises(RunError, match=rf"got epochs={epochs} with an iterator .*a list.*leave epochs out"):
        as_source(data, epochs)


@pytest.mark.parametrize("make", [Once, Wrapped, list])
def test_a_pass_without_a_batch_is_an_error_and_no_endless_loop(make: Any) -> None:
    source = as_source(make(), epochs=None)
    with pytest.raises(RunError, match=r"with data without a batch in pass [12]"):
        for _ in range(3):
            source.next()


def test_data_without_an_end_have_no_epochs() -> None:
    for data, what in ((None, "no data"), (lambda generation: generation, "a function")):
        with pytest.raises(RunError, match=rf"got epochs=2 with .*{what}.*leave epochs out"):
            as_source(data, 2)
        as_source(data, None).next()
    with pytest.raises(RunError, match="got epochs=2 with a data set that has no end"):
        as_source(grain.MapDataset.range(4).repeat(None), 2)
    assert as_source(grain.MapDataset.range(4).repeat(None), None).next() == (0,)


def test_only_a_tuple_is_several_arguments() -> None:
    assert as_source([[1, 2]]).next() == ([1, 2],)
    assert as_source([(1, 2)]).next() == (1, 2)


def test_data_end() -> None:
    source = as_source(iter([1]))
    assert source.next() == (1,)
    with pytest.raises(StopIteration):
        source.next()


def test_data_that_end_before_the_place_are_refused() -> None:
    with pytest.raises(RunError, match="end after 2 batches; the run to resume has taken 5"):
        as_source([1, 2]).seek(5)


def test_data_of_another_kind_are_refused() -> None:
    with pytest.raises(RunError, match=r"keep a state of their own; .* data that do not"):
        as_source(shuffled()).seek(3)
    for data in ([1, 2], None):
        with pytest.raises(RunError, match=r"keep no state of their own; .* data that do"):
            as_source(data).seek(as_source(shuffled()).position())


def test_what_is_no_data_is_named() -> None:
    for data in (3, {"x": 1}, {1.0, 2.0}, "abc", np.float32(3), np.array(3)):
        with pytest.raises(RunError, match=f"got data of type {type(data).__name__}; None, an iterable of batches"):
            as_source(data)


def test_a_function_that_takes_no_generation_is_named() -> None:
    with pytest.raises(TypeError, match=rf"got data={__file__}:.*which takes \(\); data\(generation\) is called"):
        as_source(lambda: iter([1, 2]))
