"""Several ways of training under several seeds, as tables for a screen, a README and a paper."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from promptreid.errors import spoken
from promptreid.files import write_bytes_atomically, write_sealed_json
from promptreid.scores import METRICS, shared_metrics, shown_score
from promptreid.training.seeds import SeedScores

_NAMED = {"\\": "backslash", "^": "asciicircum", "~": "asciitilde", "<": "less", ">": "greater", "|": "bar"}
_LATEX = str.maketrans(
    {sign: f"\\{sign}" for sign in "&%$#_{}"} | {sign: rf"\text{name}{{}}" for sign, name in _NAMED.items()}
)
_CHOSEN = "rank1"  # what the differences are of


@dataclass(frozen=True)
class Comparison:
    """Scores of several ways of training, each under the same seeds.

    Attributes:
        runs: Scores by the way's name; the first one is what the others are compared with.
        labels: What tables call them.

    Example:
        >>> runs = {"direct": SeedScores({0: {"rank1": 0.5}, 1: {"rank1": 0.7}})}
        >>> print(Comparison(runs, {}).markdown())
        | | seeds | Rank-1 | 95 % interval |
        |---|---|---|---|
        | direct | 2 | 60.00 ± 14.14 | -67.06 to 187.06 |
    """

    runs: Mapping[str, SeedScores]
    labels: Mapping[str, str]

    @property
    def differences(self) -> dict[str, SeedScores]:
        """Of each way but the first its scores less the first one's, seed by seed, where both have the seed."""
        first, *others = self.runs.items()
        return {
            name: SeedScores(
                {
                    seed: {
                        key: value - first[1].scores[seed][key]
                        for key, value in scores.items()
                        if key in first[1].scores[seed]
                    }
                    for seed, scores in found.scores.items()
                    if seed in first[1].scores
                }
            )
            for name, found in others
        }

    def as_dict(self) -> dict[str, Any]:
        """Everything as JSON holds it, as fractions; an unknown spread is null."""
        return {
            "runs": {name: found.as_dict() for name, found in self.runs.items()},
            "labels": dict(self.labels),
            "differences": {name: found.as_dict() for name, found in self.differences.items()},
        }

    def table(self) -> str:
        """For a screen, in columns; Rank-5 and Rank-10 are in the others."""
        rows = self._rows(" ± ", name=spoken, left_out=("rank5", "rank10"))
        widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
        lines = [
            row[0].ljust(widths[0])
            + "".join(f"  {cell:>{width}}" for cell, width in zip(row[1:], widths[1:], strict=True))
            for row in rows
        ]
        return "\n".join([*(line.rstrip() for line in lines), *self.sentences()])

    def markdown(self) -> str:
        """For a README."""
        head, *rows = self._rows(" ± ", name=self._label)
        lines = ["| " + " | ".join(row) + " |" for row in [head, *rows]]
        lines[0] = lines[0].replace("|  |", "| |", 1)
        return "\n".join([lines[0], "|" + "---|" * len(head), *lines[1:]])

    def latex(self, *, caption: str = "") -> str:
        """For a paper: a `tabular` with booktabs' rules in a `table`."""
        head, *rows = self._rows(r" $\pm$ ", name=self._label)
        lines = [
            " & ".join(cell if r"$\pm$" in cell else cell.translate(_LATEX) for cell in row) for row in [head, *rows]
        ]
        body = " \\\\\n".join(lines[1:])
        columns = "l" + "r" * (len(head) - 1)
        return (
            "% \\usepackage{booktabs}\n\\begin{table}\n\\centering\n"
            f"\\begin{{tabular}}{{{columns}}}\n\\toprule\n{lines[0]} \\\\\n\\midrule\n{body} \\\\\n\\bottomrule\n"
            f"\\end{{tabular}}\n\\caption{{{self.caption(caption).translate(_LATEX)}}}\n\\end{{table}}\n"
        )

    def sentences(self) -> list[str]:
        """The differences in Rank-1 in words, one sentence each."""
        first = next(iter(self.runs))
        lines: list[str] = []
        for name, found in self.differences.items():
            if _CHOSEN not in found.mean:
                continue
            low, high = found.interval[_CHOSEN]
            says = "" if math.isnan(low) else f", 95 % interval {100 * low:+.2f} to {100 * high:+.2f}"
            if not math.isnan(low) and low <= 0 <= high:
                says += ": not significantly different"
            lines.append(f"{spoken(name)} less {spoken(first)}: Rank-1 {100 * found.mean[_CHOSEN]:+.2f} points{says}")
        return lines

    def _label(self, name: str) -> str:
        return self.labels.get(name, spoken(name))

    def caption(self, data: str) -> str:
        """The caption of a table; `data` names the dataset."""
        words = (
            "Text to image, in percent on the test split, mean ± standard deviation over seeds; the interval is "
            "that of the mean Rank-1 (Student's t)."
        )
        return " ".join([f"{data}." if data else "", words, *(f"{line}." for line in self.sentences())]).strip()

    def _rows(self, between: str, *, name: Any, left_out: Sequence[str] = ()) -> list[list[str]]:
        keys = [key for key in shared_metrics(*(found.mean for found in self.runs.values())) if key not in left_out]
        rows = [["", "seeds", *(METRICS[key].title for key in keys), "95 % interval"]]
        for way, found in self.runs.items():
            mean, std = found.mean, found.std
            cells = [
                shown_score(key, mean[key]) + ("" if math.isnan(std[key]) else between + shown_score(key, std[key]))
                for key in keys
            ]
            low, high = found.interval.get(_CHOSEN, (math.nan, math.nan))
            interval = "" if math.isnan(low) else f"{shown_score(_CHOSEN, low)} to {shown_score(_CHOSEN, high)}"
            rows.append([name(way), str(len(found.scores)), *cells, interval])
        return rows


def write_comparison(folder: str | Path, comparison: Comparison, *, caption: str = "") -> Sequence[Path]:
    """Write `comparison.json`, `comparison.md` and `comparison.tex`; `caption` names the data. Returns the files."""
    place = Path(folder)
    place.mkdir(parents=True, exist_ok=True)
    words = comparison.caption(caption)
    write_sealed_json(place / "comparison.json", comparison.as_dict())
    write_bytes_atomically(place / "comparison.md", f"{comparison.markdown()}\n\n{words}\n".encode())
    write_bytes_atomically(place / "comparison.tex", comparison.latex(caption=caption).encode())
    return [place / f"comparison.{ending}" for ending in ("json", "md", "tex")]
