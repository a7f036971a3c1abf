"""The one thing that pyproject.toml cannot say: a wheel takes `eggroll.kernels` from `kernels/pallas`.

As `package-dir` the mapping would hold for editable installs, too, which then get an import hook instead of a plain
path: type checkers do not see through it, and a second checkout would import this one's kernels.
"""

from setuptools import setup
from setuptools.command.build_py import build_py


class BuildPy(build_py):
    """Copies modules into a wheel."""

    def get_package_dir(self, package: str) -> str:
        """Where a package's files lie."""
        return "kernels/pallas" if package == "eggroll.kernels" else super().get_package_dir(package)


setup(cmdclass={"build_py": BuildPy})
