"""The kept runs of the command line: what they were asked."""

from __future__ import annotations

from tests.training.kept.runs import LAST, MIDDLE

OFTEN = ("--generations", str(LAST), "--checkpoint-every", str(MIDDLE), "--keep", "2")
TRAIN = ("train", "--model", "cnn", "--population", "4", "--batch-size", "8", "--out", "run", *OFTEN)
ASKED = (
    *("--model", "base", "--reward", "kept_rewards:letters", "--prompts-file", "prompts.jsonl", "--max-tokens", "4"),
    *("--workers", "1", "--memory", "1", "--population", "8", "--prompts", "2", "--sigma", "0.1", "--eval-every", "2"),
)
METHODS = {"eggroll": ("--learning-rate", "0.05", "--temperature", "0.5"), "full-rank": ("--dtype", "bfloat16")}


def finetune(method: str) -> tuple[str, ...]:
    """The command of one method; its run has the method's name."""
    return ("finetune", *ASKED, *OFTEN, "--method", method, *METHODS[method], "--out", method)
