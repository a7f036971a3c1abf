"""Collectives read from texts of programs that were written by hand in every form that XLA uses."""

import numpy as np
import pytest
from jax.sharding import AbstractMesh

from bench.tools.collectives import Collective, collectives, crossing

MESH = AbstractMesh((2, 4), ("population", "model"))
ROWS = ((0, 1, 2, 3), (4, 5, 6, 7))
COLUMNS = ((0, 4), (1, 5), (2, 6), (3, 7))


def program(*lines, more=""):
    body = "\n".join(f"  {line}" for line in lines)
    return f"HloModule jit_f\n{more}\nENTRY %main.1 (p: f32[8]) -> f32[8] {{\n{body}\n}}\n"


def one(line, **options):
    (found,) = collectives(program(line, **options))
    return found


@pytest.mark.parametrize(
    ("text", "groups"),
    [
        ("{{0,4},{1,5},{2,6},{3,7}}", COLUMNS),
        ("[2,4]<=[8]", ROWS),
        ("[4,2]<=[2,4]T(1,0)", COLUMNS),
        ("mesh['population'=2,'model'=4] {'population'}", COLUMNS),
        ("mesh['population'=2,'model'=4] {'model'}", ROWS),
        ("mesh['a'=4,'b'=1,'c'=2], device_ids=([2,4]T(1,0)) {'c'}", COLUMNS),
        ("mesh['a'=2,'b'=4], device_ids=(7,6,5,4,3,2,1,0) {'b'}", ((7, 6, 5, 4), (3, 2, 1, 0))),
        ("mesh['a'=8] {'a':(2)4}", ROWS),
        ("mesh['a'=8] {'a':(1)2}", COLUMNS),
    ],
)
def test_groups_in_every_form(text, groups):
    found = one(f"%r = f32[4,2]{{1,0}} all-reduce(%x), channel_id=1, replica_groups={text}, to_apply=%add")
    assert found == Collective("all-reduce", 32, groups)
    assert found.axes(MESH) == {"population" if groups == COLUMNS else "model"}


def test_bytes_of_every_kind():
    groups = "replica_groups={{0,4},{1,5},{2,6},{3,7}}, use_global_device_ids=true"
    sizes = {
        f"%a = (f32[4]{{0}}, bf16[2,3]{{1,0}}, /*index=5*/s32[]) all-reduce(%x, %y, %z), {groups}": 16 + 12 + 4,
        f"%a = f32[8]{{0}} all-gather(%x), {groups}, dimensions={{0}}": 32,
        f"%a = f32[4]{{0}} reduce-scatter(%x), {groups}, dimensions={{0}}": 32,
        f"%a = (f32[4]{{0}}, f32[8]{{0}}) all-gather-start(%x), {groups}": 32,
        f"%a = (f32[8]{{0}}, f32[4]{{0}}) reduce-scatter-start(%x), {groups}": 32,
        f"%a = f32[4]{{0}} all-reduce-start(%x), {groups}": 16,
        f"%a = pred[7]{{0}} all-gather(%x), {groups}": 7,
    }
    assert {line: one(line).bytes for line in sizes} == sizes
    sent = one("%a = u8[16]{0} collective-permute(%x), source_target_pairs={{0,1},{1,0}}")
    assert (sent.bytes, sent.groups, sent.axes(MESH)) == (16, ((0, 1), (1, 0)), {"model"})


def test_no_groups_are_all_devices_and_lone_devices_none():
    assert one("%a = f32[] all-reduce(%x), replica_groups={}, to_apply=%add").axes(MESH) == {"population", "model"}
    alone = "%a = f32[] all-reduce(%x), replica_groups={{0},{1}}, to_apply=%add"
    assert collectives(program(alone)) == []
    assert collectives(program("%done = f32[8]{0} all-gather-done(%a)", "%f = f32[] fusion(%all-reduce.2)")) == []


def test_loops_count_their_trips_and_branches_once():
    summed = "%r = f32[2]{0} all-reduce(%x), replica_groups=[2,4]<=[8], to_apply=%add"
    body = f"%body.1 (p: f32[2]) -> f32[2] {{\n  {summed}\n}}\n%branch (p: f32[2]) -> f32[2] {{\n  {summed}\n}}\n"
    unused = f"%never (p: f32[2]) -> f32[2] {{\n  {summed}\n}}\n"
    loop = '%w = f32[2] while(%x), condition=%c, body=%body.1, backend_config={"known_trip_count":{"n":"12"}}'
    choose = "%c = f32[2] conditional(%p, %a, %b), branch_computations={%branch, %other}"
    found = collectives(program(loop, choose, more=body + unused))
    assert [c.times for c in found] == [12, 1]


def test_only_those_that_cross_an_axis():
    lines = [f"%a = f32[8] all-gather(%x), replica_groups={groups}" for groups in ("[2,4]<=[8]", "[4,2]<=[2,4]T(1,0)")]
    found = collectives(program(*lines))
    assert [crossing(found, MESH, axis) for axis in ("model", "population")] == [found[:1], found[1:]]
    assert len(np.unique([c.groups for c in found[1:]])) == 8


def test_an_unknown_form_is_an_error():
    with pytest.raises(ValueError, match="written in an unknown form: something"):
        one("%a = f32[8] all-gather(%x), replica_groups=something new")
