"""Files of prompts as people have them: each form says the same, and what is none of them is refused."""

from __future__ import annotations

import csv
import gzip
import json
from pathlib import Path
from typing import Any

import pytest

from eggroll.llm.tasks import Problem, custom_task
from eggroll.training.errors import RunError

ROWS = [
    {"prompt": 'Say "a, b".', "answer": "007", "level": "1.50"},
    {"prompt": "Two\nlines; and\ta tab", "answer": "", "level": "2"},
    {"prompt": "Größe 大 🙂", "answer": "x", "level": "-3"},
]
REWARD = "operator:contains"


def problems(file: Path, **options: Any) -> list[Problem]:
    task = custom_task(reward=REWARD, prompts=file, test_prompts=other(file), **options)
    return task.problems("train", task.size("train"), 0)


def other(file: Path) -> Path:
    """Prompts to test on, of other words."""
    column = "question" if "question" in file.name else "prompt"
    (file.parent / "other.jsonl").write_text(json.dumps({column: "Something else."}), encoding="utf-8")
    return file.parent / "other.jsonl"


def refused(file: Path, said: str, **options: Any) -> None:
    with pytest.raises(RunError, match=said):
        custom_task(reward=REWARD, prompts=file, **options)


def table(
    file: Path, *, delimiter: str = ",", end: str = "\r\n", mark: str = "", quoting: Any = csv.QUOTE_MINIMAL
) -> Path:
    with file.open("w", newline="", encoding="utf-8") as opened:
        opened.write(mark)
        writer = csv.DictWriter(opened, list(ROWS[0]), delimiter=delimiter, lineterminator=end, quoting=quoting)
        writer.writeheader()
        writer.writerows(ROWS)
    return file


def text(file: Path, content: str | bytes) -> Path:
    file.write_bytes(content if isinstance(content, bytes) else content.encode())
    return file


def forms(folder: Path) -> list[Path]:
    lines = "\n".join(json.dumps(row) for row in ROWS)
    return [
        table(folder / "a.csv"),
        table(folder / "b.CSV", end="\n", mark="\ufeff", quoting=csv.QUOTE_ALL),
        table(folder / "c.csv", delimiter=";", end="\r"),
        table(folder / "d.tsv", delimiter="\t"),
        text(folder / "e.json", json.dumps(ROWS, indent=2)),
        text(folder / "f.json", lines),
        text(folder / "g.jsonl", "\ufeff\n" + lines.replace("\n", "\r\n\r\n") + "\n"),
        text(folder / "h.jsonl", "\n".join(json.dumps(row, indent=4) for row in ROWS)),
        text(folder / "i.jsonl", json.dumps(ROWS)),
        text(folder / "j.jsonl.gz", gzip.compress(lines.encode())),
        text(folder / "k.csv.gz", gzip.compress((folder / "a.csv").read_bytes())),
    ]


def test_every_form_of_text_says_the_same(tmp_path: Path) -> None:
    for file in forms(tmp_path):
        assert problems(file) == [Problem(row["prompt"], row) for row in ROWS], file


def test_tables_of_arrow_say_the_same(tmp_path: Path) -> None:
    arrow, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    made = arrow.Table.from_pylist([*ROWS, dict.fromkeys(ROWS[0])])  # the last row is empty
    parquet.write_table(made, tmp_path / "a.parquet")
    kinds = {"b.arrow": arrow.ipc.new_stream, "c.arrow": arrow.ipc.new_file}
    for name, kind in kinds.items():
        with arrow.OSFile(str(tmp_path / name), "wb") as file, kind(file, made.schema) as writer:
            writer.write_table(made)
    for name in ("a.parquet", *kinds):
        assert problems(tmp_path / name) == [Problem(row["prompt"], row) for row in ROWS], name
    chat = [{"role": "user", "content": "2 + 2 ="}, {"role": "assistant", "content": "4"}]
    parquet.write_table(arrow.Table.from_pylist([{"messages": chat, "n": 1}] * 2), tmp_path / "chat.parquet")
    (one, _) = problems(tmp_path / "chat.parquet")
    assert (one.prompt, one.messages, one.data["answer"], one.data["n"]) == ("2 + 2 =", (chat[0],), "4", 1)
    refused(text(tmp_path / "d.parquet", "no Parquet"), "d.parquet cannot be read")
    refused(text(tmp_path / "e.arrow", ""), "e.arrow cannot be read")
    twice = arrow.table([["a"], ["b"]], names=["prompt", "prompt"])
    parquet.write_table(twice, tmp_path / "f.parquet")
    refused(tmp_path / "f.parquet", "several columns 'prompt'")


def test_a_folder_of_datasets(tmp_path: Path) -> None:
    """Its form as the package writes it; the next test asks the package itself."""
    arrow = pytest.importorskip("pyarrow")
    names = ["data-00000-of-00002.arrow", "data-00001-of-00002.arrow"]
    for name, rows in zip(names, (ROWS[:2], ROWS[2:]), strict=True):
        made = arrow.Table.from_pylist(rows)
        with arrow.OSFile(str(tmp_path / name), "wb") as file, arrow.ipc.new_stream(file, made.schema) as writer:
            writer.write_table(made)
    refused(tmp_path, "has no state.json, so is none of datasets; text with .* is required")
    state = {"_data_files": [{"filename": name} for name in names], "_split": "train"}
    text(tmp_path / "state.json", json.dumps(state))
    assert problems(tmp_path) == [Problem(row["prompt"], row) for row in ROWS]
    text(tmp_path / "dataset_dict.json", json.dumps({"splits": ["train", "test"]}))
    refused(tmp_path, "holds the splits train, test; name the folder of one, such as .*train'")
    text(tmp_path / "dataset_dict.json", '{"splits":' * 100_000)
    refused(tmp_path, "cannot be read as one of datasets: RecursionError")


def test_a_folder_that_datasets_itself_has_written(tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets")
    made = datasets.Dataset.from_list(ROWS)
    made.save_to_disk(str(tmp_path / "whole"), num_shards=2)
    made.select([2, 0]).save_to_disk(str(tmp_path / "some"))
    datasets.DatasetDict({"train": made, "test": made}).save_to_disk(str(tmp_path / "splits"))
    assert problems(tmp_path / "whole") == [Problem(row["prompt"], row) for row in ROWS]
    assert [p.prompt for p in problems(tmp_path / "some")] == [ROWS[i]["prompt"] for i in (2, 0)]
    assert problems(tmp_path / "splits/train") == problems(tmp_path / "whole")
    refused(tmp_path / "splits", "holds the splits train, test")


def test_which_column_is_the_prompt_is_said(tmp_path: Path) -> None:
    lines = [{"question": f"{i}?", "answer": i} | ({"hint": "x"} if i else {}) for i in range(6)]
    file = text(tmp_path / "p.json", json.dumps(lines))
    task = custom_task(reward=REWARD, prompts=file)
    assert task.said == (
        f"{file}: 6 prompts from column 'question'; the reward gets 'answer', 'hint' (in 5 rows)",
        "1 of these prompts are held out to test on",
    )
    assert all(p.data["answer"] == int(p.prompt[:-1]) for p in task.problems("train", 5, 0))  # a number stays one
    named = custom_task(reward=REWARD, prompts=text(tmp_path / "q.csv", "n,Text\n1,a\n2,b\n"), prompt_column="Text")
    assert {p.prompt: p.data["n"] for s in ("train", "test") for p in named.problems(s, 1, 0)} == {"a": "1", "b": "2"}
    alone = custom_task(reward=REWARD, prompts=text(tmp_path / "r.csv", 'Prompt\n"One, two."\n\nThree\n'))
    assert alone.said[0].endswith("2 prompts from column 'Prompt'; the reward gets no other column")
    assert alone.said[1:] == ("1 of these prompts are held out to test on",)
    index = text(tmp_path / "s.csv", ",prompt,,\n0,a,,\n,,,\n1,b,,\n")  # pandas' index, and columns of a spreadsheet
    assert [p.data for p in problems(index)] == [{"": "0", "prompt": "a"}, {"": "1", "prompt": "b"}]


SYSTEM, ASK, REPLY, MORE = (
    {"role": role, "content": content}
    for role, content in (("system", "Be brief."), ("user", "Hi"), ("assistant", "Hello!"), ("user", "And you?"))
)


def test_conversations(tmp_path: Path) -> None:
    parts = [{"role": "user", "content": [{"type": "text", "text": "Hi"}], "name": None}]
    rows = [{"prompt": [ASK]}, {"prompt": [SYSTEM, ASK, REPLY, MORE]}, {"prompt": parts}, {"prompt": "Hi"}]
    one, several, listed, plain = problems(text(tmp_path / "p.json", json.dumps(rows)))
    assert one.messages == listed.messages == (ASK,) and one.prompt == listed.prompt == plain.prompt == "Hi"
    assert several.messages == (SYSTEM, ASK, REPLY, MORE) and plain.messages == ()
    assert several.prompt == "system: Be brief.\n\nuser: Hi\n\nassistant: Hello!\n\nuser: And you?"
    with (tmp_path / "q.csv").open("w", newline="") as file:  # JSON, and as pandas writes lists
        csv.writer(file).writerows([["prompt"], [json.dumps([SYSTEM, ASK])], [str([SYSTEM, MORE])]])
    assert [p.messages for p in problems(tmp_path / "q.csv")] == [(SYSTEM, ASK), (SYSTEM, MORE)]


def test_what_a_conversation_ends_with_is_its_answer(tmp_path: Path) -> None:
    file = text(tmp_path / "p.jsonl", json.dumps({"messages": [SYSTEM, ASK, REPLY]}) + json.dumps({"messages": [MORE]}))
    task = custom_task(reward=REWARD, prompts=file, test_prompts=other(file))
    assert [(p.messages, p.data.get("answer")) for p in task.problems("train", 2, 0)] == [
        ((SYSTEM, ASK), "Hello!"),
        ((MORE,), None),
    ]
    assert task.said[0].endswith(
        "the assistant's message that ends 1 conversations is not asked: it is in data['answer']"
    )
    both = text(tmp_path / "q.json", json.dumps({"messages": [ASK, REPLY], "answer": 5}))
    assert [p.data["answer"] for p in problems(both)] == [5]
    refused(
        text(tmp_path / "r.json", json.dumps([{"prompt": [ASK, REPLY]}])),
        "ends with a message of 'assistant'; the last",
    )


@pytest.mark.parametrize(
    ("value", "said"),
    [
        ([], r"a text or a list of messages such as"),
        (["Hi"], "a list of messages"),
        (None, "a list of messages"),
        ({"role": "user"}, "a list of messages"),
        ([{"from": "human", "value": "Hi"}], "whose role is None, not one of system, user, assistant, tool"),
        ([{"role": "user", "content": None}], "whose content is 'None', not a text"),
        ([{"role": "user", "content": [{"type": "image"}]}], "whose content is .*image"),
        ([{"role": "user", "content": " "}], "a list of messages"),
        ([SYSTEM], "ends with a message of 'system'"),
        ("[{'role': 'user', 'content': 'Hi'}\n {'role': 'user'}]", "messages that are no JSON"),
    ],
)
def test_conversations_that_are_none(tmp_path: Path, value: Any, said: str) -> None:
    refused(text(tmp_path / "p.json", json.dumps([{"prompt": "Hi"}, {"prompt": value}])), f"object 2 of .*{said}")


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("p.xlsx", "PK", r"whose form '.xlsx' is not known; text with a prompt a line \(.txt\), .csv"),
        ("p.parquet.gz", "PAR1", "whose form '.parquet' is not known"),
        (
            "p.csv",
            "What is 2 + 2?,4\nWhat is 3?,3\n",
            r"no column 'prompt', 'messages' or 'question'; it has 'What is 2 \+",
        ),
        ("p.csv", "prompt,prompt\na,b\n", "several columns 'prompt'"),
        (
            "p.csv",
            "messages,question\na,b\n",
            r"several columns that may be the prompt, 'messages', 'question'.*--prompt",
        ),
        (
            "p.csv",
            "prompt,answer\na,1\n\nHello, you,2\n",
            "line 4 of .* has 3 cells, '2' the last, where the header has 2",
        ),
        ("p.csv", 'prompt,answer\na,1\n"b,2\n', "line 3 of .* is no row of a table"),
        ("p.csv", "prompt,answer\na,1\n,2\n", "line 3 of .*'prompt', a text or a list"),
        ("p.csv", "prompt,answer\n", "holds no prompts"),
        ("p.csv", "", "holds no prompts"),
        ("p.csv", "prompt\né\n".encode("utf-16"), "cannot be read: .*UTF-8"),
        ("p.csv.gz", "prompt\na\n", "cannot be read: .*"),
        ("p.txt", "prompt,answer\na,1\n", "begins with 'prompt,answer' as a table does, .*a name that ends in .csv"),
        ("p.txt", "n\tQuestion\n1\ta\n", "a name that ends in .tsv"),
        ("p.txt", '[\n  {\n    "prompt": "a"\n  },\n', r"begins with '\[' as JSON does"),
        ("p.txt", '{"prompt": "a"}\n', "as JSON does, .*a name that ends in .json"),
        ("p.json", '[{"prompt": "a"}, 5]', "object 2 of .* is '5'; an object"),
        ("p.json", '[\n {"prompt": "a"},\n {"prompt": b}]', "line 3 of .* is no JSON"),
        ("p.json", '{"prompt": "a", "prompt": "b"}', "the name 'prompt' stands in it twice"),
        ("p.json", '{"data": [{"prompt": "a"}]}', "no column 'prompt', 'messages' or 'question'; it has 'data'"),
        ("p.json", '{"prompt": "a", "x": "b"}', "has one prompt, and one is needed to test on"),
        ("p.json", '[{"prompt": "a"}, {"question": "b"}]', "object 2 of .* for 'prompt', a text or a list"),
        ("p.json", '[{"prompt": "a"}, {"prompt": "\\ud800"}]', "object 2 .*half a surrogate pair"),
    ],
)
def test_what_is_refused(tmp_path: Path, name: str, content: str | bytes, said: str) -> None:
    refused(text(tmp_path / name, content), said)


def test_columns_and_system_messages_that_are_not_there(tmp_path: Path) -> None:
    file = text(tmp_path / "p.jsonl", json.dumps({"prompt": [SYSTEM, ASK]}) + json.dumps({"prompt": [SYSTEM, MORE]}))
    refused(file, "no column 'text' for the prompts; it has 'prompt'", prompt_column="text")
    refused(file, "got system='Short.', and all conversations of .* begin with a system message", system="Short.")


def test_prompts_of_plain_text_may_have_commas_and_brackets(tmp_path: Path) -> None:
    lines = ["Hello, you; there", "[3, 1, 2] sorted is", "{x} is a set.", "[1, 2]"]
    assert [p.prompt for p in problems(text(tmp_path / "p.txt", "\r\n".join(lines)))] == lines
