"""Checks that every extra and every dependency group can be installed on every Python that is promised: `make resolve`.

Nothing is installed: uv reads the metadata of packages from the index, a few MB, and works out which wheels fit.
Without an index it says so and ends with success, unless `--strict`.
"""

import argparse
import os
import re
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ROOT = Path(__file__).parents[1]
PROMISED = re.compile(r"Programming Language :: Python :: (3\.\d+)")
SYSTEMS = ("linux", "windows", "macos")
# torch's wheels need macOS 14; uv takes an older one for granted.
ENVIRONMENT = os.environ | {"MACOSX_DEPLOYMENT_TARGET": "14.0"}
# uv's exit status where versions contradict each other; any other failure says nothing about them.
NO_SOLUTION = 1


def resolve(groups: list[str], version: str, system: str) -> subprocess.CompletedProcess[str]:
    """Which versions fit together there."""
    command = [sys.executable, "-m", "uv", "pip", "compile", "--quiet", "--only-binary", ":all:", "--all-extras"]
    command += ["--python-version", version, "--python-platform", system]
    command += [word for name in groups for word in ("--group", name)]
    return subprocess.run(
        [*command, "pyproject.toml"], cwd=ROOT, env=ENVIRONMENT, capture_output=True, text=True, check=False
    )


def main() -> None:
    """Resolve for each Python and system; end with 1 where that fails."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("systems", nargs="*", choices=SYSTEMS, default="linux")
    parser.add_argument("--strict", action="store_true", help="an index that cannot be reached is a failure")
    chosen = parser.parse_args()
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    promised = [match[1] for line in project["project"]["classifiers"] if (match := PROMISED.fullmatch(line))]
    systems = [chosen.systems] if isinstance(chosen.systems, str) else chosen.systems
    places = [(version, system) for version in promised for system in systems]
    groups = list(project["dependency-groups"])
    with ThreadPoolExecutor(5) as pool:
        results = list(pool.map(lambda place: resolve(groups, *place), places))
    unknown = [found for found in results if found.returncode not in (0, NO_SOLUTION)]
    if unknown and not chosen.strict and not any(found.returncode == NO_SOLUTION for found in results):
        print(f"not resolved, because uv cannot reach the package index: {unknown[0].stderr.strip()[-300:]}")
        return
    for (version, system), found in zip(places, results, strict=True):
        fitting = len(re.findall(r"^[\w.-]+==", found.stdout, flags=re.MULTILINE))
        said = f"{fitting} packages fit" if found.returncode == 0 else found.stderr.strip()
        print(f"Python {version}, {system}: {said}")
    sys.exit(1 if any(found.returncode for found in results) else 0)


if __name__ == "__main__":
    main()
