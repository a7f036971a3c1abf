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
from typing import Any, TypeAlias

from eggroll.extras import needed_for
from eggroll.training.errors import RunError

__all__ = ["Said", "as_chats", "chat_of", "shown", "without_template"]

Said: TypeAlias = "str | Sequence[Mapping[str, Any]]"  # what the user says, or a conversation

SHOWN = 60  # characters of a prompt in a message
# What no template writes by itself; a line's end and quotes are other characters in Python's or JSON's way to write it.
PROMPT, SYSTEM = "eggroll'asks\n\"this", "eggroll'says\n\"that"
ADVICE = "Correct chat_template in the tokenizer's files, or the options of the template."


def as_chats(
    tokenizer: Any, prompts: Sequence[Said], system: str | None, options: Mapping[str, Any], date: datetime | None
) -> list[str]:
    """The prompts as the user's turns or as conversations, up to where the answer begins.

    A chat whose text lacks a message is never taken. Tried are, in this order, the system's message and the others as
    text, as lists of parts, and one so and one so; the system's in front of the user's first, as text, and as a list of
    parts.

    Args:
        tokenizer: of `transformers`, with a chat template.
        prompts: each what the user says, or messages with "role" and "content".
        system: what stands before those that have no system message of their own; None: the template's own.
        options: further variables of the template.
        date: what `strftime_now` says; None: now.

    Raises:
        RunError: a template that fails, does not end, or leaves out what was said; an option that it does not read.
    """
    options = dict(options)
    template = _template(tokenizer, options)
    variables = {"tools": None, "documents": None, "add_generation_prompt": True, **_specials(tokenizer), **options}
    chats = [chat_of(prompt, system) for prompt in prompts]
    systems = any(chat[0]["role"] == "system" for chat in chats)
    probe = chat_of(PROMPT, SYSTEM if systems else None)
    own = [(False, False), (True, True), (False, True), (True, False)] if systems else []
    forms: list[tuple[bool, ...]] = [*own, (False,), (True,)]  # whether messages are lists of parts
    found = _rendered(
        template=template,
        variables=variables,
        ways=[[_written(chat, parts) for chat in (probe, *chats)] for parts in forms],
        marks=[PROMPT, SYSTEM][: 2 if systems else 1],
        date=(date or datetime.now()).isoformat(),
    )
    if "texts" not in found:
        whys = [why for why in found["whys"] if why is not None]
        lost = "it leaves out what is said, as text and as a list of parts" if None in found["whys"] else ""
        raise _fails(prompts[0], "; ".join(filter(None, (lost, *whys[:1]))))
    if "why" in found:
        raise _fails(prompts[len(found["texts"])], found["why"])
    return [_checked(text, chat) for text, chat in zip(found["texts"], chats, strict=True)]


def chat_of(prompt: Said, system: str | None) -> list[dict[str, Any]]:
    """A prompt as messages, with the system's in front unless they have one."""
    chat = [{"role": "user", "content": prompt}] if isinstance(prompt, str) else [dict(message) for message in prompt]
    own = system is None or chat[0]["role"] == "system"
    return chat if own else [{"role": "system", "content": system}, *chat]


def without_template(prompt: Said, system: str | None) -> str:
    """The system message in front of the prompt.

    Raises:
        RunError: a conversation of more than these.
    """
    *first, last = chat_of(prompt, system)
    if len(first) > 1 or any(message["role"] != "system" for message in first):
        raise RunError(
            f"got a conversation of {len(first) + 1} messages that ends with {last['content'][:SHOWN]!r}, and no chat "
            "template to write it; give prompts of one message, or a model that has a template."
        )
    return joined(first[0]["content"] if first else None, last["content"])


def joined(system: str | None, prompt: str) -> str:
    """The system message in front of the prompt."""
    return f"{system}\n\n{prompt}" if system else prompt


def shown(prompt: Said) -> str:
    """What errors show of a prompt: the last that is said."""
    return prompt if isinstance(prompt, str) else prompt[-1]["content"]


def _written(chat: list[dict[str, Any]], parts: tuple[bool, ...]) -> list[dict[str, Any]]:
    """Messages: the system's by itself where there are two kinds, or in the user's first."""
    if len(parts) == 1 and chat[0]["role"] == "system":
        system, *chat = chat
        first = next(i for i, message in enumerate(chat) if message["role"] == "user")
        chat[first] = {**chat[first], "content": joined(system["content"], chat[first]["content"])}
    listed = [parts[0 if message["role"] == "system" else -1] for message in chat]
    texts = [
        [{"type": "text", "text": m["content"]}] if as_list else m["content"]
        for m, as_list in zip(chat, listed, strict=True)
    ]
    return [{**message, "content": text} for message, text in zip(chat, texts, strict=True)]


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


def _checked(text: str, chat: list[dict[str, Any]]) -> str:
    """The text of a chat, once it is known to have in it what was said.

    Templates may strip it, and leave out what an assistant thought.
    """
    for message in chat:
        said, role = message["content"].strip(), message["role"]
        kept = said.rpartition("</think>")[2].strip() if role == "assistant" else said
        if said not in text and kept not in text:
            what = {"system": "system message", "user": "prompt"}.get(role, f"message of {role!r}")
            raise RunError(f"the model's chat template leaves out or changes the {what} {said[:SHOWN]!r}. {ADVICE}")
    return text


def _fails(prompt: Said, why: str) -> RunError:
    return RunError(f"the model's chat template fails for the prompt {shown(prompt)[:SHOWN]!r} ({why}). {ADVICE}")
