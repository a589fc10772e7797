"""Runs the tests on the lowest versions that pyproject.toml allows: `make lowest`.

It makes `.venv-lowest`, installs every dependency of the core and of the extras `train`, `viz`, `hf` and `parquet` at
exactly its lower bound, and starts pytest there with the options that it is given. The first time it downloads about
3 GB: an old torch comes with CUDA. `--list` only prints what would be installed.
"""

import os
import re
import subprocess
import sys
from pathlib import Path

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ROOT = Path(__file__).parents[1]
FOLDER = ROOT / ".venv-lowest"
EXTRAS = ("train", "viz", "hf", "parquet")
TOOLS = ["pytest==8.2.0", "pytest-timeout", "pytest-xdist", "hypothesis", "pyyaml"]
# Linters, type checkers, documentation and what wraps up the package are not part of what is supported.
LEFT_OUT = ["tests/docs", "tests/packaging", "tests/demo"]


def lowest(requirement: str) -> str:
    """`name>=1.2,<5` as `name==1.2`."""
    match = re.match(r"([A-Za-z0-9_.-]+)>=([0-9.]+)", requirement)
    if match is None:
        sys.exit(f"{requirement!r} states no lower bound; give every dependency one in pyproject.toml")
    return f"{match[1]}=={match[2]}"


def requirements() -> list[str]:
    """Every dependency at its lower bound."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    extras = project["optional-dependencies"]
    wanted = [*project["dependencies"], *(line for extra in EXTRAS for line in extras[extra])]
    # pyparsing warns of names that matplotlib used then.
    return [*(lowest(line) for line in wanted), "pyparsing<3.3"]


def main() -> None:
    """Install and test."""
    wanted = requirements()
    if "--list" in sys.argv:
        print("\n".join(wanted))
        return
    if not (FOLDER / "bin" / "python").exists():
        subprocess.run([sys.executable, "-m", "venv", str(FOLDER)], check=True)
    python = str(FOLDER / "bin" / "python")
    subprocess.run([python, "-m", "pip", "install", "--quiet", *wanted, *TOOLS], check=True)
    subprocess.run([python, "-m", "pip", "install", "--quiet", "--no-deps", "--editable", str(ROOT)], check=True)
    ignored = [f"--ignore={path}" for path in LEFT_OUT]
    command = [python, "-m", "pytest", "-q", "tests", *ignored]
    environment = os.environ | {"PYTHONPATH": str(ROOT / "src"), "OMP_NUM_THREADS": "1"}
    sys.exit(subprocess.run([*command, *sys.argv[1:]], cwd=ROOT, env=environment, check=False).returncode)


if __name__ == "__main__":
    main()
