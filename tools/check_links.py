"""Checks that every link inside a built site leads somewhere: `python tools/check_links.py docs/_build/html`.

Nothing is fetched: links to other sites are left alone.
"""

import sys
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit


class Page(HTMLParser):
    """The anchors of a page, and the links and pictures that it names."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.anchors: set[str] = set()
        self.targets: list[str] = []
        self.without_text: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Keep what can be linked to and what is linked."""
        values = dict(attrs)
        self.anchors.update(value for name in ("id", "name") if (value := values.get(name)))
        target = values.get("href") if tag in ("a", "link") else values.get("src")
        if target:
            self.targets.append(target)
        if tag == "img" and not values.get("alt"):
            self.without_text.append(values.get("src") or "")


def faults(site: Path) -> list[str]:
    """One line for every link that leads nowhere and every picture without a text in its place."""
    pages = {path.resolve(): Page(path.read_text(encoding="utf-8")) for path in sorted(site.rglob("*.html"))}
    found: list[str] = []
    for path, page in pages.items():
        found += [f"{path.relative_to(site.resolve())}: {image} has no alt text" for image in page.without_text]
        for target in page.targets:
            parts = urlsplit(target)
            if parts.scheme or parts.netloc or target in ("#", ""):
                continue
            file = (path.parent / unquote(parts.path)).resolve() if parts.path else path
            missing = not file.exists()
            if missing or (parts.fragment and file in pages and unquote(parts.fragment) not in pages[file].anchors):
                found.append(f"{path.relative_to(site.resolve())}: {target} leads nowhere")
    return found


def main() -> None:
    """Print the faults; end with 1 if there are any."""
    site = Path(sys.argv[1])
    if not (site / "index.html").is_file():
        sys.exit(f"{site} holds no index.html; build the site first: make docs")
    found = faults(site)
    for line in found:
        print(line)
    sys.exit(1 if found else 0)


if __name__ == "__main__":
    main()
