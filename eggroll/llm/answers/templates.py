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
# What no template writes by itself; a line's end and quotes are other characters in Python's or JSON's way to write it.
PROMPT, SYSTEM = "eggroll'asks\n\"this", "eggroll'says\n\"that"
ADVICE = "Correct chat_template in the tokenizer's files, or the options of the template."


def as_chats(
    tokenizer: Any, prompts: Sequence[str], system: str | None, options: Mapping[str, Any], date: datetime | None
) -> list[str]:
    """The prompts as the user's turns, up to where the answer begins.

    A chat whose text lacks the prompt or the system message is never taken. Tried are, in this order, a message of the
    system and one of the user as text, as lists of parts, and one so and one so; both in the user's message, as text,
    and as a list of parts.

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
    said = [(None if system is None else SYSTEM, PROMPT), *((system, prompt) for prompt in prompts)]
    own = [(False, False), (True, True), (False, True), (True, False)] if system is not None else []
    forms: list[tuple[bool, ...]] = [*own, (False,), (True,)]  # whether each message is a list of parts
    found = _rendered(
        template=template,
        variables=variables,
        ways=[[_chat(s, prompt, parts) for s, prompt in said] for parts in forms],
        marks=[PROMPT, SYSTEM][: 1 if system is None else 2],
        date=(date or datetime.now()).isoformat(),
    )
    if "texts" not in found:
        whys = [why for why in found["whys"] if why is not None]
        lost = "it leaves out what is said, as text and as a list of parts" if None in found["whys"] else ""
        raise _fails(prompts[0], "; ".join(filter(None, (lost, *whys[:1]))))
    if "why" in found:
        raise _fails(prompts[len(found["texts"])], found["why"])
    return [_checked(text, prompt, system) for text, prompt in zip(found["texts"], prompts, strict=True)]


def joined(system: str | None, prompt: str) -> str:
    """The system message in front of the prompt."""
    return f"{system}\n\n{prompt}" if system else prompt


def _chat(system: str | None, prompt: str, parts: tuple[bool, ...]) -> list[dict[str, Any]]:
    """Messages: the system's by itself where there are two, or in the user's."""
    said = [("system", system), ("user", prompt)] if len(parts) == 2 else [("user", joined(system, prompt))]
    written = [[{"type": "text", "text": x}] if part else x for (_, x), part in zip(said, parts, strict=True)]
    return [{"role": role, "content": x} for (role, _), x in zip(said, written, strict=True)]


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


def _rendered(**asked: Any) -> dict[str, Any]:
    """What `rendering.render` says, which runs in a process of its own.

    Raises:
        RunError: the template does not end, or options that JSON does not have.
    """
    with needed_for("chat templates"):
        import jinja2  # noqa: F401  (in the process that is started)
    try:
        given = json.dumps(asked | {"path": [place for place in sys.path if place]})
    except (TypeError, ValueError) as error:
        raise RunError(
            f"got options of the chat template that JSON does not have ({error}); leave them out."
        ) from error
    command = [sys.executable, "-I", "-S", str(Path(__file__).with_name("rendering.py"))]
    done = subprocess.run(command, input=given.encode(), capture_output=True, check=False)
    if done.returncode == -signal.SIGPROF:
        raise RunError(f"the model's chat template does not end: it was stopped within a chat. {ADVICE}")
    if done.returncode:
        said = done.stderr.decode(errors="replace").strip().splitlines()[-1:] or [f"status {done.returncode}"]
        raise RunError(f"the process that renders the model's chat template has failed ({said[0]}). {ADVICE}")
    return json.loads(done.stdout)


def _checked(text: str, prompt: str, system: str | None) -> str:
    """The text of a chat, once it is known to have in it what was said; templates may strip it."""
    for what, said in (("system message", system or ""), ("prompt", prompt)):
        if said.strip() not in text:
            raise RunError(f"the model's chat template leaves out or changes the {what} {said[:SHOWN]!r}. {ADVICE}")
    return text


def _fails(prompt: str, why: str) -> RunError:
    return RunError(f"the model's chat template fails for the prompt {prompt[:SHOWN]!r} ({why}). {ADVICE}")
