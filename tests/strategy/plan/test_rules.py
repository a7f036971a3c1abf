"""Rules by path: the first match decides, and what decides nothing is an error."""

from __future__ import annotations

import numpy as np
import optax
import pytest

import eggroll
from eggroll.engine.checks import as_count
from eggroll.strategy.plan.rules import DenseRule, FrozenRule, LowRankRule, check_rank, match_rules

PATHS = ["layers/0/kernel", "layers/0/bias", "layers/1/kernel", "head/kernel"]


def test_the_first_match_wins():
    rules = [("layers/0/.*", "frozen"), (".*/kernel", LowRankRule(rank=2)), (".*", "dense")]
    with pytest.raises(ValueError, match=r"'\.\*' decides for no parameter"):
        match_rules(rules, PATHS)
    found = match_rules(rules, [*PATHS, "scale"])
    assert found == {
        "layers/0/kernel": FrozenRule(),
        "layers/0/bias": FrozenRule(),
        "layers/1/kernel": LowRankRule(rank=2),
        "head/kernel": LowRankRule(rank=2),
        "scale": DenseRule(),
    }


def test_the_whole_path_has_to_match():
    assert match_rules([("head/kernel", "dense")], PATHS) == {"head/kernel": DenseRule()}
    for partial in ("head", "kernel", "head/kerne"):
        with pytest.raises(ValueError, match="the whole path must match") as raised:
            match_rules([(partial, "dense")], PATHS)
        assert "'head/kernel'" in str(raised.value), "the message names paths that come near"


def test_names_stand_for_rules():
    paths = ["a", "b", "c"]
    found = match_rules([("a", "low_rank"), ("b", "dense"), ("c", "frozen")], paths)
    assert list(found.values()) == [LowRankRule(), DenseRule(), FrozenRule()]
    assert match_rules((), paths) == {}
    assert match_rules(iter([["a", "dense"]]), paths) == {"a": DenseRule()}


@pytest.mark.parametrize(
    "rules",
    [
        [("head/.*", "dense"), ("head/kernel", "frozen")],  # an earlier rule took it
        [("head/kernel", "dense"), ("layers/.*", "dense"), ("head/kernel", "frozen")],  # the same pattern twice
        [("Head/kernel", "dense")],
    ],
)
def test_a_rule_that_decides_nothing_is_an_error(rules):
    with pytest.raises(ValueError, match=rf"the rule for '{rules[-1][0]}' decides for no parameter.*4 in all"):
        match_rules(rules, PATHS)


@pytest.mark.parametrize(
    ("rules", "text"),
    [
        ([("head/kernel", "full")], r"got the rule 'full'; use one of \['dense', 'frozen', 'low_rank', 'weights'\]"),
        ([("head/kernel", 3)], "got the rule 3; use one of"),
        (["frozen"], r"got the rule 'frozen'; a pair \(pattern, rule\) is required"),
        ([(".*", "dense", 1)], "a pair"),
        ([(b"x", "dense")], "a pair"),
        ({"head/kernel": "dense"}, "got the rule 'head/kernel'; a pair"),
        ([("(", "dense")], r"pattern '\(' is not a regular expression"),
    ],
)
def test_what_is_no_rule(rules, text):
    with pytest.raises(ValueError, match=text):
        match_rules(rules, PATHS)


@pytest.mark.parametrize("scale", [0, -1.0, float("nan"), float("inf")])
@pytest.mark.parametrize("rule", [LowRankRule, DenseRule])
def test_sigma_scale_is_positive_and_finite(rule, scale):
    with pytest.raises(ValueError, match=r"got sigma_scale=.*; a finite number > 0 is required"):
        rule(sigma_scale=scale)


@pytest.mark.parametrize("rank", [0, -2, 1.5, True, "1", np.float32(2)])
def test_rank_is_a_positive_integer(rank):
    for make in (check_rank, LowRankRule):
        with pytest.raises(ValueError, match=r"got rank=.*; an integer of at least 1 is required.*1 is a sensible"):
            make(rank)


def test_integers_of_numpy_count_as_integers():
    assert type(check_rank(np.int64(3))) is int and check_rank(np.int64(3)) == 3
    assert type(LowRankRule(rank=np.uint8(2)).rank) is int
    assert as_count("groups", np.int32(4), 2) == 4
    with pytest.raises(ValueError, match=r"got groups=1; an integer of at least 2 is required\. Try 2\."):
        as_count("groups", 1, 2, " Try 2.")


@pytest.mark.parametrize("axes", [{"left_axes": (0,)}, {"right_axes": (1,)}])
def test_axes_come_together(axes):
    with pytest.raises(ValueError, match="give both, or neither"):
        LowRankRule(**axes)


@pytest.mark.parametrize("rules", ["linear", 5, None], ids=str)
def test_rules_that_are_no_list_are_refused_everywhere(rules):
    with pytest.raises(TypeError, match="a list of pairs is required"):
        match_rules(rules, ["a"])
    with pytest.raises(TypeError, match="a list of pairs is required"):
        eggroll.ES(population=4, sigma=0.1, optimizer=optax.sgd(0.1), rules=rules)
    with pytest.raises(TypeError, match="a list of pairs is required"):
        eggroll.value_and_grad(lambda p: p.sum(), population=4, sigma=0.1, rules=rules)
