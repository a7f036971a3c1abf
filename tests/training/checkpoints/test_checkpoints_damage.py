"""A damaged or half-written checkpoint is named, and the one before it is taken."""

from __future__ import annotations

import json
import re
import shutil

import numpy as np
import pytest

from eggroll.training.checkpoints import arrays as checkpoints_arrays
from eggroll.training.checkpoints.manager import Checkpoints
from eggroll.training.errors import RunError
from eggroll.training.folder.disk import MANIFEST
from eggroll.training.folder.integrity import DamagedError, read_manifest, verify, write_manifest
from tests.training.checkpoint_states import assert_same, small


@pytest.fixture(scope="module", params=["one file", "TensorStore"])
def saved(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp("saved")
    with pytest.MonkeyPatch.context() as patch, Checkpoints(folder) as checkpoints:
        if request.param == "TensorStore":
            patch.setattr(checkpoints_arrays, "SMALL", 0)
        for generation in (10, 20, 30):
            checkpoints.save(generation, small(generation), {"rows": generation})
    return folder


@pytest.fixture
def folder(saved, tmp_path):
    return shutil.copytree(saved, tmp_path / "run")


def data(checkpoint):
    """The file that holds the most."""
    return max((p for p in checkpoint.rglob("*") if p.is_file() and p.name != MANIFEST), key=lambda p: p.stat().st_size)


def cut(checkpoint):
    path = data(checkpoint)
    path.write_bytes(path.read_bytes()[:-1])


def flip(path, where=0.5):
    whole = bytearray(path.read_bytes())
    whole[int(len(whole) * where)] ^= 4
    path.write_bytes(bytes(whole))


def other_manifest(checkpoint):
    shutil.copy(checkpoint.parent / "20" / MANIFEST, checkpoint / MANIFEST)


def other_score(checkpoint):
    whole = json.loads((checkpoint / MANIFEST).read_text())
    whole["content"]["generation"] = 31
    (checkpoint / MANIFEST).write_text(json.dumps(whole))


DAMAGE = {
    "missing": (lambda c: data(c).unlink(), "is missing"),
    "cut": (cut, r"has \d+ bytes, not \d+"),
    "emptied": (lambda c: data(c).write_bytes(b""), "has 0 bytes"),
    "flipped bit": (lambda c: flip(data(c)), "is altered: its SHA-256 is not that of the manifest"),
    "extra": (lambda c: (data(c).parent / "more").write_bytes(b"x"), "more: not in the manifest"),
    "extra link": (lambda c: (c / "link").symlink_to("nowhere"), "link: not in the manifest"),
    "folder in place of a file": (lambda c: (data(c).unlink(), (c / "new" / "one").mkdir(parents=True)), "is missing"),
    "no manifest": (lambda c: (c / MANIFEST).unlink(), f"half-written: it has no {MANIFEST}"),
    "manifest cut": (lambda c: (c / MANIFEST).write_bytes((c / MANIFEST).read_bytes()[:200]), "cut or altered"),
    "manifest empty": (lambda c: (c / MANIFEST).write_bytes(b""), "cut or altered"),
    "manifest not text": (lambda c: (c / MANIFEST).write_bytes(b"\xff\xfe" * 50), "cut or altered"),
    "manifest not a table": (lambda c: (c / MANIFEST).write_text("[1]"), "cut or altered"),
    "manifest nested without end": (lambda c: (c / MANIFEST).write_text("[" * 200_000), "cut or altered"),
    "manifest edited": (other_score, "its SHA-256 is not the one it states"),
    "manifest of another": (other_manifest, "not|missing|altered"),
    "all gone": (lambda c: [shutil.rmtree(c), c.mkdir()], "half-written"),
}


@pytest.mark.parametrize("damage", DAMAGE.values(), ids=DAMAGE.keys())
def test_the_one_before_is_taken(folder, damage):
    harm, reason = damage
    harm(folder / "30")
    checkpoints = Checkpoints(folder)
    found = checkpoints.restore(small(0))
    assert found.generation == 20 and found.record == {"rows": 20}
    assert_same(found.state, small(20))
    (skipped,) = found.skipped
    assert skipped.path == folder / "30" and str(folder / "30") in str(skipped)
    assert re.search(reason, skipped.reason), skipped.reason


FORGED = {
    "generation": (None, "30", 31, 30.0, ...),
    "score": ("1", True, 10**400, [], ...),
    "record": (None, [], "x", ...),
    "leaves": (None, {}, [3], [{}], [{"path": 1, "shape": [], "dtype": "x"}], [{"path": "a", "shape": [-1]}]),
}


@pytest.mark.parametrize("name", FORGED)
def test_a_manifest_of_sound_checksums_that_no_run_writes_is_passed_over(folder, name):
    content = read_manifest(folder / "30")
    for value in FORGED[name]:
        forged = {each: x for each, x in {**content, name: value}.items() if x is not ...}
        write_manifest(folder / "30", forged)
        checkpoints = Checkpoints(folder)
        assert checkpoints.generations() == [10, 20] and checkpoints.best() is None
        found = checkpoints.restore(small(0))
        assert found.generation == 20
        assert f"has '{name}' as no run writes it" in found.skipped[0].reason


def test_any_flipped_bit_of_any_file_is_found(folder):
    checkpoint = folder / "30"
    rng = np.random.default_rng(0)
    for path in sorted(p for p in checkpoint.rglob("*") if p.is_file()):
        whole = path.read_bytes()
        for where in (0, *rng.random(3), 1 - 1e-9) if whole else ():
            flip(path, where)
            try:
                verify(checkpoint)
            except DamagedError:
                pass
            else:
                pytest.fail(f"{path.name} at {where}")
            path.write_bytes(whole)
    assert verify(checkpoint)["generation"] == 30


def test_several_are_skipped_and_all_damaged_is_an_error(folder):
    cut(folder / "30")
    flip(data(folder / "20"))
    found = Checkpoints(folder).restore(small(0))
    assert found.generation == 10 and [one.path.name for one in found.skipped] == ["30", "20"]
    (folder / "10" / MANIFEST).unlink()
    with pytest.raises(RunError, match=r"(?s)Every checkpoint in .*damaged: .*/30: .*/20: .*/10: half-written"):
        Checkpoints(folder).restore(small(0))


def test_one_asked_for_by_its_generation_is_not_replaced_by_another(folder):
    cut(folder / "20")
    with pytest.raises(RunError, match=r"generation 20 is damaged: .*/20: .* bytes"):
        Checkpoints(folder).restore(small(0), generation=20)


def test_a_first_save_that_was_cut_short_is_as_none(folder):
    for name in ("10", "20"):
        shutil.rmtree(folder / name)
    (folder / "30" / MANIFEST).unlink()
    assert Checkpoints(folder).restore(small(0)) is None


def test_saving_goes_on_over_the_damaged_and_clears_what_was_left(folder):
    cut(folder / "30")
    for left in ("40", "50.orbax-checkpoint-tmp", "5.removed"):
        (folder / left).mkdir()
        (folder / left / "part").write_bytes(b"x")
    (folder / "notes").mkdir()
    (folder / "notes.txt").write_text("mine")
    with Checkpoints(folder, keep=2) as checkpoints:
        assert checkpoints.restore(small(0)).generation == 20
        checkpoints.save(30, small(31), {"rows": 31})
        checkpoints.wait()
        assert checkpoints.generations() == [20, 30]
        found = checkpoints.restore(small(0))
    assert_same(found.state, small(31))
    assert found.skipped == () and found.record == {"rows": 31}
    assert sorted(path.name for path in folder.iterdir()) == ["20", "30-1", "notes", "notes.txt"]


def test_a_damaged_one_takes_no_place_among_those_kept(folder):
    cut(folder / "30")
    with Checkpoints(folder, keep=2) as checkpoints:
        checkpoints.restore(small(0))
        checkpoints.save(40, small(40), {})
        checkpoints.wait()
        assert checkpoints.generations() == [20, 40]


def test_a_newer_format_is_said_to_be_one(tmp_path, monkeypatch):
    from eggroll.training.folder import integrity

    monkeypatch.setattr(integrity, "_FORMAT", 2)
    write_manifest(tmp_path, {})
    monkeypatch.undo()
    with pytest.raises(DamagedError, match="has format 2; this version of eggroll reads 1"):
        read_manifest(tmp_path)
