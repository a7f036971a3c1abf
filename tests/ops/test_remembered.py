"""What was found about a kernel is kept on disk, and a file that is not that counts for nothing."""

from __future__ import annotations

import importlib
import json
import os
import sys
from functools import partial

import jax
import pytest

from eggroll.ops import remembered, trials
from eggroll.ops.operations import rank_update_reference


@pytest.fixture(autouse=True)
def own(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))


def key():
    found = remembered.key_of(
        "rank_update", "plugged", rank_update_reference, "rademacher, float32, rank 1", jax.devices()[0]
    )
    assert found is not None
    return found


CONTENT = {"state": "right", "reason": ""}


@pytest.mark.parametrize("change", ["cut", "another", "list", "deep", "large", "writable", "folder", "pipe", "gone"])
def test_a_file_that_says_something_else_counts_for_nothing(tmp_path, change):
    assert remembered.write(key(), CONTENT) == "" and remembered.read(key()) == CONTENT
    (file,) = tmp_path.rglob("*.json")
    text = file.read_text()
    content = json.loads(text)
    written = {
        "cut": text[: len(text) // 2],
        "another": json.dumps({**content, "key": {**content["key"], "chip": "TPU v5"}}),
        "list": json.dumps([content]),
        "deep": "[" * 60000,
        "large": text + " " * remembered.LARGEST,
    }
    file.write_text(written.get(change, text))
    if change == "writable":
        os.chmod(file, 0o666)
    if change in ("folder", "pipe", "gone"):
        file.unlink()
    if change == "folder":
        file.mkdir()
    if change == "pipe":
        os.mkfifo(file)
    assert remembered.read(key()) is None
    why = remembered.write(key(), CONTENT)
    assert "IsADirectoryError" in why if change == "folder" else remembered.read(key()) == CONTENT
    assert not list(tmp_path.rglob("*.part"))


@pytest.mark.parametrize("found", [{"state": "splendid", "reason": ""}, {"state": "right"}, "right"], ids=str)
def test_only_what_is_known_counts(found):
    device = jax.devices()[0]
    case = trials.Case("rank_update", trials.WHOLE, "rademacher", "float32")
    remembered.write(key(), CONTENT)
    asked = "rank_update", "plugged", rank_update_reference, case, device.device_kind
    assert trials._recalled(asked, device) is not None
    remembered.write(key(), found)
    assert trials._recalled(asked, device) is None


def test_other_code_is_another_kernel(monkeypatch, tmp_path):
    monkeypatch.syspath_prepend(tmp_path)
    file = tmp_path / "a_kernel_of_a_test.py"
    file.write_text("def one(): ...\ndef other(): ...\n")
    module = importlib.import_module(file.stem)

    def key_of(function):
        return remembered.key_of("rank_update", "a", function, "rademacher, float32, rank 1", jax.devices()[0])

    before = key_of(module.one)
    assert before is not None and before == key_of(module.one) and before != key_of(module.other)
    file.write_text("def one(): return 1\n")
    assert key_of(module.one) != before
    for unknown in (partial(module.one), lambda *_: None, len):
        assert key_of(unknown) is None
    del sys.modules[file.stem]
