"""Which cases of a test the default run takes."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import pytest


def quickest(cases: Iterable[Any], *quick: Any) -> list[Any]:
    """`cases` as parameters, those not in `quick` marked slow: they run in the slow step.

    The ones that are kept should be cheap and as unlike each other as can be.
    """
    cases = list(cases)
    if unknown := [case for case in quick if case not in cases]:
        raise ValueError(f"got {unknown}, which are no cases; they are {cases}.")
    values = [case if isinstance(case, tuple) else (case,) for case in cases]
    return [
        pytest.param(*value, marks=() if case in quick else pytest.mark.slow)
        for case, value in zip(cases, values, strict=True)
    ]
