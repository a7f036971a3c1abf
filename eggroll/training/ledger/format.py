"""The bytes of a ledger: how one record is packed, unpacked and checked. All numbers are little endian.

A file is `MAGIC`, then records. A record of a payload of `n` bytes takes `32 + n`:

    4   kind, `SETT`, `CARR` or `GENE`
    4   n, unsigned
    8   BLAKE2b of (digest of the record before, the 8 bytes above): a flipped bit in n is not taken for a cut
    n   payload
    16  BLAKE2b of (digest of the record before, the first 8 bytes, the payload): the record's digest

In front of the first record the digest is that of `MAGIC`. The chain makes a record that was altered, moved, removed or
taken from another ledger fail, and every one after it.

`SETT` has JSON in UTF-8. `CARR`, which may stand in front of a generation, has what the model carries along after it: 8
bytes of the generation's number, a line of JSON, `{path: [dtype, shape]}`, and the bytes of these arrays. `GENE`, one
generation of N members, takes `56 + 8·N` bytes in float32, so `88 + 8·N` as a record: 8280 for 1024 members.

    8   generation, the number of updates before it
    8   digest of the settings: BLAKE2b of the payload of the last `SETT`
    8   key of the run, two words
    4   dtypes of sigma, loss, fitness, weights: `f` float32, `d` float64
    4   N
    8   sigma, as float64, which holds a float32 exactly
    8   loss that the optimizer was given, −fitness_mean, likewise
    8   norm of the gradient and norm of the update, float32 each: what a replay is compared with
    N·4 fitness, or N·8
    N·4 weights, or N·8
"""

from __future__ import annotations

import hashlib
import json
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from eggroll.engine.paths import leaf_paths
from eggroll.training.errors import RunError
from eggroll.training.folder.disk import parse_json
from eggroll.training.folder.layout import MAGIC

FORMAT = 1  # of the settings' content
SETTINGS, CARRIED, GENERATION = b"SETT", b"CARR", b"GENE"

HEAD = struct.Struct("<4sI8s")
DIGEST = 16
_FIXED = struct.Struct("<Q8s2I4sIddff")
_CODES = {np.dtype(np.float32): b"f", np.dtype(np.float64): b"d"}
_DTYPES = {ord(code): dtype.newbyteorder("<") for dtype, code in _CODES.items()}


def first_digest() -> bytes:
    """What stands for the digest of a record in front of the first one."""
    return hashlib.blake2b(MAGIC, digest_size=DIGEST).digest()


def settings_digest(payload: bytes) -> bytes:
    """The 8 bytes by which a generation names its settings."""
    return hashlib.blake2b(payload, digest_size=8).digest()


def pack(kind: bytes, payload: bytes, before: bytes) -> tuple[bytes, bytes]:
    """A record after one with digest `before`.

    Returns:
        (the record, its digest).

    Example:
        >>> record, digest = pack(SETTINGS, b"{}", first_digest())
        >>> len(record), record.endswith(digest)
        (34, True)
    """
    head = _head(kind, len(payload), before)
    digest = record_digest(head, payload, before)
    return head + payload + digest, digest


def read_head(head: bytes, before: bytes) -> tuple[bytes, int] | None:
    """(kind, length of the payload) of a whole head after a record with digest `before`; None if it was altered."""
    kind, length, _ = HEAD.unpack(head)
    return (kind, length) if head == _head(kind, length, before) else None


def record_digest(head: bytes, payload: bytes, before: bytes) -> bytes:
    """The digest of a record."""
    return hashlib.blake2b(before + head[:8] + payload, digest_size=DIGEST).digest()


def _head(kind: bytes, length: int, before: bytes) -> bytes:
    start = HEAD.pack(kind, length, b"")[:8]
    return start + hashlib.blake2b(before + start, digest_size=8).digest()


@dataclass(frozen=True)
class Settings:
    """A settings record: what the generations after it have in common.

    Attributes:
        content: see `eggroll.training.ledger.settings`.
        payload: the same as JSON, as it lies in the file.
    """

    content: dict[str, Any]
    payload: bytes

    @classmethod
    def of(cls, content: Mapping[str, Any]) -> Settings:
        """The record for this content."""
        text = json.dumps(content, sort_keys=True, separators=(",", ":"), allow_nan=False, ensure_ascii=False)
        return cls(json.loads(text), text.encode())

    @classmethod
    def unpack(cls, payload: bytes) -> Settings:
        """The record from its payload; raises ValueError where that is no JSON object, or none that a run writes."""
        content = parse_json(payload)
        if not isinstance(content, dict):
            raise ValueError("settings that are no JSON object")
        if content.get("format") == FORMAT:
            _check_content(content)
        return cls(content, payload)

    @property
    def digest(self) -> bytes:
        """The 8 bytes by which generations name it."""
        return settings_digest(self.payload)


@dataclass(frozen=True, eq=False)
class Generation:
    """A generation's record: all that an update needs besides parameters and settings.

    Attributes:
        generation: number of updates before it.
        settings: digest of its settings.
        key: `[2]` uint32, the run's key.
        sigma: noise scale, float32 or float64.
        loss: what the optimizer was given, likewise.
        gradient_norm: norm of the gradient, float32.
        update_norm: norm of the change of the parameters, float32.
        fitness: `[N]` float32 or float64.
        weights: `[N]`, what shaping made of it; `[N, *losses]` of losses that are credited one by one, read as
            `[N, L]`.
    """

    generation: int
    settings: bytes
    key: np.ndarray
    sigma: np.ndarray
    loss: np.ndarray
    gradient_norm: np.ndarray
    update_norm: np.ndarray
    fitness: np.ndarray
    weights: np.ndarray

    def pack(self) -> bytes:
        """The payload."""
        parts = self.sigma, self.loss, self.fitness, self.weights
        codes = b"".join(_CODES[part.dtype] for part in parts)
        numbers = (float(x) for x in (self.sigma, self.loss, self.gradient_norm, self.update_norm))
        fixed = _FIXED.pack(self.generation, self.settings, *map(int, self.key), codes, len(self.fitness), *numbers)
        arrays = (part.astype(part.dtype.newbyteorder("<"), copy=False).tobytes() for part in parts[2:])
        return fixed + b"".join(arrays)

    @classmethod
    def unpack(cls, payload: bytes) -> Generation:
        """The generation from its payload; raises ValueError where the payload is no generation."""
        if len(payload) < _FIXED.size:
            raise ValueError("a payload too short for a generation")
        number, settings, *key, codes, size, sigma, loss, gradient, update = _FIXED.unpack_from(payload)
        if any(code not in _DTYPES for code in codes):
            raise ValueError(f"the dtypes {codes!r}")
        dtypes = [_DTYPES[code] for code in codes]
        middle = _FIXED.size + size * dtypes[2].itemsize
        each, rest = divmod(len(payload) - middle, max(size * dtypes[3].itemsize, 1))
        if not size or each < 1 or rest:
            raise ValueError(f"a payload that does not hold {size} members")
        weights = _array(payload[middle:], dtypes[3])
        return cls(
            generation=number,
            settings=settings,
            key=np.array(key, np.uint32),
            sigma=np.array(sigma, dtypes[0].newbyteorder("=")),
            loss=np.array(loss, dtypes[1].newbyteorder("=")),
            gradient_norm=np.array(gradient, np.float32),
            update_norm=np.array(update, np.float32),
            fitness=_array(payload[_FIXED.size : middle], dtypes[2]),
            weights=weights if each == 1 else weights.reshape(size, each),
        )


def _array(data: bytes, dtype: np.dtype) -> np.ndarray:
    return np.frombuffer(data, dtype).astype(dtype.newbyteorder("="))


def _check_content(content: Mapping[str, Any]) -> None:
    """Raises ValueError unless everything is there that all readers of a ledger look at, and of its kind."""
    kinds = {
        "population": int,
        "antithetic": bool,
        "x64": bool,
        "versions": dict,
        "platform": str,
        "base": dict,
        "key": list,
    }
    wrong = [name for name, kind in kinds.items() if type(content.get(name)) is not kind]
    if not wrong:
        base, plan = content["base"], content.get("plan", ...)
        name, each = base.get("name", ...), base.get("parameters")
        sound = {
            "population": content["population"] > 0,
            "versions": _are(str, list(content["versions"].values())),
            "key": _are(int, content["key"]) and len(content["key"]) == 2,
            "base": isinstance(base.get("digest"), str) and isinstance(name, str | None) and _are(str, each),
            "plan": plan is None or (_are(dict, plan) and all(map(_is_leaf, plan))),
        }
        wrong = [name for name, right in sound.items() if not right]
        if not wrong and plan is not None and len(plan) != len(each):
            raise ValueError(f"settings of {len(plan)} parameters with the digests of {len(each)}")
    if wrong:
        found = repr(content[wrong[0]])[:60] if wrong[0] in content else "missing"
        raise ValueError(f"settings that no run writes: '{wrong[0]}' is {found}")


def _are(kind: type, values: Any) -> bool:
    return isinstance(values, list) and all(type(value) is kind for value in values)


def _is_leaf(leaf: Mapping[str, Any]) -> bool:
    names, shape = [leaf.get("path"), leaf.get("dtype"), leaf.get("kind")], leaf.get("shape")
    return _are(str, names) and _are(int, shape) and min(shape or (), default=0) >= 0


def generation_bytes(population: int, itemsize: int = 4) -> int:
    """Bytes of a generation's record.

    Example:
        >>> generation_bytes(1024)
        8280
    """
    return HEAD.size + _FIXED.size + 2 * itemsize * population + DIGEST


def digests(base: Any) -> dict[str, str]:
    """The digest of every parameter: the first 16 hexadecimal digits of SHA-256 of its name, dtype, shape and bytes.

    Args:
        base: pytree of arrays.

    Returns:
        path → digest, in the order of the leaves.

    Raises:
        RunError: two parameters with the same path, which a ledger cannot tell apart.
    """
    found: dict[str, str] = {}
    for path, leaf in zip(leaf_paths(base), jax.tree.leaves(base), strict=True):
        if path in found:
            raise RunError(f"got two parameters with the path '{path}': a ledger cannot tell them apart. Rename one.")
        array = to_numpy(leaf)
        digest = hashlib.sha256(f"{path}\0{array.dtype.name}\0{','.join(map(str, array.shape))}\0".encode())
        digest.update(np.ascontiguousarray(array).reshape(-1).view(np.uint8).data)
        found[path] = digest.hexdigest()[:16]
    return found


def joint_digest(each: Mapping[str, str], paths: Sequence[str]) -> str:
    """One digest of all parameters, in the order of `paths`: SHA-256 of their digests, in hexadecimal."""
    return hashlib.sha256("".join(each[path] for path in paths).encode()).hexdigest()


def to_numpy(leaf: Any) -> np.ndarray:
    """A parameter as a numpy array; a random key, which only a frozen one can be, as its words."""
    if isinstance(leaf, jax.Array) and jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
        leaf = jax.random.key_data(leaf)
    return np.asarray(leaf)
