"""The paper's tables as Markdown, ours beside the published figures."""

import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from paper_rows import MAIN, TABLES
from paper_shared import METRICS, in_words

# Rank-1 / mAP in percent, text to image, from the papers and repositories named (docs/paper.md).
PUBLISHED: dict[str, dict[str, tuple[str, str]]] = {
    "CLIP, zero-shot": {
        "CUHK-PEDES": ("12.65", "11.15"), "ICFG-PEDES": ("6.67", "2.51"), "RSTPReid": ("13.45", "10.31"),
    },
    "CLIP, fine-tuned directly": {
        "CUHK-PEDES": ("68.19", "61.12"), "ICFG-PEDES": ("56.74", "31.84"), "RSTPReid": ("54.05", "43.41"),
    },
    "Prompt Decoupling": {
        "CUHK-PEDES": ("near 71.6", "not known"), "ICFG-PEDES": ("near 60.9", "not known"),
        "RSTPReid": ("near 56.7", "not known"),
    },
    "IRRA (CVPR 2023)": {
        "CUHK-PEDES": ("73.38", "66.13"), "ICFG-PEDES": ("63.46", "38.06"), "RSTPReid": ("60.20", "47.17"),
    },
    "TBPS-CLIP (AAAI 2024)": {
        "CUHK-PEDES": ("73.54", "65.38"), "ICFG-PEDES": ("65.05", "39.83"), "RSTPReid": ("61.95", "48.26"),
    },
    "RDE (CVPR 2024)": {
        "CUHK-PEDES": ("75.94", "67.56"), "ICFG-PEDES": ("67.68", "40.06"), "RSTPReid": ("65.35", "50.88"),
    },
    "ITSELF (WACV 2026), no person pre-training": {
        "CUHK-PEDES": ("76.95", "69.38"), "ICFG-PEDES": ("69.23", "43.80"), "RSTPReid": ("67.30", "53.05"),
    },
    "Bi-IRRA with person pre-training": {
        "CUHK-PEDES": ("79.43", "70.51"), "ICFG-PEDES": ("70.36", "43.28"), "RSTPReid": ("72.50", "57.32"),
    },
}  # fmt: skip
NOTE = (
    "Published figures are from the papers and repositories named; those of Prompt Decoupling are the published "
    "baseline of direct fine-tuning plus the gain that the paper reports. The paper's own ablation figures, prompt "
    "length, rates and epochs are not known to us."
)
DRY = (
    "**A dry run on drawn people with random weights: it shows that the recipe runs. Our figures below mean nothing.**"
)
Results = Mapping[str, Sequence[Mapping[str, Any]]]  # row → a result a seed


def write_tables(data: str, tables: Sequence[str], results: Results, *, drawn: bool) -> str:
    """A page with every table asked for; rows without a result say so."""
    parts = [f"# {data}: the paper's tables, by us"]
    if drawn:
        parts.append(DRY)
    for name in tables:
        for title, rows in TABLES[name].items():
            parts.append(f"## {title}")
            parts.append(_main(data, rows, results) if title in MAIN else _ablation(rows, results))
    return "\n\n".join([*parts, NOTE, _made_with(results)]) + "\n"


def _main(data: str, rows: Mapping[str, str], results: Results) -> str:
    lines = [
        f"| method | seeds | {' | '.join(METRICS)} | published Rank-1 | published mAP |",
        f"|{'---|' * (len(METRICS) + 4)}",
    ]
    for row, label in rows.items():
        lines.append(f"{_cells(label, results.get(row, []))} {' | '.join(PUBLISHED[label][data])} |")
    for label, published in PUBLISHED.items():
        if label not in rows.values():
            lines.append(f"| {label} | not ours |{' |' * len(METRICS)} {' | '.join(published[data])} |")
    return "\n".join(lines)


def _ablation(rows: Mapping[str, str], results: Results) -> str:
    lines = [f"| | seeds | {' | '.join(METRICS)} |", f"|{'---|' * (len(METRICS) + 2)}"]
    return "\n".join([*lines, *(_cells(label, results.get(row, [])) for row, label in rows.items())])


def _cells(label: str, results: Sequence[Mapping[str, Any]]) -> str:
    if not results:
        return f"| {label} | not run |{' |' * len(METRICS)}"
    scores = [_score([result["test"][metric] for result in results]) for metric in METRICS]
    return f"| {label} | {len(results)} | {' | '.join(scores)} |"


def _score(values: Sequence[float]) -> str:
    mean = f"{100 * statistics.fmean(values):.2f}"
    return mean if len(values) == 1 else f"{mean} ± {100 * statistics.stdev(values):.2f}"


def _made_with(results: Results) -> str:
    runs = [result for seeds in results.values() for result in seeds]
    if not runs:
        return "Nothing was run yet."
    made = sorted({_stamp(run["made_with"]) for run in runs})
    settings = {name: value for name, value in runs[0]["settings"].items() if name not in ("row", "seed")}
    rule = ", ".join(sorted({run["rule"] for run in runs}))
    hours = sum(run["seconds"] for run in runs) / 3600
    return (
        f"{len(runs)} runs in {hours:.2f} h; {'; '.join(made)}. The checkpoint: {rule}. "
        f"Settings: {', '.join(f'{name} {value}' for name, value in settings.items())}."
    )


def _stamp(made: Mapping[str, Any]) -> str:
    return f"promptreid {made.get('versions', made)['promptreid']}, {in_words(made)}, {made['date']}"
