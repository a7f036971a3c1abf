"""Pytrees as flat dictionaries of arrays by path, with a table of what they are, and back; `.npz` files of such."""

from __future__ import annotations

import io
import math
import struct
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import IO, Any

import jax
import jax.numpy as jnp
import numpy as np

from eggroll.engine.annotations import PyTree
from eggroll.engine.paths import leaf_paths, unique_paths
from eggroll.training.errors import RunError
from eggroll.training.folder.disk import open_to_read
from eggroll.training.folder.files import whole_file

HEAD = 12 + 10_000  # bytes of an array's head: numpy's own bound on what it describes
BLOCK = 1 << 20
RATIO, SMALL = 200, 1 << 28  # of bytes held to bytes in the file, for files of more than so many held
Shapes = Mapping[str, tuple[int, ...]]
_SHOWN = 10


def by_path(tree: PyTree) -> dict[str, np.ndarray]:
    """The leaves as NumPy arrays, under the paths by which `eggroll explain` names them.

    Example:
        >>> by_path({"layer": {"bias": np.zeros(2)}})
        {'layer/bias': array([0., 0.])}
    """
    return {path: np.asarray(leaf) for path, leaf in zip(leaf_paths(tree), jax.tree.leaves(tree), strict=True)}


def save_arrays(path: Path, arrays: Mapping[str, np.ndarray]) -> None:
    """Writes an `.npz` file, whole or not at all.

    Raises:
        RunError: it cannot be written.
    """
    with whole_file(path) as file:
        write_npz(file, arrays)


def write_npz(file: IO[bytes], arrays: Mapping[str, Any]) -> None:
    """Writes what `numpy.savez` would, whose arguments forbid some names: `"file"` is one.

    Example:
        >>> import io
        >>> write_npz(file := io.BytesIO(), {"file": np.arange(3)})
        >>> _ = file.seek(0)
        >>> np.load(file)["file"]
        array([0, 1, 2])
    """
    with zipfile.ZipFile(file, "w") as archive:
        for name, array in arrays.items():
            with archive.open(zipfile.ZipInfo(f"{name}.npy"), "w", force_zip64=True) as entry:
                np.lib.format.write_array(entry, np.asanyarray(array), allow_pickle=False)


def read_arrays(path: Path, shapes: Shapes | None = None, mend: str = "Restore it from a copy.") -> dict[str, Any]:
    """The arrays of an `.npz` file by name; nothing in it is executed, and no more is unpacked than it may hold.

    Args:
        path: the file.
        shapes: of the arrays that are wanted, by name: others are not unpacked. Default None: all that are there, which
            may be larger than their file as far as arrays of numbers can be expected to be.
        mend: a sentence that says what to do where it cannot be read.

    Raises:
        RunError: no such file, none of arrays of numbers, or with others than `shapes`.

    Example:
        >>> import tempfile
        >>> path = Path(tempfile.mkdtemp()) / "a.npz"
        >>> save_arrays(path, {"w": np.zeros((2, 3), np.float32)})
        >>> read_arrays(path)["w"].shape
        (2, 3)
        >>> read_arrays(path, {"w": (3, 2)})
        Traceback (most recent call last):
        eggroll.training.errors.RunError: cannot read parameters from '...' (ValueError: 'w' has the shape ...
    """
    try:
        with open_to_read(path) as file, zipfile.ZipFile(file) as archive:
            entries = _entries(archive)
            if shapes is None:
                _check_sizes(entries, file)
            elif shapes.keys() != entries.keys():
                odd = sorted(shapes.keys() ^ entries.keys())
                raise ValueError(f"it lacks, or has besides, {', '.join(odd[:5])}{', …' if len(odd) > 5 else ''}")
            return {name: _array(archive, name, entries[name], shapes) for name in entries}
    except Exception as why:  # files that were made to fail do so in many ways
        raise RunError(f"cannot read parameters from '{path}' ({type(why).__name__}: {why}). {mend}") from why


def _entries(archive: zipfile.ZipFile) -> dict[str, zipfile.ZipInfo]:
    """What an archive holds, by the arrays' names."""
    found: dict[str, zipfile.ZipInfo] = {}
    for info in archive.infolist():
        name = info.filename.removesuffix(".npy")
        if name == info.filename or name in found or ".." in PurePosixPath(name).parts:
            raise ValueError(f"{info.filename[:100]!r} is no array's name, or there twice")
        if info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
            raise ValueError(f"{name!r} is packed in another way than numpy's")
        found[name] = info
    return found


def _check_sizes(entries: Mapping[str, zipfile.ZipInfo], file: IO[bytes]) -> None:
    held, size = sum(info.file_size for info in entries.values()), file.seek(0, io.SEEK_END)
    if held > max(SMALL, RATIO * size):
        raise ValueError(f"{size} bytes say that they unpack to {held}")


def _array(archive: zipfile.ZipFile, name: str, info: zipfile.ZipInfo, shapes: Shapes | None) -> np.ndarray:
    """An array whose head, read first, says how many bytes follow."""
    with archive.open(info) as entry:
        start = entry.read(HEAD)
        shape, fortran, dtype, begins = _head(start)
        if dtype.kind not in "biufcV" or dtype.names is not None or dtype.subdtype is not None:
            raise ValueError(f"{name!r} has the dtype {dtype}: numbers are required")
        if shapes is not None and shape != tuple(shapes[name]):
            raise ValueError(f"{name!r} has the shape {list(shape)}, not {list(shapes[name])}")
        size = math.prod(shape) * dtype.itemsize
        if min(shape, default=0) < 0 or info.file_size != begins + size:
            raise ValueError(f"{name!r} has {info.file_size - begins} bytes for the shape {list(shape)} of {dtype}")
        data = np.empty(size, np.uint8)
        at = len(start) - begins
        data[:at] = np.frombuffer(start, np.uint8)[begins:]
        while at < size:
            got = entry.read(min(size - at, BLOCK))
            if not got:
                raise ValueError(f"{name!r} is cut")
            data[at : at + len(got)] = np.frombuffer(got, np.uint8)
            at += len(got)
        if entry.read(1):
            raise ValueError(f"{name!r} has more bytes than it says")
    return data.view(dtype).reshape(shape, order="F" if fortran else "C")


def _head(start: bytes) -> tuple[tuple[int, ...], bool, np.dtype, int]:
    """(shape, whether in Fortran's order, dtype, length of the head) of an array; its text is read, not executed."""
    stream = io.BytesIO(start)
    version = np.lib.format.read_magic(stream)
    size = struct.Struct("<H" if version == (1, 0) else "<I")
    (length,) = size.unpack_from(start, stream.tell())
    if version not in ((1, 0), (2, 0)) or stream.tell() + size.size + length > len(start):
        raise ValueError(f"a head of version {version} and {length} bytes")
    read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    shape, fortran, dtype = read(stream)
    return shape, fortran, dtype, stream.tell()


def flatten(state: Any) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """The arrays of a pytree by their paths, and a table (JSON) of path, shape and dtype of all its leaves.

    Keys of `jax.random` become their integers. Arrays without elements stand in the table only.

    Raises:
        RunError: a leaf is not an array.

    Example:
        >>> arrays, table = flatten({"key": jax.random.key(1), "mean": jnp.zeros((2, 0))})
        >>> sorted(arrays), [(row["path"], row["dtype"]) for row in table]
        (['key'], [('key', 'key<fry>'), ('mean', 'float32')])
    """
    leaves = jax.tree.leaves(state)
    table = [_row(path, leaf) for path, leaf in zip(unique_paths(state), leaves, strict=True)]
    plain = {row["path"]: _plain(leaf) for row, leaf in zip(table, leaves, strict=True) if np.size(leaf)}
    return plain, table


def check_fits(table: Sequence[Mapping[str, Any]], like: PyTree, where: str) -> None:
    """Raises `RunError`, with the paths, if what `table` describes is not what `like` asks for."""
    saved = {row["path"]: _kind(row) for row in table}
    asked = {row["path"]: _kind(row) for row in map(_row, unique_paths(like), jax.tree.leaves(like))}
    wrong = [f"{path} is not in the checkpoint" for path in asked if path not in saved]
    wrong += [f"{path} is in the checkpoint only" for path in saved if path not in asked]
    wrong += [
        f"{path} is {saved[path]} in the checkpoint and {asked[path]} here"
        for path in asked
        if saved.get(path, asked[path]) != asked[path]
    ]
    if wrong:
        more = f"; and {len(wrong) - _SHOWN} more" if len(wrong) > _SHOWN else ""
        raise RunError(
            f"The checkpoint {where} is of another model or optimizer than this run's: "
            f"{'; '.join(wrong[:_SHOWN])}{more}. Restore it with the settings that it was saved with."
        )


@dataclass(frozen=True)
class Place:
    """What to read an array as.

    Attributes:
        dtype: of what was written; of a key its integers'.
        sharding: None where NumPy is to have it first.
    """

    dtype: np.dtype
    sharding: Any


def places(table: Sequence[Mapping[str, Any]], like: PyTree) -> dict[str, Place]:
    """For each array of `flatten`, what to read it as."""
    leaves = dict(zip(unique_paths(like), jax.tree.leaves(like), strict=True))
    wanted = [(row["path"], leaves[row["path"]]) for row in table if 0 not in row["shape"]]
    return {path: Place(np.dtype(np.uint32 if _is_key(x) else x.dtype), _read_with(x)) for path, x in wanted}


def unflatten(arrays: Mapping[str, Any], table: Sequence[Mapping[str, Any]], like: PyTree) -> Any:
    """The pytree of `flatten` in the structure of `like`, each leaf where the leaf of `like` lies."""
    rows = {row["path"]: row for row in table}
    leaves, structure = jax.tree.flatten(like)
    back = [_back(arrays.get(path), rows[path], leaf) for path, leaf in zip(unique_paths(like), leaves, strict=True)]
    return jax.tree.unflatten(structure, back)


def _row(path: str, leaf: Any) -> dict[str, Any]:
    if not hasattr(leaf, "dtype") or not hasattr(leaf, "shape"):
        raise RunError(
            f"{path} of the state is a {type(leaf).__name__}; a checkpoint keeps arrays. Make it one with jnp.asarray, "
            "or put it into the record."
        )
    row = {"path": path, "shape": list(leaf.shape), "dtype": str(leaf.dtype)}
    return {**row, "impl": str(jax.random.key_impl(leaf))} if _is_key(leaf) and isinstance(leaf, jax.Array) else row


def _kind(row: Mapping[str, Any]) -> str:
    return f"{row['dtype']}[{','.join(map(str, row['shape']))}]"


def _is_key(leaf: Any) -> bool:
    return jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)


def _plain(leaf: Any) -> Any:
    leaf = jax.random.key_data(leaf) if _is_key(leaf) else leaf
    if isinstance(leaf, jax.Array) and (jax.process_count() == 1 or not leaf.is_fully_addressable):
        return leaf
    return np.array(leaf)  # a copy; Orbax refuses arrays that each of several processes has for itself


def _default() -> Any:
    return jnp.zeros(()).sharding


def _sharding(like: PyTree) -> Any:
    """Where the leaf of `like` lies; None if JAX puts things there unasked, in which case they can still move."""
    sharding = getattr(like, "sharding", None)
    return None if sharding == _default() else sharding


def _read_with(like: PyTree) -> Any:
    sharding = _sharding(like)
    return sharding if jax.process_count() == 1 or sharding is None or not sharding.is_fully_addressable else None


def _back(array: Any, row: Mapping[str, Any], like: PyTree) -> Any:
    if array is None:
        array = np.zeros(row["shape"], like.dtype)
    if isinstance(like, np.generic):
        return np.asarray(array)[()]
    if isinstance(like, np.ndarray):
        return np.asarray(array)
    if isinstance(array, np.ndarray):
        sharding = _sharding(like)
        array = jnp.array(array) if sharding is None else jax.device_put(array, sharding)
    return jax.random.wrap_key_data(array, impl=row["impl"]) if _is_key(like) else array
