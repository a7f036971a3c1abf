"""Chat templates: prompts as turns of a chat, in the way of asking that loses neither prompt nor system message."""

from __future__ import annotations

import json
import re
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

from eggroll.extras import needed_for
from eggroll.training.errors import RunError

__all__ = ["as_chats", "joined"]

SHOWN = 60  # characters of a prompt in a message
SECONDS = 60  # until a process that does nothing is ended; one that works is within half a second a chat
PROMPT, SYSTEM = "eggrollasksthis", "eggrollsaysthat"  # which no template writes by itself
ADVICE = "Correct chat_template in the tokenizer's files, or the options of the template."


class _FailedError(Exception):
    """A template that fails for chat `at`, the probe being chat 0."""

    def __init__(self, why: str, at: int) -> None:
        super().__init__(why)
        self.at = at


def as_chats(
    tokenizer: Any, prompts: Sequence[str], system: str | None, options: Mapping[str, Any], date: datetime | None
) -> list[str]:
    """The prompts as the user's turns, up to where the answer begins.

    A chat whose text lacks the prompt or the system message is never taken. Tried are, in this order, a message of the
    system as text, and as a list of parts; both in the user's message, as text, and as a list of parts.

    Args:
        tokenizer: of `transformers`, with a chat template.
        prompts: what the user says.
        system: what stands before it; None: the template's own.
        options: further variables of the template.
        date: what `strftime_now` says; None: now.

    Raises:
        RunError: a template that fails, does not end, or leaves out what was said; an option that it does not read.
    """
    options = dict(options)
    template = _template(tokenizer, options)
    variables = {"tools": None, "documents": None, "add_generation_prompt": True, **_specials(tokenizer), **options}
    ways = [(own, parts) for own in ((True, False) if system is not None else (False,)) for parts in (False, True)]
    failed: _FailedError | None = None
    for own, parts in ways:
        said = [(SYSTEM, PROMPT), *((system, prompt) for prompt in prompts)]
        chats = [_chat(s if system is not None else None, prompt, own, parts) for s, prompt in said]
        try:
            texts = _rendered(template, variables, chats, date or datetime.now())
        except _FailedError as error:
            if error.at:
                raise _fails(prompts[error.at - 1], error) from error
            failed = failed if parts else error  # text is what most templates want
            continue
        if PROMPT in texts[0] and (system is None or SYSTEM in texts[0]):
            return [_checked(text, prompt, system) for text, prompt in zip(texts[1:], prompts, strict=True)]
    if failed is not None:
        raise _fails(prompts[0], failed)
    raise RunError(f"the model's chat template leaves out what the user says, as text and as a list of parts. {ADVICE}")


def joined(system: str | None, prompt: str) -> str:
    """The system message in front of the prompt."""
    return f"{system}\n\n{prompt}" if system else prompt


def _chat(system: str | None, prompt: str, own: bool, parts: bool) -> list[dict[str, Any]]:
    """Messages: the system's by itself, or in the user's."""
    said = [("system", system), ("user", prompt)] if own else [("user", joined(system, prompt))]
    return [{"role": role, "content": [{"type": "text", "text": x}] if parts else x} for role, x in said]


def _template(tokenizer: Any, options: dict[str, Any]) -> str:
    """The template's text; takes the option that names one out of the options."""
    try:
        template = tokenizer.get_chat_template(options.pop("chat_template", None), tools=options.get("tools"))
    except Exception as error:  # several templates, and none that is meant
        raise RunError(f"the model's chat template cannot be chosen ({error}). {ADVICE}") from error
    if not isinstance(template, str):
        raise RunError(f"the model's chat template is {template!r}; a text is required. {ADVICE}")
    for name in options:
        if not re.search(rf"\b{re.escape(name)}\b", template):
            raise RunError(
                f"got the template option {name!r}, which the model's chat template does not read; leave it out."
            )
    return template


def _specials(tokenizer: Any) -> dict[str, Any]:
    found = tokenizer.special_tokens_map.items()
    return {name: [str(x) for x in token] if isinstance(token, list) else str(token) for name, token in found}


def _rendered(template: str, variables: Mapping[str, Any], chats: list[Any], date: datetime) -> list[str]:
    """The chats as texts.

    Raises:
        _FailedError: the template fails.
        RunError: it does not end.
    """
    with needed_for("chat templates"):
        import jinja2  # noqa: F401  (in the process that is started)
    asked = {"template": template, "variables": variables, "chats": chats, "date": date.isoformat()}
    try:
        given = json.dumps(asked | {"path": [place for place in sys.path if place]})
    except (TypeError, ValueError) as error:
        raise RunError(
            f"got options of the chat template that JSON does not have ({error}); leave them out."
        ) from error
    command = [sys.executable, "-I", "-S", str(Path(__file__).with_name("rendering.py"))]
    try:
        done = subprocess.run(command, input=given.encode(), capture_output=True, timeout=SECONDS, check=False)
        found = (
            {"texts": [], "error": "it does not end"} if done.returncode == -signal.SIGPROF else json.loads(done.stdout)
        )
    except (subprocess.TimeoutExpired, ValueError) as error:
        raise RunError(
            f"the process that renders the model's chat template ended without an answer ({error})."
        ) from error
    if done.returncode == -signal.SIGPROF:
        raise RunError(
            f"the model's chat template does not end: it was stopped after half a second for a chat. {ADVICE}"
        )
    if "error" in found:
        raise _FailedError(found["error"], len(found["texts"]))
    return found["texts"]


def _checked(text: str, prompt: str, system: str | None) -> str:
    """The text of a chat, once it is known to have in it what was said; templates may strip it."""
    for what, said in (("system message", system or ""), ("prompt", prompt)):
        if said.strip() not in text:
            raise RunError(f"the model's chat template leaves out or changes the {what} {said[:SHOWN]!r}. {ADVICE}")
    return text


def _fails(prompt: str, why: Exception) -> RunError:
    return RunError(f"the model's chat template fails for the prompt {prompt[:SHOWN]!r} ({why}). {ADVICE}")
