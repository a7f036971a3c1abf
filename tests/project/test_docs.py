"""What the pages of documentation import is there."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
BLOCK = re.compile(r"^```python\n(.*?)^```", re.DOTALL | re.MULTILINE)
PAGES = sorted([ROOT / "README.md", *(ROOT / "docs").glob("*.md")])
OWN = ("eggroll", "bench")  # a user's own modules are imported too


def imports(page: Path) -> list[str]:
    """Every import of ours in a page's Python blocks, one a line; a block that does not parse is an error."""
    found = []
    for block in BLOCK.findall(page.read_text(encoding="utf-8")):
        for node in ast.walk(ast.parse(block)):
            if isinstance(node, ast.ImportFrom):
                names = [node.module or ""]
            elif isinstance(node, ast.Import):
                names = [alias.name for alias in node.names]
            else:
                continue
            if any(name.split(".")[0] in OWN for name in names):
                found.append(ast.unparse(node))
    return found


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_imports_in_pages_work(page: Path) -> None:
    for line in imports(page):
        exec(line, {})


def test_they_are_found() -> None:
    assert "from eggroll.llm import Decoding, generator, load, split" in imports(ROOT / "docs" / "llm.md")
