"""Build docs/evidence.md from the committed results.

python benchmarks/study/page.py
"""

import json
from pathlib import Path

from arms import ABLATIONS, ARMS, CONTROLS, MAIN
from full import COMPARED, parts
from plan import read_rates
from small import ARMS as SMALL_ARMS
from tables import Results, difference_table, read_results, score_table

HERE = Path(__file__).parent
RESULTS = HERE.parent / "results"
PAGE = HERE.parents[1] / "docs" / "evidence.md"
FINDINGS = HERE / "findings.md"

INTRODUCTION = """# Evidence

*Built by `python benchmarks/study/page.py` from the JSON files under `benchmarks/results/`; not edited by hand.*

What is asked, and how it is judged, was written down and committed before the first comparison:
[the study protocol](protocol.md). Everything here was measured on generated pedestrians with the small base
`promptreid-tiny`. It tests the mechanism of Prompt Decoupling; it says nothing about the paper's figures on CUHK-PEDES,
ICFG-PEDES or RSTPReid. Scores are in percent, text → image on the test split, mean ± standard deviation over seeds.
"""


def section(title: str, folder: Path, arms: tuple[str, ...], baselines: tuple[str, ...]) -> str:
    """A heading, the scores of a folder and the paired differences; or that it was not run."""
    results = read_results(folder) if folder.is_dir() else {}
    if not results:
        return f"## {title}\n\n**Not run.**\n"
    tables = [score_table(results, arms), *(difference_table(results, arms, baseline) for baseline in baselines)]
    return "\n\n".join([f"## {title}", *tables, made_with(results)]) + "\n"


def made_with(results: Results) -> str:
    """The machine, versions and dates of some results, and how long they took."""
    runs = [result for seeds in results.values() for result in seeds.values()]
    stamps = [run["made_with"] for run in runs]
    dates = sorted({stamp["date"] for stamp in stamps})
    machines = sorted(
        {f"{stamp['machine']}, torch {stamp['torch']}, open_clip {stamp['open_clip']}" for stamp in stamps}
    )
    hours = sum(run["seconds"] for run in runs) / 3600
    span = dates[0] if len(dates) == 1 else f"{dates[0]} to {dates[-1]}"
    return f"{len(runs)} runs, {hours:.1f} h of training, {'; '.join(machines)}, {span}."


def measures(folder: Path, arms: tuple[str, ...]) -> str:
    """How far the features are from the base's domain, and what is left of its skill there."""
    results = read_results(folder) if folder.is_dir() else {}
    lines = [
        "| arm | Rank-1 on the base's own domain | MMD² of images | MMD² of texts | modality gap |",
        "|---|---|---|---|---|",
    ]
    for arm in arms:
        if arm not in results:
            continue
        runs = [result["measures"] for result in results[arm].values()]
        mean = {name: sum(run[name] for run in runs) / len(runs) for name in runs[0]}
        lines.append(
            f"| `{arm}` | {100 * mean['own_domain_rank1']:.1f} | {mean['image_mmd']:.4f} | {mean['text_mmd']:.4f} | "
            f"{mean['modality_gap']:.3f} |"
        )
    if len(lines) == 2:
        return ""
    note = "MMD² is from the target's features to the bare model's features of its own domain; 0 is no distance."
    return "\n".join(["## Distance and forgetting", "", note, "", *lines, ""])


def not_run(rates: dict[str, object]) -> str:
    """What of the whole protocol has no result yet."""
    lines = ["## What was not run", ""]
    for part, runs in parts(rates).items():
        done = sum((RESULTS / "study-full" / part / run.condition / f"{run.name}.json").is_file() for run in runs)
        if done < len(runs):
            lines.append(f"- full study, `{part}`: {done} of {len(runs)} runs done")
    lines.append("- everything on CUHK-PEDES, ICFG-PEDES and RSTPReid: the data and CLIP's weights are not here")
    return "\n".join(lines) + "\n"


def main() -> None:
    """Write the page."""
    rates = read_rates(HERE / "rates.json")
    small, full = RESULTS / "study-small", RESULTS / "study-full"
    texts = [INTRODUCTION]
    if FINDINGS.is_file():
        texts.append("## What was found\n\n" + FINDINGS.read_text(encoding="utf-8"))
    texts.append(section("The small study: `make study`", small, SMALL_ARMS, ("direct",)))
    texts.append(measures(small, SMALL_ARMS))
    for part in ("main", "controls", "ablations"):
        arms = {"main": tuple(MAIN), "controls": tuple(CONTROLS), "ablations": tuple(ABLATIONS)}[part]
        baselines = ("pd",) if part == "ablations" else ("direct", "direct_equal_steps")
        texts.append(section(f"The full study: {part}", full / part / "gap1-share1", arms, baselines))
    for part in ("gap", "low_data", "transfer"):
        folders = sorted(folder for folder in (full / part).glob("*") if folder.is_dir())
        if not folders:
            texts.append(section(f"The full study: {part.replace('_', ' ')}", full / part, COMPARED, ()))
        for folder in folders:
            title = f"The full study: {part.replace('_', ' ')}, {folder.name}"
            texts.append(section(title, folder, COMPARED, ("direct", "direct_equal_steps")))
    texts.append(not_run(rates))
    texts.append("## Rates\n\nTuned by `python benchmarks/study/tune.py` on the validation split of seed 100:\n")
    texts.append("```json\n" + json.dumps(rates, indent=2) + "\n```\n")
    purposes = "\n".join(f"- `{name}`: {arm.purpose}" for name, arm in ARMS.items())
    texts.append(f"## Arms\n\n{purposes}\n")
    PAGE.write_text("\n".join(text for text in texts if text), encoding="utf-8")


if __name__ == "__main__":
    main()
