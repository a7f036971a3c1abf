"""What holds for every file of the repository."""

from __future__ import annotations

import ast
import re

MAX_LINES = 300
MAX_FUNCTION_LINES = 40

# Paths of one machine and addresses of package hosts; in pieces, so that this file passes its own test.
FORBIDDEN = re.compile(
    r"(?<![\w.$}])/(?:work|root|home|Users|tmp|opt|mnt)/\w" + "|" + r"pythonhosted\.or" + r"g|pypi\.or" + "g"
)


def test_python_files_are_short(files):
    lines = {file: len(file.read_text(encoding="utf-8").splitlines()) for file in files if file.suffix == ".py"}
    long = {str(file): count for file, count in lines.items() if count > MAX_LINES}
    assert not long, f"more than {MAX_LINES} lines, to be split, one idea to a file: {long}"


def test_library_functions_are_short(root):
    for directory in ("eggroll", "kernels"):
        for file in (root / directory).rglob("*.py"):
            for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
                if isinstance(node, ast.FunctionDef):
                    lines = code_lines(node)
                    assert lines <= MAX_FUNCTION_LINES, f"{file}:{node.lineno} {node.name} has {lines} lines"


def code_lines(function: ast.FunctionDef) -> int:
    """Return the lines of a function's body, its docstring left out."""
    first, last = function.body[0], function.body[-1]
    start = first.end_lineno + 1 if ast.get_docstring(function, clean=False) is not None else first.lineno
    return last.end_lineno - start + 1


def test_no_file_names_a_machine(files):
    for file in files:
        try:
            text = file.read_text(encoding="utf-8")
        except UnicodeDecodeError:  # a picture
            continue
        found = FORBIDDEN.search(text)
        assert not found, f"{file} contains {found.group()!r}"


def test_the_forbidden_pattern_finds_what_it_should():
    for text in (
        "cd /" + "work/main",
        "see /" + "tmp/x.py",
        "'/" + "root/a'",
        "https://pypi.or" + "g/simple",
    ):
        assert FORBIDDEN.search(text), text
    for text in ("path/" + "home/x", "$TMPDIR/" + "root/x", "docs on the network"):
        assert not FORBIDDEN.search(text), text
