"""Files that are damaged, or made to do harm: loaded as they were, or refused by name, soon and in little memory."""

from __future__ import annotations

import json
import os
import random
import shutil
import struct
from pathlib import Path

import jax
import numpy as np
import pytest
from flax import nnx

from eggroll import llm
from eggroll.training.errors import RunError
from tests.llm import tiny
from tests.llm.model.test_gguf import write

CODE = {"AutoConfig": "own.C", "AutoTokenizer": ["own.T", "own.T"], "AutoModelForCausalLM": "own.M"}


@pytest.fixture(scope="module")
def base(tmp_path_factory) -> Path:
    folder = tiny.folder(tmp_path_factory.mktemp("models") / "base")
    (folder / "generation_config.json").write_text('{"eos_token_id": [1, 3], "stop_strings": ["x"]}')
    (folder / "own.py").write_text("raise SystemExit('this code ran')")
    return folder


@pytest.fixture
def folder(base, tmp_path) -> Path:
    return Path(shutil.copytree(base, tmp_path / "model"))


def pipe(file: Path) -> None:
    file.unlink(missing_ok=True)
    os.mkfifo(file)


def device(file: Path) -> None:
    file.unlink(missing_ok=True)
    file.symlink_to("/dev/zero")


def huge(file: Path) -> None:
    with file.open("wb") as opened:
        opened.truncate(1 << 40)


@pytest.mark.parametrize("name", ["config.json", "tokenizer.json", "special_tokens_map.json", "chat_template.jinja"])
@pytest.mark.parametrize("how", [pipe, device, huge])
def test_what_never_ends_is_not_read(folder, name, how):
    how(folder / name)
    with pytest.raises(RunError, match=rf"{name} (is no ordinary file|has 1,099,511,627,776 bytes)"):
        llm.load(folder)


def test_weights_that_never_end_are_not_read(folder, tmp_path):
    pipe(folder / "model.safetensors")
    with pytest.raises(RunError, match=r"model\.safetensors is no ordinary file"):
        llm.load(folder)
    for how in (pipe, device):
        how(tmp_path / "a.gguf")
        with pytest.raises(RunError, match=r"a\.gguf', which is neither a file nor a folder"):
            llm.load(tmp_path / "a.gguf")


@pytest.mark.parametrize("name", ["../out.safetensors", "/dev/zero", "link", "out/../../out.safetensors", 5, "\ud800"])
def test_an_index_names_files_of_its_folder_alone(folder, tmp_path, name):
    (folder / "model.safetensors").rename(tmp_path / "out.safetensors")
    if name == "link":
        (folder / name).symlink_to(tmp_path / "out.safetensors")
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"a": name}}))
    with pytest.raises(RunError, match=r"index\.json (names .*, which is no file of its folder|is no index)"):
        llm.load(folder)


@pytest.mark.parametrize("name", ["chat_template.jinja", "additional_chat_templates/a.jinja", "tokenizer.json"])
def test_no_file_is_a_link_out_of_the_folder(folder, tmp_path, name):
    (tmp_path / "secret").write_text("{}")
    (folder / name).parent.mkdir(exist_ok=True)
    (folder / name).unlink(missing_ok=True)
    (folder / name).symlink_to(tmp_path / "secret")
    with pytest.raises(RunError, match=rf"{name} is a link out of its folder; copy the file"):
        llm.load(folder)


def test_an_index_of_a_pipe_and_the_hubs_links(folder, tmp_path):
    (folder / "model.safetensors.index.json").write_text('{"weight_map": {"a": "weights"}}')
    (folder / "model.safetensors").rename(tmp_path / "weights")
    pipe(folder / "weights")
    with pytest.raises(RunError, match="weights is no ordinary file"):
        llm.load(folder)
    (folder / "weights").unlink()  # as huggingface_hub keeps a model
    (tmp_path / "blobs").mkdir()
    (tmp_path / "weights").rename(tmp_path / "blobs/1234")
    (folder / "weights").symlink_to("../../blobs/1234")
    (tmp_path / "snapshots").mkdir()
    assert llm.load(folder.rename(tmp_path / "snapshots/1")).config.layers == 2


def deep(file: Path) -> None:
    file.write_text('{"a":' * 100_000)


def deeper_than_it_can_be_written(file: Path) -> None:
    file.write_text('{"a":' * 500 + "1" + "}" * 500)


def listed(file: Path) -> None:
    file.write_text("[1]")


def latin(file: Path) -> None:
    file.write_bytes(b'{"a": "\xe9"}')


@pytest.mark.parametrize("name", ["config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json"])
@pytest.mark.parametrize("how", [deep, deeper_than_it_can_be_written, listed, latin])
def test_json_that_is_none_is_named(folder, name, how):
    how(folder / name)
    with pytest.raises(RunError, match=rf".*{name}.*not JSON as required"):
        llm.load(folder)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_hidden_layers": 10**9}, "num_hidden_layers=1000000000; a whole number from 1 to 20"),
        ({"model_type": "qwen2", "num_hidden_layers": 10**9}, "num_hidden_layers=1000000000"),
        ({"hidden_size": 2**31 - 8}, "model.embed_tokens.weight has the shape"),
        ({"vocab_size": 10**30}, "vocab_size=1000000000000000000000000000000; a whole number"),
        ({"intermediate_size": -3}, "intermediate_size=-3"),
        ({"rms_norm_eps": float("nan")}, "epsilon=nan; a finite number"),
        ({"rope_theta": -1.0}, r"rope_theta.*-1\.0; a finite number"),
        (
            {"rope_scaling": {"rope_type": "linear", "factor": float("inf")}},
            "factor.*inf; a finite number|does not accept",
        ),
        ({"rope_scaling": {"rope_type": "linear"}}, "factor.*None; a finite number|does not accept"),
        ({"tie_word_embeddings": "false"}, "tie_word_embeddings"),
        ({"model_type": ["llama"]}, "architecture"),
        ({"architectures": [5]}, "other kinds|does not accept"),
        ({"auto_map": CODE}, "auto_map="),
        ({"eos_token_id": 260}, "config.json has eos_token_id=260; numbers from 0 to 259"),
        ({"pad_token_id": 260}, "config.json has pad_token_id=260; a number from 0 to 259"),
        ({"bos_token_id": -5}, "config.json has bos_token_id=-5; a number from 0 to 259"),
    ],
)
def test_settings_that_no_model_has_are_named(folder, changes, message):
    file = folder / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))
    with pytest.raises(RunError, match=rf"(?s){folder}.*({message})"):
        llm.load(folder)


@pytest.mark.parametrize("ends", [260, -1, [1, 999], "a", True, 1.5, {}])
def test_tokens_that_the_model_cannot_write_end_nothing(folder, ends):
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": ends}))
    with pytest.raises(RunError, match=r"generation_config\.json has eos_token_id=.*; numbers from 0 to 259"):
        llm.load(folder)


@pytest.mark.parametrize(
    "name", ["config.json", "tokenizer_config.json", "generation_config.json", "processor_config.json"]
)
def test_code_of_a_folder_never_runs_and_nobody_is_asked(folder, name, monkeypatch, capsys):
    monkeypatch.setattr("builtins.input", lambda *_: pytest.fail("asked"))
    file = folder / name
    file.write_text(json.dumps((json.loads(file.read_text()) if file.is_file() else {}) | {"auto_map": CODE}))
    if name in ("config.json", "tokenizer_config.json"):
        with pytest.raises(RunError, match="auto_map="):
            llm.load(folder)
    else:  # which nothing of ours is made from
        assert llm.load(folder).stop == (1, 3)
    assert capsys.readouterr().out == ""


def test_numbers_of_tokens_far_beyond_their_count(folder):
    made = json.loads((folder / "tokenizer.json").read_text())
    made["model"]["vocab"]["far"] = 10**9
    (folder / "tokenizer.json").write_text(json.dumps(made))
    with pytest.raises(RunError, match=r"tokenizer\.json has \d+ tokens, and one with the number 1000000000"):
        llm.load(folder)


def test_names_that_the_system_does_not_take():
    for name in ("x" * 5000, "/tmp/" + "x" * 300 + ".gguf"):
        with pytest.raises(RunError, match=r"xxx'… \(\d+ characters\), which cannot be read \(File name too long\)"):
            llm.load(name)
    with pytest.raises(RunError, match="no such folder or file"):
        llm.load("a\0b")


VALUES = [
    None,
    True,
    -1,
    0,
    10**9,
    10**30,
    1.5,
    float("nan"),
    float("inf"),
    "",
    "x" * 99,
    [],
    ["a"],
    {},
    {"a": 1},
    "\ud800",
]


def other_json(draw: random.Random, file: Path) -> None:
    value = json.loads(file.read_text())
    place = value
    while isinstance(place, (dict, list)) and place:
        key = draw.choice(list(place) if isinstance(place, dict) else range(len(place)))
        if not isinstance(place[key], (dict, list)) or draw.random() < 0.4:
            place[key] = draw.choice(VALUES)
            break
        place = place[key]
    file.write_text(json.dumps(value))


def other_bytes(draw: random.Random, file: Path) -> None:
    content = bytearray(file.read_bytes())
    place = draw.randrange(min(len(content), 3000))
    how = draw.randrange(5)
    if how < 2:
        content[place] = draw.randrange(256)
    elif how == 2:
        content[place : place + 8] = struct.pack("<Q", draw.choice([0, 1, 2**40, 2**63, 2**64 - 1]))
    elif how == 3:
        del content[draw.randrange(len(content)) :]
    else:
        content += bytes(draw.randrange(33, 99))
    file.write_bytes(content)


def bits(language) -> list[bytes]:
    leaves = jax.tree.leaves(nnx.to_pure_dict(nnx.split(language.model, nnx.Param)[1]))
    return [np.asarray(leaf).tobytes() for leaf in leaves]


@pytest.mark.parametrize("seed", [0, pytest.param(range(1, 8), marks=pytest.mark.slow)])
def test_damage_of_any_kind_is_refused_or_changes_nothing_of_the_shapes(base, tmp_path, seed):
    """A byte within a tensor may be another; all else that loads has the sizes of what it was."""
    whole, _ = write(tmp_path, "llama", "smollm2")
    sizes = [len(leaf) for leaf in bits(llm.load(base))]
    names = [file.name for file in base.iterdir() if file.suffix != ".py"]
    refused = 0
    for draw in (random.Random(each) for each in ([seed] if isinstance(seed, int) else seed)):
        for round in range(40):
            if round % 2:
                file = shutil.copy(whole, tmp_path / "broken.gguf")
                other_bytes(draw, Path(file))
            else:
                shutil.rmtree(tmp_path / "broken", ignore_errors=True)
                file = Path(shutil.copytree(base, tmp_path / "broken"))
                name = draw.choice(names)
                (other_json if name.endswith("json") and draw.random() < 0.7 else other_bytes)(draw, file / name)
            try:
                assert [len(leaf) for leaf in bits(llm.load(file))] == sizes
            except RunError:
                refused += 1
    assert refused > 10
