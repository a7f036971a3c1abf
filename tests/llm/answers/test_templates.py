"""Chat templates: what is said is never lost, and a template that is hostile is refused within bounds."""

from __future__ import annotations

import os
from datetime import datetime

import pytest

from eggroll.llm.answers.templates import as_chats
from eggroll.training.errors import RunError
from tests.llm.tiny import TEMPLATE, tokenizer

PARTS = "{% for m in messages %}{{ m.role }}: {{ m['content'][0]['text'] }}\n{% endfor %}"
PARTS_OF_USER, PARTS_OF_SYSTEM = (
    f"{{% for m in messages %}}{{{{ m.role }}}}: {{{{ m.content[0].text if m.role == '{role}' else m.content }}}}\n"
    "{% endfor %}"
    for role in ("user", "system")
)
NO_SYSTEM = "{% for m in messages if m.role == 'user' %}U: {{ m.content }}\n{% endfor %}"
STRICT = (
    "{% if messages[0].role == 'system' %}{{ raise_exception('no system') }}{% endif %}U: {{ messages[0].content }}"
)
MARKED = "{% for m in messages %}{% generation %}{{ m.content }}{% endgeneration %}{% if loop.index > 1 %}{% break %}"
MARKED += (
    "{% endif %}{% endfor %}{{ messages | tojson }}{{ bos_token }}{{ tools }}\n   {% set x = 1 %}\n{{ eos_token }}"
)


def chats(template, *prompts, system=None, date=None, **options):
    made = tokenizer()
    made.chat_template = template
    return as_chats(made, prompts, system, options, date)


@pytest.mark.parametrize("system", [None, "Be brief."])
@pytest.mark.parametrize("template", [TEMPLATE, MARKED])
def test_a_template_is_rendered_as_transformers_renders_it(template, system):
    made = tokenizer()
    made.chat_template = template
    messages = [{"role": "system", "content": system}] * (system is not None) + [
        {"role": "user", "content": "<ä> 1+1?"}
    ]
    wanted = made.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    assert chats(template, "<ä> 1+1?", "user", system=system)[0] == wanted


def test_a_conversation_is_rendered_as_transformers_renders_it():
    made = tokenizer()
    turns = [("user", "Hi"), ("assistant", "<think>\nWhat?\n</think>\n\nHello!"), ("user", "And you?")]
    talk = [{"role": role, "content": content} for role, content in turns]
    own, given = ({"role": "system", "content": content} for content in ("Mine.", "Given."))
    wanted = [[given, *talk], [own, *talk], [given, talk[0]]]
    found = as_chats(made, [talk, [own, *talk], "Hi"], "Given.", {}, None)
    assert found == [made.apply_chat_template(x, tokenize=False, add_generation_prompt=True) for x in wanted]
    made.chat_template = TEMPLATE.replace("message['content'] }}", "message['content'].split('</think>')[-1] }}")
    assert "And you?" in as_chats(made, [talk], None, {}, None)[0]  # what was thought may go
    made.chat_template = NO_SYSTEM
    with pytest.raises(RunError, match="leaves out or changes the message of 'assistant' '<think>"):
        as_chats(made, [talk], "Given.", {}, None)
    made.chat_template = STRICT  # which says the first message alone
    with pytest.raises(RunError, match="leaves out or changes the message of 'assistant'"):
        as_chats(made, [talk], "Given.", {}, None)


@pytest.mark.parametrize(
    ("template", "system", "text"),
    [
        (PARTS, None, "user: 7 + 5 =\n"),
        (PARTS, "Brief.", "system: Brief.\nuser: 7 + 5 =\n"),
        (NO_SYSTEM, "Brief.", "U: Brief.\n\n7 + 5 =\n"),
        (NO_SYSTEM.replace("m.content", "m.content[0].text"), "Brief.", "U: Brief.\n\n7 + 5 =\n"),
        # one message as text and one as a list of parts, of which nothing must be written as Python writes a list
        (PARTS_OF_USER, "Brief.", "system: Brief.\nuser: 7 + 5 =\n"),
        (PARTS_OF_SYSTEM, "Brief.", "system: Brief.\nuser: 7 + 5 =\n"),
        (STRICT, "Brief.", "U: Brief.\n\n7 + 5 ="),
        (NO_SYSTEM.replace("content", "content | trim"), None, "U: 7 + 5 =\n"),
    ],
)
def test_prompt_and_system_message_are_in_the_text(template, system, text):
    """A prompt whose text the template writes anyway is asked as the others are."""
    assert chats(template, "7 + 5 =", "user", system=system) == [text, text.replace("7 + 5 =", "user")]


@pytest.mark.parametrize(
    ("template", "message"),
    [
        ("What is that? {{ bos_token }}", "leaves out what is said, as text and as a list of parts"),
        ("{{ messages[-1].content[:20] }}", "leaves out or changes the prompt 'a prompt that is longer"),
        ("{{ messages[-1].content | upper }}", "leaves out what is said"),
        ("{% if %}", "fails for the prompt .*TemplateSyntaxError"),
        ("{{ raise_exception('roles must alternate') }}", "roles must alternate"),
        ("{{ messages[5].content.x }}", "UndefinedError"),
        ("{{ ''.__class__.__mro__ }}", "SecurityError"),
        ("{% macro f(x) %}{{ f(x) }}{% endmacro %}{{ f(1) }}", "RecursionError"),
        ("{% for m in messages %}" * 3000, "RecursionError"),
        ("{{ 'a' * 10**11 }}", "MemoryError"),
        ("{% for i in range(90000) %}{{ 'a' * 99 }}{% endfor %}", "writes more than 1,0.. characters|more than"),
        (5, "is 5; a text is required"),
    ],
)
def test_a_template_that_loses_what_is_said_or_fails_is_refused(template, message):
    with pytest.raises(RunError, match=message):
        chats(template, "a prompt that is longer than twenty letters")


@pytest.mark.parametrize(
    "endless",
    [
        "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}",
        "{{ 7 ** (10 ** 9) }}",
        "{% set n = namespace(x=[1]) %}{% for i in range(60) %}{% set n.x = n.x + n.x %}{% endfor %}",
    ],
)
def test_a_template_without_end_is_stopped(endless):
    start = sum(os.times()[:4])  # of this process and of those that it waited for: the machine may have more to do
    with pytest.raises(RunError, match=r"does not end|MemoryError"):
        chats(endless + TEMPLATE, "hello")
    assert sum(os.times()[:4]) - start < 0.5  # a tenth begins Python


def test_options_reach_the_template_or_are_refused():
    assert chats("{{ messages[0].content }}{{ thinking }}", "a", thinking=False) == ["aFalse"]
    with pytest.raises(RunError, match="the template option 'thinkin', which the model's chat template does not read"):
        chats("{{ messages[0].content }}{{ thinking }}", "a", thinkin=False)
    with pytest.raises(RunError, match="JSON does not have"):
        chats("{{ messages[0].content }}{{ thinking }}", "a", thinking=object())
    two = [{"name": "default", "template": TEMPLATE}, {"name": "other", "template": "{{ messages[0].content }}!"}]
    assert chats({each["name"]: each["template"] for each in two}, "a", chat_template="other") == ["a!"]


def test_the_date_is_what_it_is_said_to_be():
    template = "{{ strftime_now('%d %b %Y') }} {{ messages[0].content }}"
    assert chats(template, "a", date=datetime(2024, 7, 26)) == ["26 Jul 2024 a"]
    assert str(datetime.now().year) in chats(template, "a")[0]
