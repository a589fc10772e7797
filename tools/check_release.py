"""Checks that a tag, the version, the changelog and the citation say the same: the release workflow's first step.

`python tools/check_release.py v0.2.0`; without an argument the tag is `GITHUB_REF_NAME`. Needs no package.
"""

import os
import re
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]


def faults(root: Path, tag: str) -> list[str]:
    """What does not fit the tag, one line each."""

    def found(file: str, pattern: str) -> str | None:
        match = re.search(pattern, (root / file).read_text(encoding="utf-8"), flags=re.MULTILINE)
        return match and match[1]

    version = found("src/promptreid/version.py", r'^__version__ = "(.+)"')
    stated = {
        "the newest heading of CHANGELOG.md": found("CHANGELOG.md", r"^## (?:\[(.+?)\] - \d{4}-\d{2}-\d{2}$)"),
        "CITATION.cff": found("CITATION.cff", r"^version: (\S+)"),
    }
    lines = [f"{place} says {other}, version.py says {version}" for place, other in stated.items() if other != version]
    cited = found("CITATION.cff", r"^date-released: (\S+)")
    if (date := found("CHANGELOG.md", r"^## \[.+?\] - (\S+)$")) != cited:
        lines.append(f"CITATION.cff says it was released on {cited}, CHANGELOG.md says {date}")
    if found("CHANGELOG.md", r"^(## Unreleased)"):
        lines.append("CHANGELOG.md still has a section Unreleased; give it the version and the date")
    return lines + ([] if tag == f"v{version}" else [f"the tag is {tag!r}, expected 'v{version}'"])


def main() -> None:
    """Print what does not fit; end with 1 if anything."""
    tag = sys.argv[1] if len(sys.argv) > 1 else os.environ.get("GITHUB_REF_NAME", "")
    found = faults(ROOT, tag)
    for line in found:
        print(line)
    sys.exit(1 if found else 0)


if __name__ == "__main__":
    main()
