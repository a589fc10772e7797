"""A section of the page: a heading, what stands below it, and the line that says what made it."""

from collections.abc import Sequence
from pathlib import Path

from tables import Results


def figure(path: Path | None, description: str) -> str:
    """A picture on the page, if it was drawn."""
    return f"![{description}](pictures/{path.name})" if path else ""


def section(title: str, command: str, results: Results, blocks: Sequence[str], *, minutes: bool = False) -> str:
    """A heading and what stands below it; or that it was not run."""
    if not any(results.values()) or not any(blocks):
        return f"## {title}\n\n**Not run.** `{command}`\n"
    return "\n\n".join([f"## {title}", *filter(None, blocks), made_with(results, command, minutes=minutes)]) + "\n"


def made_with(results: Results, command: str, *, minutes: bool) -> str:
    """The command, machine, versions and dates of some results, and how long the machine trained if that is asked for.

    Runs of the other parts were done side by side with other work, so how long they took says nothing.
    """
    runs = [result for seeds in results.values() for result in seeds.values()]
    stamps = [run["made_with"] for run in runs]
    dates = sorted({stamp["date"] for stamp in stamps})
    made = sorted({f"{stamp['machine']}, torch {stamp['torch']}, open_clip {stamp['open_clip']}" for stamp in stamps})
    time = f", {sum(run['seconds'] for run in runs) / 60:.0f} min of training" if minutes else ""
    span = dates[0] if len(dates) == 1 else f"{dates[0]} to {dates[-1]}"
    return f"`{command}`; {len(runs)} runs are shown{time}: {'; '.join(made)}, {span}."
