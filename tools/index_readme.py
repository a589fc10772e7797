"""Prepares README.md for a package index: `[tool.hatch.metadata.hooks.custom]` of pyproject.toml calls it on a build.

An index shows the README far from its repository, where relative links lead nowhere and relative pictures stay empty.
With `Repository = "https://…"` under `[project.urls]` they become links into the repository; until there is such an
address, a link becomes its words and a picture its description.
"""

import re
from pathlib import Path

from hatchling.metadata.plugin.interface import MetadataHookInterface

# `[words](target)` and `![description](target)` whose target is neither an address nor a place on the same page.
RELATIVE = re.compile(r"(?P<picture>!?)\[(?P<words>[^\]]*)\]\((?!https?://|mailto:|#)(?P<target>[^)\s]+)\)")


def for_index(text: str, repository: str | None) -> str:
    """The README with no relative link in it.

    Args:
        text: README.md.
        repository: Address of the repository on GitHub, or `None`.
    """

    def replaced(match: re.Match[str]) -> str:
        words, target, picture = match["words"], match["target"], match["picture"]
        if repository:
            kind = "raw" if picture else "blob"
            return f"{picture}[{words}]({repository.rstrip('/')}/{kind}/HEAD/{target})"
        return f"*Picture, in the repository as `{target}`: {words}*" if picture else words

    return RELATIVE.sub(replaced, text)


class IndexReadme(MetadataHookInterface):
    """Sets the `readme` of the package's metadata."""

    def update(self, metadata: dict) -> None:
        """Called by hatchling before it writes the metadata."""
        text = (Path(self.root) / "README.md").read_text(encoding="utf-8")
        repository = metadata.get("urls", {}).get("Repository")
        metadata["readme"] = {"content-type": "text/markdown", "text": for_index(text, repository)}
