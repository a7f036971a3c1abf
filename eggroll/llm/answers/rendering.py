"""Renders chats by a template that came with a model, as a script in a process of its own: a template is a program.

Reads JSON from its standard input and writes JSON; see `render`. A chat may take `SECONDS` of processor time, then the
system ends the process, whatever it is doing. Imports no eggroll, so that it starts within a tenth of a second.
"""

from __future__ import annotations

import json
import resource
import signal
import sys
from contextlib import suppress
from datetime import datetime
from typing import Any

SECONDS = 0.1  # for a chat, of which a hundredth is common
TO_PARSE = 0.25  # half of it for 10,000 characters
MEMORY = 1 << 29  # bytes of addresses, those of Python and jinja2 included
MOST_SAID = 1000  # characters of an error
MOST = 1 << 20  # characters that a chat may have beyond those that it was given


def environment(date: datetime) -> Any:
    """Jinja2 with what transformers gives templates: they reach no Python, and `strftime_now` says the given date."""
    from jinja2 import nodes
    from jinja2.exceptions import TemplateError
    from jinja2.ext import Extension
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    class Generation(Extension):
        """`{% generation %}`, which marks what an assistant wrote, and changes no text."""

        tags = {"generation"}  # noqa: RUF012

        def parse(self, parser: Any) -> Any:
            line = next(parser.stream).lineno
            return nodes.Scope(parser.parse_statements(("name:endgeneration",), drop_needle=True)).set_lineno(line)

    def raise_exception(message: str) -> None:
        raise TemplateError(message)

    def to_json(value: Any, ensure_ascii: bool = False, **options: Any) -> str:
        return json.dumps(value, ensure_ascii=ensure_ascii, **options)

    added = [Generation, "jinja2.ext.loopcontrols"]  # not optimised: parsing computes no more than {{ constants }}
    made = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True, optimized=False, extensions=added)
    made.filters["tojson"] = to_json
    made.globals |= {"raise_exception": raise_exception, "strftime_now": date.strftime}
    return made


def _limited(soft: int, kind: int) -> None:
    """Sets a limit of the system, where it has it."""
    with suppress(ValueError, OSError):
        resource.setrlimit(kind, (soft, resource.getrlimit(kind)[1]))


def render(asked: dict[str, Any]) -> dict[str, Any]:
    """Renders the chats in the first way of asking that loses nothing.

    Args:
        asked: `template`, its `variables`, the `date`, and `ways`: lists of chats, of which the first is a probe that
            has `marks` in it.

    Returns:
        `texts` of the chats but the probe, in the first way whose probe becomes a text with all marks, up to a chat
        that fails, and `why` it does. Without such a way `whys`: why each failed, None for one that lost a mark.
    """
    whys: list[str | None] = []
    try:
        signal.setitimer(signal.ITIMER_PROF, TO_PARSE)
        template = environment(datetime.fromisoformat(asked["date"])).from_string(asked["template"])
    except Exception as error:  # whatever is wrong with it
        return {"whys": [_said(error)]}
    for probe, *chats in asked["ways"]:
        texts: list[str] = []
        try:
            text = _text(template, probe, asked["variables"])
            if not all(mark in text for mark in asked["marks"]):
                whys.append(None)
                continue
        except Exception as error:
            whys.append(_said(error))
            continue
        try:
            for chat in chats:
                texts.append(_text(template, chat, asked["variables"]))
        except Exception as error:
            return {"texts": texts, "why": _said(error)}
        return {"texts": texts}
    return {"whys": whys}


def _text(template: Any, chat: list[Any], variables: dict[str, Any]) -> str:
    signal.setitimer(signal.ITIMER_PROF, SECONDS)
    text, most = "", MOST + 4 * len(json.dumps(chat))
    for part in template.generate(messages=chat, **variables):
        text += part
        if len(text) > most:
            raise OverflowError(f"it writes more than {most:,} characters")
    return text


def _said(error: Exception) -> str:
    return f"{type(error).__name__}: {error}"[:MOST_SAID]


def main() -> None:
    """What the script does."""
    asked = json.load(sys.stdin)
    sys.path.extend(place for place in asked["path"] if place not in sys.path)
    import jinja2.ext
    import jinja2.sandbox  # noqa: F401  (before there are limits)

    _limited(MEMORY, resource.RLIMIT_AS)
    _limited(0, resource.RLIMIT_CORE)
    signal.signal(signal.SIGPROF, signal.SIG_DFL)
    found = render(asked)
    signal.setitimer(signal.ITIMER_PROF, 0)
    json.dump(found, sys.stdout)


if __name__ == "__main__":
    main()
