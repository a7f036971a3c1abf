"""The packages listed by hand, the directory tree and the wheel agree."""

from __future__ import annotations

from importlib.metadata import requires
from pathlib import Path

import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

# Import name -> directory; setup.py has the second.
TOP_LEVEL = {"eggroll": Path("eggroll"), "eggroll.kernels": Path("kernels/pallas")}
SEAM = Path("eggroll/kernels")  # leads a checkout to it


def packages_in_tree(root: Path) -> dict[str, Path]:
    """Return the import name of every directory that has an `__init__.py`, with that directory."""
    found = {}
    for name, directory in TOP_LEVEL.items():
        for init in (root / directory).rglob("__init__.py"):
            below = init.parent.relative_to(root / directory).parts
            found[".".join((name, *below))] = init.parent
    found["eggroll.kernels"] = root / TOP_LEVEL["eggroll.kernels"]  # not the seam, wherever it came in the walk
    return found


def test_every_package_is_listed(root, pyproject):
    listed = pyproject["tool"]["setuptools"]["packages"]
    assert listed == sorted(listed)
    assert set(listed) == set(packages_in_tree(root))


def test_an_editable_install_is_a_plain_path(pyproject):
    # setuptools writes an import hook for any other mapping: type checkers do not see through it.
    assert pyproject["tool"]["setuptools"]["package-dir"] == {"": "."}


def test_the_core_is_small():
    """At most 31 packages, this one among them: jax, flax, optax, einops and rich, and what these ask for."""
    wanted, found = [Requirement("eggroll-jax")], set()
    while wanted:
        one = wanted.pop()
        if (one.name, frozenset(one.extras)) not in found:
            found.add((one.name, frozenset(one.extras)))
            asked = map(Requirement, requires(one.name) or ())
            extras = {"", *one.extras}
            wanted += [r for r in asked if r.marker is None or any(r.marker.evaluate({"extra": e}) for e in extras)]
    names = {canonicalize_name(name) for name, _ in found}
    assert len(names) <= 31, sorted(names)


def test_the_seam_holds_nothing_else(root):
    assert {file.name for file in (root / SEAM).iterdir()} - {"__pycache__"} == {"__init__.py", "__init__.pyi"}


def test_every_module_lies_in_a_package(root):
    for directory in TOP_LEVEL.values():
        for module in (root / directory).rglob("*.py"):
            assert (module.parent / "__init__.py").exists(), f"{module.parent} needs an __init__.py"


def test_kernels_itself_is_no_package(root):
    assert not (root / "kernels" / "__init__.py").exists(), "transformers would take it for Hugging Face's `kernels`"


def test_the_wheel_holds_the_tree(root, wheel):
    expected = set()
    for name, directory in packages_in_tree(root).items():
        expected |= {"/".join((*name.split("."), module.name)) for module in directory.glob("*.py")}
    packed = {name for name in wheel.namelist() if ".dist-info/" not in name}
    assert packed == expected | {"eggroll/py.typed"}


def test_the_wheel_s_metadata(wheel):
    (metadata,) = (name for name in wheel.namelist() if name.endswith(".dist-info/METADATA"))
    text = wheel.read(metadata).decode()
    assert "\nName: eggroll-jax\n" in text and "\nLicense-Expression: Apache-2.0\n" in text
    (scripts,) = (name for name in wheel.namelist() if name.endswith("entry_points.txt"))
    assert "eggroll = eggroll.start:main" in wheel.read(scripts).decode()


def test_the_citation_is_of_this_version(root, pyproject):
    citation = yaml.safe_load((root / "CITATION.cff").read_text(encoding="utf-8"))
    assert str(citation["version"]) == pyproject["project"]["version"]
    assert citation["license"] == pyproject["project"]["license"]
    assert {"cff-version", "message", "title", "authors"} <= set(citation)  # what the format requires


def test_hosted_ci_and_templates_say_what_the_project_does(root):
    workflow = yaml.safe_load((root / ".github/workflows/check.yml").read_text(encoding="utf-8"))
    steps = workflow["jobs"]["check"]["steps"]
    assert [step["run"] for step in steps if "run" in step] == [".ci/run"]
    (pythons,) = (step["with"]["python-version"] for step in steps if "setup-python" in step.get("uses", ""))
    assert pythons.split() == ["3.14", "3.11"]
    for file in (root / ".github/ISSUE_TEMPLATE").iterdir():
        template = yaml.safe_load(file.read_text(encoding="utf-8"))
        labels = [part["attributes"]["label"] for part in template["body"]]
        assert "What `eggroll doctor --json` prints" in labels and {"name", "description"} <= set(template)
