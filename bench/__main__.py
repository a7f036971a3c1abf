"""`python -m bench`: the questions and the commands that answer them."""

from __future__ import annotations

import importlib

from rich.console import Console
from rich.table import Table

QUESTIONS = (
    "layer",
    "model",
    "products",
    "memory",
    "compile",
    "quality",
    "peers",
    "roofline",
    "profile",
    "kernels",
    "gpu_compile",
    "gpu_tiles",
    "replay",
    "soak",
    "scaling",
    "pod",
    "finetune",
    "grpo",
    "rl",
    "atari",
    "activations",
    "nondifferentiable",
    "pretrain",
    "tuning",
    "decode",
    "fuzz",
    "zoo",
)


def main() -> None:
    table = Table(title="One script per question; all take --help and --quick")
    table.add_column("command", no_wrap=True)
    table.add_column("question")
    for name in QUESTIONS:
        module = importlib.import_module(f"bench.{name}")
        table.add_row(f"python -m bench.{name}", (module.__doc__ or "").split("\n\n")[0].replace("\n", " "))
    Console().print(table)


if __name__ == "__main__":
    main()
