"""Files as people have them, read to rows: text, CSV, JSON, JSON lines, Parquet, Arrow and folders of `datasets`."""

from __future__ import annotations

import csv
import gzip
import io
import json
import re
import zlib
from collections import Counter
from collections.abc import Callable, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias

from eggroll.extras import needed_for
from eggroll.training.errors import RunError

KNOWN = ("prompt", "messages", "question")  # columns that are the prompt where nobody says which is
MANIFEST, STATE = "dataset_dict.json", "state.json"  # of folders that `datasets` writes
ACCEPTED = (
    "text with a prompt a line (.txt), .csv, .tsv, .json or .jsonl, each also as .gz, .parquet, .arrow, or a folder "
    "from save_to_disk of the package datasets"
)
WHITE = re.compile(r"[ \t\r\n]*")
LIKE_JSON = re.compile(r'\{\s*("|$)|\[\s*(\{|$)')  # the first line of a file
WIDE = 80  # characters of a row that are shown


class Row(NamedTuple):
    """A row of a file: where it stands, and what it holds by column."""

    place: str
    fields: dict[str, Any]


def read_rows(path: Path) -> list[Row]:
    """The rows of a file or folder, without those that hold nothing.

    Args:
        path: what it is says its name: `.txt` or no ending: a prompt a line; `.csv` (with commas, semicolons or tabs)
            and `.tsv`: a header, then rows, whose cells stay texts; `.json` and `.jsonl`: objects, one after the other
            or in a list; `.parquet`, `.arrow`; or a folder that `datasets` has written. All but the last three may end
            in `.gz`.

    Raises:
        RunError: no such file, another form, or a row that is not as required, with its place.
    """
    if path.is_dir():
        return _folder(path)
    name = path.name.lower()
    ending = Path(name.removesuffix(".gz")).suffix
    reader = (READERS if name.endswith(".gz") else READERS | TABLES).get(ending)
    if reader is None:
        raise RunError(f"got the prompts '{path}', whose form {ending!r} is not known; {ACCEPTED} is required.")
    return reader(path)


def _content(path: Path) -> str:
    try:
        data = path.read_bytes()
        return (gzip.decompress(data) if path.suffix.lower() == ".gz" else data).decode("utf-8-sig")
    except (OSError, EOFError, zlib.error, UnicodeDecodeError) as why:
        raise RunError(f"the prompts in {path} cannot be read: {why}; a text file in UTF-8 is required.") from None


def _text(path: Path) -> list[Row]:
    """A prompt a line; what is a table by its first line is no text."""
    lines = [(number, line.strip()) for number, line in enumerate(_content(path).split("\n"), 1) if line.strip()]
    first = lines[0][1] if lines else ""
    header = {cell.strip().strip('"').lower() for cell in re.split(r"[,;\t]", first)}
    like = "JSON" if LIKE_JSON.match(first) else "a table" if header & set(KNOWN) else ""
    if like:
        ending = ".json" if like == "JSON" else ".tsv" if "\t" in first else ".csv"
        raise RunError(
            f"{path} begins with {first[:WIDE]!r} as {like} does, and would be read as text, a prompt a line, answers "
            f"and all; give it a name that ends in {ending}, or begin with another prompt."
        )
    return [Row(f"line {number}", {"prompt": line}) for number, line in lines]


def _csv(path: Path) -> list[Row]:
    """Rows under a header; cells are texts as they stand there."""
    text, lines, last = _content(path), [], 0
    first = next(filter(str.strip, io.StringIO(text, newline=None)), "")
    tabs = Path(path.name.lower().removesuffix(".gz")).suffix == ".tsv"
    delimiter = "\t" if tabs else next((each for each in ",;\t" if each in first), ",")
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
    try:
        for cells in reader:
            if any(map(str.strip, cells)):
                lines.append((last + 1, cells))
            last = reader.line_num
    except csv.Error as why:
        raise RunError(
            f"line {last + 1} of {path} is no row of a table ({why}); close every quoted cell, and write a quote "
            'within one twice ("").'
        ) from None
    (_, header), *body = lines or [(0, [])]
    for number, cells in body:
        if len(cells) != len(header):
            raise RunError(
                f"line {number} of {path} has {len(cells)} cells, {cells[-1][:WIDE]!r} the last, where the header has "
                f'{len(header)}; write a cell that has a {delimiter!r} within it in double quotes, "like this".'
            )
    used = [i for i, name in enumerate(header) if name.strip() or any(cells[i].strip() for _, cells in body)]
    names = _single(path, [header[i].strip() for i in used])
    return [Row(f"line {n}", {name: cells[i] for name, i in zip(names, used, strict=True)}) for n, cells in body]


def _json(path: Path) -> list[Row]:
    """Objects one after the other, on a line each or over several, or in one list."""
    text = _content(path)
    decoder = json.JSONDecoder(object_pairs_hook=_object)
    found: list[tuple[str, Any]] = []
    at, line = _past_white(text, 0), 1 + text.count("\n", 0, _past_white(text, 0))
    while at < len(text):
        try:
            value, end = decoder.raw_decode(text, at)
        except (ValueError, RecursionError) as why:
            raise RunError(
                f'line {getattr(why, "lineno", line)} of {path} is no JSON ({why}); an object with a "prompt" is '
                'required, such as {"prompt": "2 + 2 =", "answer": "4"}.'
            ) from None
        found.append((f"line {line}", value))
        after = _past_white(text, end)
        line, at = line + text.count("\n", at, after), after
    if len(found) == 1 and isinstance(found[0][1], list):
        found = [(f"object {number}", value) for number, value in enumerate(found[0][1], 1)]
    for place, value in found:
        if not isinstance(value, dict):
            raise RunError(f'{place} of {path} is {short(value)}; an object with a string "prompt" is required.')
    return [Row(*pair) for pair in found if pair[1]]


def _past_white(text: str, at: int) -> int:
    return at if (found := WHITE.match(text, at)) is None else found.end()


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    twice = [name for name, count in Counter(name for name, _ in pairs).items() if count > 1]
    if twice:
        raise ValueError(f"the name {twice[0]!r} stands in it twice")
    return dict(pairs)


def _parquet(path: Path) -> list[Row]:
    with needed_for("Parquet files"):
        parquet = import_module("pyarrow.parquet")
    return _table(path, lambda: parquet.ParquetFile(path).read())


def _arrow(path: Path) -> list[Row]:
    """Arrow's stream, which `datasets` writes, or its file."""
    with needed_for("Arrow files"):
        arrow = import_module("pyarrow")

    def read() -> Any:
        with arrow.OSFile(str(path)) as file:
            kind = arrow.ipc.open_file if file.read(6) == b"ARROW1" else arrow.ipc.open_stream
            file.seek(0)
            return kind(file).read_all()

    return _table(path, read)


def _table(path: Path, read: Callable[[], Any]) -> list[Row]:
    try:
        table = read()
    except (OSError, ValueError, NotImplementedError) as why:  # pyarrow's errors are of these kinds, too
        raise RunError(f"the prompts in {path} cannot be read: {why}.") from why
    _single(path, table.column_names)
    rows = table.to_pylist()
    return [Row(f"row {i}", row) for i, row in enumerate(rows, 1) if any(x is not None for x in row.values())]


def _folder(path: Path) -> list[Row]:
    """What `Dataset.save_to_disk` writes: Arrow files, and their names in order."""
    try:
        if (path / MANIFEST).exists():
            splits = json.loads((path / MANIFEST).read_text(encoding="utf-8"))["splits"]
            raise RunError(
                f"the folder '{path}' holds the splits {', '.join(splits)}; name the folder of one, such as "
                f"'{path / splits[0]}'."
            )
        if not (path / STATE).exists():
            raise RunError(f"the folder '{path}' has no {STATE}, so is none of datasets; {ACCEPTED} is required.")
        state = json.loads((path / STATE).read_text(encoding="utf-8"))
        if state.get("_indices_data_files"):
            raise RunError(f"'{path}' is a selection of rows; flatten_indices() and save_to_disk() make it a whole.")
        names = [str(file["filename"]) for file in state["_data_files"]]
    except (OSError, ValueError, LookupError, TypeError, AttributeError, RecursionError) as why:
        raise RunError(f"the folder '{path}' cannot be read as one of datasets: {why!r}.") from why
    rows = [row for name in names for row in _arrow(path / Path(name).name)]
    return [Row(f"row {number}", row.fields) for number, row in enumerate(rows, 1)]


def _single(path: Path, names: Sequence[str]) -> Sequence[str]:
    twice = [name for name, count in Counter(names).items() if count > 1]
    if twice:
        raise RunError(f"{path} has several columns {twice[0]!r}; rename all but one, or take them out.")
    return names


def short(value: Any) -> str:
    """The beginning of what a row holds, for errors."""
    try:
        return repr(json.dumps(value, ensure_ascii=False)[:WIDE])
    except (TypeError, ValueError):  # dates, bytes
        return repr(str(value)[:WIDE])


Reader: TypeAlias = Callable[[Path], list[Row]]
READERS: dict[str, Reader] = dict.fromkeys((".json", ".jsonl", ".ndjson"), _json)
READERS |= {"": _text, ".txt": _text, ".csv": _csv, ".tsv": _csv}
TABLES: dict[str, Reader] = {".parquet": _parquet, ".arrow": _arrow}
