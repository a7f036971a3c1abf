"""Writes a run's ledger, one record a generation."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, BinaryIO

import jax
import numpy as np

from eggroll.strategy.noise.keys import as_threefry
from eggroll.strategy.plan.parameters import as_arrays
from eggroll.strategy.protocol import Strategy
from eggroll.strategy.update.told import narrowed
from eggroll.training.errors import RunError, abridged, mended
from eggroll.training.folder.disk import own_handle
from eggroll.training.folder.layout import holds_records
from eggroll.training.ledger.carried import Carried
from eggroll.training.ledger.format import (
    CARRIED,
    GENERATION,
    MAGIC,
    SETTINGS,
    Generation,
    Settings,
    digests,
    first_digest,
    pack,
)
from eggroll.training.ledger.reader import LedgerError, Reader
from eggroll.training.ledger.settings import differences, settings_of

_NEEDED = ("generation", "sigma", "fitness_mean", "gradient_norm", "update_norm", "fitness", "weights", "nonfinite")


class Journal:
    """The ledger of a run while it is written: an append-only file from which `replay` rebuilds the parameters.

    Every `append` hands a record to the operating system; `sync` waits until the disk has it. The settings are written
    with the first generation, when the plan is known.

    Args:
        path: the file.
        es: the strategy whose metrics are appended.
        base: the parameters that the run started from; a pytree, or a flat dictionary by path.
        key: the run's key, as given to `es.init`.
        base_name: what the base is called, such as a model's name. Default None.
        after: updates that the run has made already. Default 0: a new ledger. Otherwise the file is gone on with:
            records of generation `after` and later, which the resumed run makes again, are cut off.
        changed: whether a resumed run may have other settings than before; they are then written too. Default False.
        overwrite: whether a new run may replace a ledger. Default False.
        fsync: whether every `append` waits for the disk. Default False.

    Attributes:
        path: the file.
        generation: the generation that is appended next.
        size: bytes of the file.

    Raises:
        RunError: a ledger where a new run is to start, one that ends before `after`, was altered before it, or is of
            another base, key or other settings; a file that cannot be written.

    Example:
        >>> import jax, jax.numpy as jnp, eggroll, tempfile
        >>> from eggroll.training.ledger.rebuilding import replay
        >>> from eggroll.training.optimizers import named
        >>> base, key = {"w": jnp.zeros((4, 3))}, jax.random.key(0)
        >>> es = eggroll.ES(population=8, optimizer=named("sgd", learning_rate=0.1))
        >>> state, fitness = es.init(base, key), lambda params, x: -jnp.mean((x @ params["w"] - 1.0) ** 2)
        >>> path = tempfile.mkdtemp() + "/ledger.bin"
        >>> with Journal(path, es, base, key=key) as journal:
        ...     for _ in range(3):
        ...         state, metrics = es.step(state, fitness, jnp.eye(4))
        ...         journal.append(metrics)
        >>> bool((replay(base, path).params["w"] == state.params["w"]).all())
        True
    """

    def __init__(
        self,
        path: Path | str,
        es: Strategy,
        base: Any,
        *,
        key: jax.Array,
        base_name: str | None = None,
        after: int = 0,
        changed: bool = False,
        overwrite: bool = False,
        fsync: bool = False,
    ) -> None:
        self.path, self.generation, self.size = Path(path), after, 0
        self._es, self._key, self._base_name, self._fsync = es, as_threefry(key), base_name, fsync
        self._base = digests(as_arrays(base))
        self._written: Settings | None = None  # the last settings in the file
        self._current: tuple[Any, Settings] | None = None  # those of the plan beside them
        self._changed = changed
        self._digest = first_digest()
        self._file: BinaryIO | None = None
        if after:
            self._go_on()
        else:
            self._begin(overwrite)

    def _begin(self, overwrite: bool) -> None:
        try:
            if not overwrite and holds_records(self.path):
                raise RunError(
                    f"'{self.path}' exists: it may be the only record of a run. Resume that run, choose another "
                    "folder, or replace it with --overwrite."
                )
            self.path.unlink(missing_ok=True)  # where it is a link, what it leads to stays as it is
            self._file = self.path.open("xb", buffering=0)
        except OSError as why:
            raise self._not_writable(why) from why
        try:
            self._write(MAGIC)
        except RunError:
            self.close()
            raise

    def _go_on(self) -> None:
        """Finds the place after generation `after − 1`; whatever lies behind it, damaged or not, is cut off."""
        reader = Reader(self.path)
        end, digest = 0, b""
        try:
            for entry in reader:
                if not isinstance(entry, Settings) and entry.generation >= self.generation:
                    break
                end, digest, self._written = reader.position, reader.digest, reader.settings
        except RunError:
            if reader.next < self.generation or not end:
                raise
        if reader.next < self.generation or self._written is None:
            cut = f" and {reader.cut} bytes of a record cut short" if reader.cut else ""
            raise LedgerError(
                f"'{self.path}' ends before generation {self.generation}: it has {reader.next} generations{cut}. "
                f"Resume from a checkpoint of generation {reader.next} or before, or start a new run from what the "
                "checkpoint holds."
            )
        self._check_same(self._written, self._settings())
        self.size, self._digest = end, digest
        try:
            self._file = os.fdopen(own_handle(self.path, os.O_RDWR), "r+b", buffering=0)
            self._file.truncate(end)
            self._file.seek(end)
        except OSError as why:
            raise self._not_writable(why) from why

    def _check_same(self, old: Settings, new: Settings) -> None:
        was, now = old.content["base"], new.content["base"]
        each = dict(zip((leaf["path"] for leaf in old.content["plan"]), was["parameters"], strict=True))
        if each != self._base:
            wrong = sorted(path for path in each.keys() | self._base.keys() if each.get(path) != self._base.get(path))
            raise RunError(
                f"'{self.path}' was written for a base with other {', '.join(wrong[:5])}; give the parameters that the "
                f"run started from (the ledger's base is '{was['name'] or was['digest'][:16]}', got "
                f"'{now['name'] or now['digest'][:16]}')."
            )
        found = differences(old.content, new.content)
        if found and not self._changed:
            raise RunError(
                f"'{self.path}' was written with other settings: {'; '.join(found[:5])}. Resume with the settings of "
                "the run, or say that they have changed."
            )

    def append(self, metrics: Mapping[str, Any], carry: Any = ()) -> None:
        """Adds a generation; the operating system has it when this returns. One that moved nothing leaves no record.

        Args:
            metrics: of `es.step` or `es.tell`, generation by generation.
            carry: a pytree of numbers that the model carries on, for a replay. Default: none.

        Raises:
            RunError: metrics of another generation than the next, or without fitness and weights; a disk that is full.
                The records before stay as they are.
        """
        missing = [name for name in _NEEDED if name not in metrics]
        if missing:
            raise RunError(f"got metrics without {', '.join(missing)}; those of es.step or es.tell are required.")
        found = {k: np.asarray(v) for k, v in jax.device_get({name: metrics[name] for name in _NEEDED}).items()}
        if found["nonfinite"] == self._es.population or not found["sigma"] > 0:
            return
        if found["generation"] != self.generation:
            raise RunError(
                f"got the metrics of generation {int(found['generation'])}; '{self.path}' goes on with generation "
                f"{self.generation}. Append every generation once, in order."
            )
        if self._es.plan is None:
            raise RunError("got metrics of another ES than the ledger's, which has made no generation yet.")
        settings, data, digest = self._settings(), b"", self._digest
        if self._written is None or settings.digest != self._written.digest:
            if self._written is not None:
                self._check_same(self._written, settings)
            data, digest = pack(SETTINGS, settings.payload, digest)
        if jax.tree.leaves(carry):
            more, digest = pack(CARRIED, Carried.of(self.generation, carry).pack(), digest)
            data += more
        record, digest = pack(GENERATION, self._record(found, settings).pack(), digest)
        self._write(data + record)
        self._digest, self._written, self._changed = digest, settings, True
        self.generation += 1

    def _record(self, found: Mapping[str, np.ndarray], settings: Settings) -> Generation:
        return Generation(
            generation=int(found["generation"]),
            settings=settings.digest,
            key=np.asarray(jax.random.key_data(self._key)),
            loss=-narrowed(found["fitness_mean"]),
            **{name: found[name] for name in ("sigma", "gradient_norm", "update_norm", "fitness", "weights")},
        )

    def _settings(self) -> Settings:
        if self._current is None or self._current[0] is not self._es.plan:
            content = settings_of(self._es, self._key, self._base, self._base_name)
            if content["plan"] is None and self._written is not None:
                content["plan"] = self._written.content["plan"]
            self._current = self._es.plan, Settings.of(content)
        return self._current[1]

    def _write(self, data: bytes) -> None:
        """All of it or nothing."""
        file = self._opened()
        try:
            left = memoryview(data)
            while left:
                left = left[file.write(left) or 0 :]
            if self._fsync:
                os.fsync(file.fileno())
        except OSError as why:
            self._take_back(file)
            raise self._not_writable(why) from why
        self.size += len(data)

    def _take_back(self, file: BinaryIO) -> None:
        try:
            file.truncate(self.size)
            file.seek(self.size)
        except OSError:  # the reader, and whoever resumes, cut it off just the same
            pass

    def sync(self) -> None:
        """Waits until the disk has everything, so that it outlives a power failure.

        Raises:
            RunError: the disk does not take it.
        """
        try:
            os.fsync(self._opened().fileno())
        except OSError as why:
            raise self._not_writable(why) from why

    def close(self) -> None:
        """Ends the ledger; does nothing the second time."""
        if self._file is not None:
            self._file.close()
            self._file = None

    def __enter__(self) -> Journal:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _opened(self) -> BinaryIO:
        if self._file is None:
            raise RunError(f"the ledger '{self.path}' is closed; open a new Journal with after={self.generation}.")
        return self._file

    def _not_writable(self, why: OSError) -> RunError:
        return RunError(
            f"cannot write the ledger '{abridged(self.path)}' {mended(why)}. Its {self.generation} generations so far "
            "are whole."
        )
