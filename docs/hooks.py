"""What MkDocs does not do by itself: pages that lie elsewhere in the repository, and a reference of all public names.

README, CONTRIBUTING, CHANGELOG and the log of measurements become pages, so that nothing is written twice; the
reference is made of the lists `__all__`, so that no public name is missing, and the page of examples has the code of
each. A link to what is not there is an error.
"""

from __future__ import annotations

import ast
import re
from pathlib import Path
from typing import Any

import griffe
from mkdocs.exceptions import PluginError
from mkdocs.structure.files import File, Files

ROOT = Path(__file__).parents[1]
PAGES = {"README.md": "index.md", "CONTRIBUTING.md": "CONTRIBUTING.md", "CHANGELOG.md": "CHANGELOG.md"}
PAGES["bench/LOG.md"] = "bench/LOG.md"
SHOWN = {".png", ".svg", ".json"}  # of other files outside docs/, what a browser shows
PACKAGES = ("eggroll", "nnx", "training", "rl", "llm", "kernels")
LINK = re.compile(r"(?<=\]\()(?!https?:|#|mailto:)([^)#\s]+)(#[^)\s]*)?(?=\))")
BADGE = re.compile(r"^\[!\[.*\n", re.MULTILINE)  # a line of the host's pages, drawn by other hosts: no part of the site
FENCE = re.compile(r"(^```.*?^```$|`[^`\n]*`)", re.DOTALL | re.MULTILINE)  # where no links are


class Examples(griffe.Extension):
    """Docstrings say `Example:`, which Griffe takes for a paragraph of text; `Examples:` is shown as code."""

    def on_object(self, *, obj: griffe.Object, **_: Any) -> None:
        """Changes the word in a docstring."""
        if obj.docstring is not None:
            obj.docstring.value = re.sub(r"^Example:$", "Examples:", obj.docstring.value, flags=re.MULTILINE)


def on_files(files: Files, config: Any) -> Files:
    """Adds the pages from elsewhere, what is linked there and shown, and the reference."""
    for source, page in PAGES.items():
        files.append(File.generated(config, page, content=(ROOT / source).read_text(encoding="utf-8")))
    for package in PACKAGES:
        files.append(File.generated(config, f"reference/{package}.md", content=reference(package)))
    linked = (ROOT / "docs").rglob("*.md"), map(ROOT.joinpath, PAGES)
    for path in sorted({path for pages in linked for page in pages for path in shown_by(page)}):
        name = path.relative_to(ROOT).as_posix()
        files.append(File.generated(config, name, abs_src_path=str(path)))
    return files


def shown_by(page: Path) -> list[Path]:
    """The files outside docs/ that a page links and a browser shows."""
    text = BADGE.sub("", page.read_text(encoding="utf-8"))
    found = [(page.parent / link[1]).resolve() for link in LINK.finditer(text)]
    return [path for path in found if path.suffix in SHOWN and (ROOT / "docs") not in path.parents]


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """Leads links to where their pages are in the site; those to code and folders, which are in none, become text."""
    sources = {page: source for source, page in PAGES.items()}
    uri = page.file.src_uri
    here = (ROOT / sources.get(uri, f"docs/{uri}")).parent
    depth = "../" * uri.count("/")

    def led(link: re.Match) -> str:
        target = (here / link[1]).resolve()
        if not target.exists() or ROOT not in target.parents:
            raise PluginError(f"{uri} links '{link[1]}', which is not there")
        name = target.relative_to(ROOT).as_posix()
        place = PAGES.get(name, name.removeprefix("docs/"))
        return depth + place + (link[2] or "")

    parts = FENCE.split(BADGE.sub("", markdown))
    for i in range(0, len(parts), 2):
        parts[i] = re.sub(r"\[([^\]\n]*)\]\((?!https?:|#)([^)#\s]+)\)", lambda found: plain(found, here), parts[i])
        parts[i] = LINK.sub(led, parts[i])
    return "".join(parts) + (examples() if uri == "examples/index.md" else "")


def plain(found: re.Match, here: Path) -> str:
    """A link as it is, or its text alone where it leads to what the site does not have."""
    target = (here / found[2]).resolve()
    outside = (ROOT / "docs") not in target.parents and target.exists()
    if outside and target.suffix not in SHOWN and target.relative_to(ROOT).as_posix() not in PAGES:
        return f"{found[1]} (`{target.relative_to(ROOT).as_posix()}`)"
    return found[0]


def examples() -> str:
    """A section with the code of every example. No page includes it: formatters rewrite the lines that would."""
    scripts = sorted((ROOT / "docs" / "examples").glob("*.py"))
    return "".join(f"\n## {path.name}\n\n```python\n{path.read_text(encoding='utf-8')}```\n" for path in scripts)


def reference(package: str) -> str:
    """The page of a package: its docstring, and every name in its `__all__`."""
    folder = {"eggroll": "eggroll", "kernels": "eggroll/ops"}.get(package, f"eggroll/{package}")
    name = package if package == "eggroll" else f"eggroll.{package}"
    tree = ast.parse((ROOT / folder / "__init__.py").read_text(encoding="utf-8"))
    homes, names = {}, []
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and not node.level:
            homes |= {alias.asname or alias.name: f"{node.module}.{alias.name}" for alias in node.names}
        elif isinstance(node, ast.Assign) and [ast.unparse(target) for target in node.targets] == ["__all__"]:
            names = ast.literal_eval(node.value)
    if not names:
        raise PluginError(f"no __all__ was found in {folder}/__init__.py")
    # Griffe does not follow `eggroll.kernels`, which lies elsewhere than its name says.
    entries = [f"::: {homes[n] if package == 'kernels' else f'{name}.{n}'}" for n in sorted(names, key=str.lower)]
    first = (ast.get_docstring(tree) or "").split("\n")[0].replace("_", r"\_")
    return "\n\n".join((f"# {name}", first, *entries)) + "\n"
