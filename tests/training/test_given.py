"""What `fit` is given in the wrong place, and what callbacks return: errors say what was got and is required."""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp
import pytest

from eggroll.training import Compiled, fit
from tests.training.problems import batches, begin, fitness, run, usual

NUMBERS = r"from evaluate\(state, carry\); a dictionary of numbers by name is required"
ONE = r"from evaluate\(state, carry\) as 'x'; one real number is required"
FLAG = "True or False is required"
GIVEN: dict[str, tuple[dict[str, Any], str]] = {
    "params": ({"state": {"w": jnp.ones(3)}}, r"got dict as the state; an eggroll.State is required.*es.init"),
    "no strategy": ({"es": fitness}, "got function as the strategy; an eggroll.ES or FullRankES is required"),
    "no fitness": ({"fitness": 1.0}, "got float as fitness; a function of the parameters is required"),
    "evaluate is none": ({"evaluate": 3}, "got int as evaluate; a function"),
    "too few": ({"evaluate": lambda state: {}}, r"test_given.py:\d+ \(<lambda>\), which takes \(state\); evaluate\(st"),
    "too many": ({"asked_to_stop": lambda a: True}, r"which takes \(a\); asked_to_stop\(\) is called"),
    "text": ({"evaluate": lambda state, carry: {"x": "y"}}, "got 'y' " + ONE),
    "saving": ({"saving": 3}, "got int where `fit` takes a Saving or None"),
    "a float": ({"evaluate": lambda state, carry: 0.5}, "got float " + NUMBERS),
    "nothing": ({"evaluate": lambda state, carry: None}, "got NoneType " + NUMBERS),
    "a pair": ({"evaluate": lambda state, carry: ("x", 1.0)}, "got tuple " + NUMBERS),
    "rows": ({"evaluate": lambda state, carry: {"x": jnp.ones(3)}}, r"got an array of shape \(3,\) " + ONE),
    "a list": ({"evaluate": lambda state, carry: {"x": [1.0]}}, "got list " + ONE),
    "a complex": ({"evaluate": lambda state, carry: {"x": 1j}}, "got complex " + ONE),
    "until nothing": ({"until": lambda state, carry: None}, r"got None from until\(state, carry\); " + FLAG),
    "until rows": ({"until": lambda state, carry: jnp.ones(3) > 0}, r"got an array of bool \(3,\) from until.*" + FLAG),
    "asked": ({"asked_to_stop": lambda: 1}, r"got 1 from asked_to_stop\(\); " + FLAG),
}


@pytest.mark.parametrize("case", GIVEN)
def test_what_does_not_fit_is_named(case: str) -> None:
    es = usual()
    given, text = GIVEN[case]
    options: dict[str, Any] = {
        "es": es,
        "state": begin(es),
        "fitness": fitness,
        "data": batches(),
        "generations": 2,
        **given,
    }
    with pytest.raises(TypeError, match=text):
        fit(**options)


def test_a_step_of_ones_own_returns_three_things() -> None:
    es = usual()
    for wrong, text in (
        (lambda state, carry, metrics: None, r"got NoneType from the step; \(state, carry, metrics\)"),
        (lambda state, carry, metrics: (state, metrics), r"got \(State, dict\) from the step"),
        (
            lambda state, carry, metrics: (state, carry, {"loss": 1.0}),
            "got metrics without fitness_best, .* from the step",
        ),
    ):

        class Wrong(Compiled):
            def __call__(self, *args: Any, wrong: Any = wrong) -> Any:
                return wrong(*super().__call__(*args))

        with pytest.raises(TypeError, match=text):
            fit(es, begin(es), Wrong(fitness), batches(), generations=2)


def test_what_is_measured_and_not_finite_is_told(caplog: pytest.LogCaptureFixture) -> None:
    run(None, 1, evaluate=lambda state, carry: {"loss": jnp.nan, "size": 1.0})
    assert "evaluate(state, carry) measured loss: not finite" in caplog.text
