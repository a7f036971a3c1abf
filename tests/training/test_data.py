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


def noisy() -> Iterator[tuple[np.ndarray, int]]:
    rng = np.random.default_rng(0)
    for i in itertools.count():
        yield rng.random(3), i


def shuffled() -> Any:
    data = grain.MapDataset.range(20).shuffle(seed=3).repeat(None).map(lambda i: np.full(2, i))
    return data.to_iter_dataset().batch(2)


def loader() -> Any:
    sampler = grain.samplers.IndexSampler(20, grain.sharding.NoSharding(), shuffle=True, num_epochs=None, seed=5)
    source: Any = grain.sources.RangeDataSource(0, 20, 1)
    return grain.DataLoader(data_source=source, sampler=sampler, worker_count=0)


KINDS: dict[str, Callable[[], Any]] = {
    "nothing": lambda: None,
    "a function": lambda: lambda generation: (np.full(2, generation), generation),
    "a generator": noisy,
    "a list": lambda: [np.full(1, i) for i in range(12)],
    "a Grain data set": shuffled,
    "a Grain loader": loader,
}


@pytest.mark.first(4)
@pytest.mark.parametrize("kind", KINDS)
def test_a_source_goes_on_where_it_was(kind: str) -> None:
    whole = as_source(KINDS[kind]())
    expected = [whole.next() for _ in range(9)]
    for taken in (0, 1, 4):
        first = as_source(KINDS[kind]())
        for _ in range(taken):
            first.next()
        position = json.loads(json.dumps(first.position()))
        again = as_source(KINDS[kind]())
        again.seek(position)
        for want in expected[taken:]:
            got = again.next()
            assert len(got) == len(want)
            for a, b in zip(got, want, strict=True):
                np.testing.assert_array_equal(a, b)


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
    with pytest.raises(RunError, match="keep a state of their own"):
        as_source(shuffled()).seek(3)


def test_what_is_no_data_is_named() -> None:
    with pytest.raises(RunError, match="got data of type int"):
        as_source(3)
