"""Which implementation runs, and what happens when it cannot."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import pytest

from eggroll.kernels import implementations, lowrank_dot, rank_update, register
from eggroll.ops import registry
from eggroll.ops.operations import rank_update_reference


@pytest.fixture
def operations(monkeypatch: pytest.MonkeyPatch) -> dict:
    """Give the test a copy of the registry to add to."""
    implementations("rank_update")  # all are loaded: none registers itself in the copy
    copy = {name: dict(known) for name, known in registry._OPERATIONS.items()}
    monkeypatch.setattr(registry, "_OPERATIONS", copy)
    return copy


@pytest.fixture
def calls(operations: dict) -> list[str]:
    """Register a fake that always refuses and one for another platform; return the record of calls."""
    record: list[str] = []
    here = (jax.default_backend(),)

    @register("rank_update", "refusing", platforms=here)
    def refusing(weights, left, right, *, accumulator):
        record.append("refusing")
        raise NotImplementedError("not these shapes")

    @register("rank_update", "elsewhere", platforms=("another platform",))
    def elsewhere(weights, left, right, *, accumulator):
        record.append("elsewhere")
        return jnp.full((left.shape[1], right.shape[1]), 7.0)

    return record


ARGS = (jnp.ones(2), jnp.ones((2, 3, 1)), jnp.ones((2, 4, 1)))


def test_each_operation_has_a_reference():
    assert implementations("lowrank_dot")[0] == implementations("rank_update")[0] == "reference"


def test_a_refusing_implementation_is_passed_over(calls):
    assert rank_update(*ARGS)[0, 0] == 2
    assert calls == ["refusing"]


def test_the_platform_s_own_comes_before_the_reference(operations):
    shapes = []

    @register("rank_update", "ours", platforms=(jax.default_backend(),))
    def ours(*operands, **options):
        shapes.append(operands[1].shape)
        return rank_update_reference(*operands, **options)

    assert rank_update(*ARGS)[0, 0] == 2
    assert shapes.pop() == (2, 3, 1)
    assert rank_update(*ARGS, implementation="reference")[0, 0] == 2
    assert (2, 3, 1) not in shapes[1:]  # the first asked whether it takes them, the others were its check's


def test_a_named_implementation_never_falls_back(calls):
    with pytest.raises(NotImplementedError, match="not these shapes"):
        rank_update(*ARGS, implementation="refusing")


def test_a_name_reaches_implementations_of_other_platforms(calls):
    assert rank_update(*ARGS, implementation="elsewhere")[0, 0] == 7
    assert calls == ["elsewhere"]


def test_other_errors_are_not_swallowed(operations):
    @register("rank_update", "broken", platforms=(jax.default_backend(),))
    def broken(weights, left, right, *, accumulator):
        if len(weights) == 2:  # not those of its check
            raise RuntimeError("a bug")
        return rank_update_reference(weights, left, right, accumulator=accumulator)

    with pytest.raises(RuntimeError, match="a bug"):
        rank_update(*ARGS)


def test_unknown_names_say_what_exists(calls):
    with pytest.raises(
        ValueError, match=r"rank_update has no .*'fast': choose one of reference, .*mosaic_tpu, .*refusing, elsewhere"
    ):
        rank_update(*ARGS, implementation="fast")
    with pytest.raises(ValueError, match=r"lowrank_dot has no implementation 'fast'"):
        lowrank_dot(jnp.ones(3), jnp.ones((3, 4)), jnp.ones((3, 1)), jnp.ones((4, 1)), implementation="fast")
    with pytest.raises(ValueError, match=r"no operation 'dot': choose one of lowrank_dot, rank_update"):
        implementations("dot")


def test_a_name_is_given_once(operations):
    with pytest.raises(ValueError, match="already has an implementation 'reference'"):
        register("rank_update", "reference")(lambda: None)


def test_default_device_decides_the_platform():
    assert registry.current_platform() == jax.default_backend()
    with jax.default_device(jax.devices("cpu")[0]):
        assert registry.current_platform() == "cpu"
    with jax.default_device("tpu"):
        assert registry.current_platform() == "tpu"
