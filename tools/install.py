"""Installs this checkout with extras and dependency groups, by any pip: `make install`.

From pip 25.1 on, `pip install --group dev -e ".[all]"` does that and installs the packages of the demo and of stores;
the pip that comes with Python 3.10 to 3.13 does not know groups. With `--cpu`, uv installs instead, with torch's builds
for the CPU: about 1 GB instead of 5.5 GB.
"""

import argparse
import subprocess
import sys
from pathlib import Path
from typing import Any

if sys.version_info >= (3, 11):
    import tomllib
else:
    try:
        import tomli as tomllib
    except ModuleNotFoundError:  # a new environment of Python 3.10 has no other
        from pip._vendor import tomli as tomllib

ROOT = Path(__file__).parents[1]


def requirements(groups: dict[str, list[Any]], name: str) -> list[str]:
    """What a group of `[dependency-groups]` lists, with the groups that it includes.

    Raises:
        SystemExit: There is no such group.
    """
    if name not in groups:
        sys.exit(f"pyproject.toml has no dependency group {name!r}; it has {', '.join(sorted(groups))}")
    found: list[str] = []
    for entry in groups[name]:
        found += [entry] if isinstance(entry, str) else requirements(groups, entry["include-group"])
    return found


def main() -> None:
    """Install."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--extras", default="train,viz,hf,parquet,onnx", help="with commas between them")
    parser.add_argument("--groups", default="dev", help="with commas between them")
    parser.add_argument("--cpu", action="store_true", help="torch's builds for the CPU, by uv")
    parser.add_argument("--dry-run", action="store_true", help="print the command instead")
    chosen = parser.parse_args()
    groups = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["dependency-groups"]
    wanted = [line for name in chosen.groups.split(",") for line in requirements(groups, name)]
    installer = [sys.executable, "-m", "pip", "install", "--quiet"]
    steps = [[*installer, "--editable", f"{ROOT}[{chosen.extras}]", *wanted]]
    if chosen.cpu:
        uv = [sys.executable, "-m", "uv", "pip", "install", "--quiet", "--python", sys.executable]
        steps = [[*installer, "uv>=0.7"], [*uv, "--torch-backend", "cpu", *steps[0][len(installer) :]]]
    for step in steps:
        if chosen.dry_run:
            print(*step)
        elif code := subprocess.run(step, check=False).returncode:
            sys.exit(code)


if __name__ == "__main__":
    main()
