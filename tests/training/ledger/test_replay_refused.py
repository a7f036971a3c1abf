"""What a replay refuses, and the files of `eggroll replay`."""

from __future__ import annotations

import json
import pickle
import re
import subprocess
import sys
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import optax
import pytest

from eggroll.training.errors import RunError
from eggroll.training.folder.arrays import by_path, save_arrays
from eggroll.training.folder.layout import INITIAL
from eggroll.training.ledger.format import GENERATION, MAGIC, SETTINGS, first_digest, pack
from eggroll.training.ledger.reader import Reader, Settings, summarize
from eggroll.training.ledger.rebuilding import Replay, replay
from eggroll.training.ledger.replay_files import describe, replay_files, verify
from eggroll.training.optimizers import named
from tests.training.ledger_runs import assert_same_state, boundaries, mlp, run, strategy


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A run folder, as far as a replay needs it, and the states of the run."""
    folder = tmp_path_factory.mktemp("run")
    states = run(folder / "ledger.bin", 4, base_name="small")
    save_arrays(folder / INITIAL, by_path(mlp()))
    return folder, states


def test_a_wrong_base_is_refused_by_the_names_of_its_parameters(made):
    ledger = made[0] / "ledger.bin"
    other = mlp()
    other["layers"][0]["bias"] = other["layers"][0]["bias"].at[3].add(1e-6)
    with pytest.raises(RunError, match=r"1 of 4 parameters.*'small'.*layers/0/bias\."):
        replay(other, ledger)
    with pytest.raises(RunError, match="layers/0/bias"):
        replay(mlp(jnp.bfloat16), ledger)
    with pytest.raises(RunError, match="without layers/1/bias, layers/1/kernel"):
        replay({"layers": mlp()["layers"][:1]}, ledger)
    with pytest.raises(RunError, match=r"without layers/0/bias.* with kernel"):
        replay({"kernel": mlp()["layers"][0]["kernel"]}, ledger)
    wide = mlp()
    wide["layers"][1]["bias"] = jnp.zeros(4)
    with pytest.raises(RunError, match=r"shape \(4,\) for 'layers/1/bias'"):
        replay(wide, ledger)


@pytest.mark.parametrize("generation", [5, 10**12, -1])
def test_a_generation_that_the_ledger_does_not_have(made, generation):
    with pytest.raises(RunError, match=f"generation={generation}"):
        replay(mlp(), made[0] / "ledger.bin", generation=generation)


def test_a_ledger_cut_short_is_replayed_to_its_end(made, tmp_path):
    folder, states = made
    path = tmp_path / "ledger.bin"
    path.write_bytes((folder / "ledger.bin").read_bytes()[:-1])
    assert_same_state(replay(mlp(), path), states[3])
    with pytest.raises(RunError, match=r"ends with generation 3, 151 bytes"):
        replay(mlp(), path, generation=4)
    path.write_bytes(MAGIC)
    with pytest.raises(RunError, match="no whole record"):
        replay(mlp(), path)


def test_an_altered_ledger_is_refused_from_there_on(made, tmp_path):
    folder, states = made
    data = bytearray((folder / "ledger.bin").read_bytes())
    data[boundaries(bytes(data))[3] + 100] ^= 16  # generation 2
    path = tmp_path / "ledger.bin"
    path.write_bytes(data)
    with pytest.raises(RunError, match="record 3, of generation 2"):
        replay(mlp(), path)
    assert_same_state(replay(mlp(), path, generation=1), states[1])


def test_an_optimizer_without_a_name_has_to_be_given_and_is_checked(tmp_path):
    path = tmp_path / "ledger.bin"
    states = run(path, 3, es=strategy(optimizer=optax.adam(0.01, b2=0.99)))
    with pytest.raises(RunError, match="does not name its optimizer"):
        replay(mlp(), path)
    assert_same_state(replay(mlp(), path, optimizer=optax.adam(0.01, b2=0.99)), states[-1])
    for wrong in (optax.adam(0.011, b2=0.99), optax.sgd(0.01)):
        with pytest.raises(RunError, match=r"generation 0 has update norm .*the optimizer is not the run's"):
            replay(mlp(), path, optimizer=wrong)


def test_a_named_optimizer_needs_no_other(made):
    folder, states = made
    with pytest.raises(RunError, match="Leave optimizer out"):
        replay(mlp(), folder / "ledger.bin", optimizer=named("sgd", learning_rate=0.1))
    assert_same_state(replay(mlp(), folder / "ledger.bin", optimizer=optax.sgd(1.0)), states[-1])


def changed(path: Path, change) -> bytes:
    """The ledger with other settings and sound checksums, as another program could write it."""
    data, digest = MAGIC, first_digest()
    settings = None
    for entry in Reader(path):
        if isinstance(entry, Settings):
            content = json.loads(entry.payload)
            change(content)
            settings = Settings.of(content)
            record, digest = pack(SETTINGS, settings.payload, digest)
        else:
            object.__setattr__(entry, "settings", settings.digest)
            record, digest = pack(GENERATION, entry.pack(), digest)
        data += record
    return data


@pytest.mark.parametrize(
    ("change", "why"),
    [
        (lambda c: c.update(format=2), "format 2"),
        (lambda c: c.update(x64=True), "jax_enable_x64"),
        (lambda c: c.update(plan=None), "does not understand .TypeError: .NoneType"),
        (lambda c: c["plan"][0].update(colour="red"), "does not understand .TypeError"),
        (lambda c: c.update(momentum=0.9), "does not understand.*settings with 'momentum'"),
        (lambda c: c["base"].update(offset=1), "does not understand.*base with 'offset'"),
        (lambda c: c.update(distribution="cauchy"), "does not understand.*distribution='cauchy'"),
        (lambda c: c["optimizer"].update(clip=1.0), "optimizer with 'clip'"),
        (lambda c: c.update(population=10), "8 members"),
        (lambda c: c["plan"][0].update(kind="both"), "does not understand.*both"),
        (lambda c: c.update(population=7), "does not understand.*even population"),
        (lambda c: c.update(optimizer={"name": "os.system", "arguments": {"command": "true"}}), "os.system"),
        (lambda c: c.update(optimizer={"name": "__import__", "arguments": {}}), "__import__"),
        (lambda c: c.update(optimizer=["adam"]), "description of an optimizer"),
        (lambda c: c["plan"][0].update(kind="frozen"), "norm"),
        (lambda c: c.update(key=[1, 2]), None),  # every generation has the key, too
        (lambda c: c.update(sigma=0.06), "generation 0 has sigma=.*, but its settings 0.06"),
    ],
)
def test_settings_that_make_no_sense_are_refused_whatever_their_checksums(made, tmp_path, change, why):
    path = tmp_path / "ledger.bin"
    path.write_bytes(changed(made[0] / "ledger.bin", change))
    assert summarize(path).generations == 4
    if why is None:
        assert_same_state(replay(mlp(), path), made[1][-1])
        return
    with pytest.raises(RunError, match=why):
        replay(mlp(), path)


def test_nothing_of_a_pickle_is_executed(made, tmp_path):
    class Bomb:
        def __reduce__(self):
            return Path.touch, (tmp_path / "boom",)

    (tmp_path / "ledger.bin").write_bytes(pickle.dumps(Bomb()))
    (tmp_path / "base.npz").write_bytes(pickle.dumps(Bomb()))
    np.savez(tmp_path / "object.npz", **{"layers/0/bias": np.array([Bomb()], dtype=object)})
    for base, ledger in (
        (made[0], tmp_path / "ledger.bin"),
        (tmp_path / "base.npz", made[0]),
        (tmp_path / "object.npz", made[0]),
    ):
        with pytest.raises(RunError, match=r"no ledger|cannot read parameters"):
            replay_files(base, ledger, tmp_path / "out.npz")
    assert not (tmp_path / "boom").exists()
    assert not (tmp_path / "out.npz").exists()


def test_nothing_that_reads_files_executes_them():
    import eggroll

    package = Path(eggroll.__file__).parent
    found = []
    for file in package.rglob("*.py"):
        text = file.read_text(encoding="utf-8")
        if re.search(r"import pickle|allow_pickle=True|(?<![\w.])(eval|exec)\(|torch.load|joblib", text):
            found.append(file.relative_to(package).as_posix())
    # These hand a reward over to processes of their own.
    assert [name for name in found if not name.startswith("llm/rewards/")] == []
    assert "llm/rewards/worker.py" in found  # or the search finds nothing at all


def test_files_to_file(made, tmp_path):
    folder, states = made
    out = tmp_path / "out.npz"
    done = replay_files(folder, folder, out, 3)
    assert (done.generation, done.inexact, done.parameters) == (3, 0, 6 * 8 + 8 + 8 * 3 + 3)
    with np.load(out, allow_pickle=False) as file:
        assert set(file.files) == {"layers/0/bias", "layers/0/kernel", "layers/1/bias", "layers/1/kernel"}
        assert (file["layers/1/kernel"] == np.asarray(states[3].params["layers"][1]["kernel"])).all()
    assert [p.name for p in tmp_path.iterdir()] == ["out.npz"]
    assert "generation 3" in str(done) and "bit for bit" in str(done)
    before = out.read_bytes()
    with pytest.raises(RunError, match="overwrite"):
        replay_files(folder / INITIAL, folder / "ledger.bin", out)
    assert out.read_bytes() == before
    last = replay_files(folder / INITIAL, folder / "ledger.bin", out, overwrite=True)
    assert last.generation == 4 and last.digest != done.digest
    with pytest.raises(RunError, match="cannot write"):
        replay_files(folder, folder, tmp_path / "nowhere" / "out.npz")
    with pytest.raises(RunError, match="cannot read parameters"):
        replay_files(tmp_path, folder, tmp_path / "other.npz")


@pytest.mark.slow
def test_bfloat16_survives_the_files(tmp_path):
    states = run(tmp_path / "ledger.bin", 2, base=mlp(jnp.bfloat16))
    save_arrays(tmp_path / INITIAL, by_path(mlp(jnp.bfloat16)))
    replay_files(tmp_path, tmp_path, tmp_path / "out.npz")
    with np.load(tmp_path / "out.npz", allow_pickle=False) as file:
        got = file["layers/0/kernel"].view(jnp.bfloat16)
    assert got.tobytes() == np.asarray(states[-1].params["layers"][0]["kernel"]).tobytes()


def test_verify(made, tmp_path):
    data = (made[0] / "ledger.bin").read_bytes()
    assert verify(made[0]).generations == 4
    (tmp_path / "ledger.bin").write_bytes(data[:-5])
    text = describe(verify(tmp_path))
    assert "3 generations" in text and "147 bytes" in text and "small" in text
    assert verify(made[0]).digest in describe(verify(made[0]))
    (tmp_path / "ledger.bin").write_bytes(b"")
    assert "holds nothing" in describe(verify(tmp_path)) and "whole" not in describe(verify(tmp_path))


FRESH = """
import sys
import numpy as np
from eggroll.training.ledger.replay_files import replay_files
done = replay_files(sys.argv[1], sys.argv[1], sys.argv[2])
assert done.inexact == 0, done
"""


@pytest.mark.slow
def test_a_fresh_process_rebuilds_the_same_bits(made, tmp_path):
    folder, states = made
    command = [sys.executable, "-W", "error", "-c", FRESH, str(folder), str(tmp_path / "out.npz")]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    with np.load(tmp_path / "out.npz", allow_pickle=False) as file:
        for i, layer in enumerate(states[-1].params["layers"]):
            for name, array in layer.items():
                assert file[f"layers/{i}/{name}"].tobytes() == np.asarray(array).tobytes()


def test_another_platform_shows_in_the_norms(made, tmp_path):
    """Norms that differ in the last bits, as another platform's do, are counted and no reason to refuse."""
    folder, states = made
    data, digest = MAGIC, first_digest()
    for entry in Reader(folder / "ledger.bin"):
        payload = entry.payload if isinstance(entry, Settings) else _nudged(entry).pack()
        record, digest = pack(SETTINGS if isinstance(entry, Settings) else GENERATION, payload, digest)
        data += record
    path = tmp_path / "ledger.bin"
    path.write_bytes(data)
    made_again = Replay(mlp(), path)
    assert_same_state(made_again.run(), states[-1])
    assert made_again.inexact == 2


def _nudged(entry):
    if entry.generation % 2:
        object.__setattr__(entry, "update_norm", np.nextafter(entry.update_norm, np.float32(np.inf)))
    return entry
