"""Build docs/convergence.md and its appendix, docs/convergence_tables.md, from the committed results.

python benchmarks/study/convergence_page.py
"""

import argparse
import json
from collections.abc import Iterable, Sequence
from itertools import groupby
from pathlib import Path
from typing import Any

from comparison import (
    Difference,
    Results,
    gains,
    gather,
    have_a_pair,
    mean_and_std,
    paired_difference,
    rank1_difference,
)
from convergence_plan import COURSES, EVERY_ARM, RATES, RESULTS, LongRun, parts, read_rates
from page import DOCS
from promptreid.evaluation.pictures.canvas import BLUE, GREY, VERMILION, new_figure, save_figure
from promptreid.towers.tiny import TINY_FOLDER
from tables import cell, difference_cells, figure, made_by, markdown, score_table

COMMAND = "python benchmarks/study/convergence.py run"
PRIMARY_LEVEL = 0.975  # two comparisons, so that both hold together at 95 %
COLOURS = {"direct": VERMILION, "direct_more": GREY, "pd": BLUE}
BUILT = """*Built by `python benchmarks/study/convergence_page.py` from `benchmarks/results/convergence`; not edited by
hand.*"""

INTRODUCTION = f"""# Evidence at convergence

{BUILT}

The [first study](evidence.md) stopped after 360 steps. This one trains until validation no longer improves, with 50 to
400 identities, on the same synthetic pedestrians and from the same small base, version 2. Its
[protocol](protocol_convergence.md) was committed before its first run. It says nothing about photographs.
"""


def points(found: Difference) -> str:
    """A difference with its interval, in points of Rank-1.

    Example:
        >>> points(Difference(0.012, 0.01, -0.004, 0.03, 5))
        '+1.2 points, −0.4 to +3.0'
    """
    mean, low, high = (f"{100 * value:+.1f}".replace("-", "−") for value in (found.mean, found.low, found.high))
    return f"{mean} points, {low} to {high}"


def direction(found: Difference) -> int:
    """1 where it is above 0, -1 below, 0 where its interval holds 0."""
    return 0 if not found.found else 1 if found.mean > 0 else -1


def joined(differences: dict[int, Difference], words: dict[int, str], other: str) -> str:
    """What holds at every number of identities, those with the same words together; `other` is named once."""
    groups: dict[int, list[str]] = {}
    for identities, found in differences.items():
        groups.setdefault(direction(found), []).append(f"at {identities} identities ({points(found)})")
    said = [f"{words[sign]} {{}} {' and '.join(places)}" for sign, places in groups.items()]
    return " and ".join(text.format("it" if number else other) for number, text in enumerate(said))


class ConvergencePage:
    """Both pages, from results in one folder.

    Args:
        rates: What `read_rates` returned.
        results: Where the results are.
        plots: Folder for the figures.
    """

    def __init__(self, rates: dict[str, Any], results: Path, plots: Path) -> None:
        self.rates, self.results, self.plots = rates, results, plots
        bases = sorted({path.name.partition("-base-")[2] for path in results.glob("identities*-base-*")})
        if len(bases) > 1:
            raise ValueError(f"{results} holds results from several other bases, {', '.join(bases)}; keep those of one")
        self.better = bases[0] if bases else None
        self.parts = parts(rates, base=self.better)
        runs = [run for part in self.parts.values() for run in part]
        self.by_identities = self._gather([run for run in runs if run.base == "shipped"])
        self.from_better_base = self._gather([run for run in runs if run.base != "shipped"])

    def _gather(self, runs: list[LongRun]) -> dict[int, Results]:
        return {
            number: gather([run for run in runs if run.identities == number], self.results)  # pyright: ignore[reportArgumentType]
            for number in sorted({run.identities for run in runs})
        }

    def _differences(self, arm: str, baseline: str, numbers: Iterable[int], level: float) -> dict[int, Difference]:
        return {
            number: rank1_difference(self.by_identities[number], arm, baseline, level=level)
            for number in numbers
            if self._is_complete(number, arm, baseline)
        }

    def _is_complete(self, number: int, arm: str, baseline: str) -> bool:
        """Whether every planned seed has both arms: no sentence is written while some are missing."""
        runs = [run for part in self.parts.values() for run in part if run.base == "shipped"]
        planned = {run.seed for run in runs if run.identities == number}
        return bool(planned) and gains(self.by_identities.get(number, {}), arm, baseline).keys() >= planned

    def answer(self) -> str:
        """The three sentences of the protocol; of what is not run yet, that it is not."""
        equal = self._differences("pd", "direct", (100, 400), PRIMARY_LEVEL)
        if not equal:
            return "**Not finished.** A sentence is written once all seeds of its comparison have been run."
        more = self._differences("pd", "direct_more", (100, 400), 0.95)
        words = {1: "beats", 0: "is not significantly different from", -1: "is behind"}
        said = joined(equal, words, "direct fine-tuning")
        first = f"**Trained to convergence with equal encoder epochs, PD {said}.**"
        words = {1: "is still behind", 0: "is not significantly different from", -1: "is ahead of"}
        second = f"Given the epochs of stage 1 too, direct fine-tuning {joined(more, words, 'PD')}." if more else ""
        missing = [str(number) for number in (100, 400) if number not in equal]
        left = f"The comparison at {missing[0]} identities is not finished yet." if missing else ""
        return "\n".join(filter(None, [first, second, self._trend(), left]))

    def _trend(self) -> str:
        if not all(self._is_complete(number, "pd", "direct") for number in (50, 400)):
            return ""
        few, many = (gains(self.by_identities[number], "pd", "direct") for number in (50, 400))
        found = paired_difference(few, many)
        words = {
            1: "With fewer identities PD does better against direct fine-tuning",
            0: "No dependence on the number of identities was found",
            -1: "With fewer identities PD does worse against direct fine-tuning",
        }[direction(found)]
        return f"{words} (50 less 400: {points(found)})."

    def response(self) -> str:
        """PD less direct fine-tuning at each number of identities."""
        rows: list[list[str]] = []
        for baseline in ("direct", "direct_more"):
            for number, results in self.by_identities.items():
                if have_a_pair(results, "pd", baseline):
                    level = PRIMARY_LEVEL if baseline == "direct" and number in (100, 400) else 0.95
                    scores = [cell([run["test"]["rank1"] for run in results[arm].values()]) for arm in (baseline, "pd")]
                    difference = rank1_difference(results, "pd", baseline, level=level)
                    rows.append([str(number), f"`{baseline}`", *scores, *difference_cells(difference), f"{level:.1%}"])
        if not rows:
            return ""
        compared = ["identities", "compared with", "its Rank-1", "`pd`", "seeds"]
        head = [*compared, "difference, points", "interval", "verdict", "level"]
        return markdown(head, rows)

    def better_base(self) -> str:
        """The comparison from the better base, and how its difference compares with that from version 2."""
        rows: list[list[str]] = []
        for number, results in self.from_better_base.items():
            arms = ("zero_shot", "direct", "pd")
            if not have_a_pair(results, "pd", "direct") or not results.get("zero_shot"):
                continue
            scores = [cell([run["test"]["rank1"] for run in results[arm].values()]) for arm in arms]
            difference = difference_cells(rank1_difference(results, "pd", "direct"))
            better, before = gains(results, "pd", "direct"), gains(self.by_identities.get(number, {}), "pd", "direct")
            change = points(paired_difference(better, before)) if better.keys() & before.keys() else "–"
            rows.append([str(number), *scores, *difference, change])
        if not rows:
            return ""
        head = ["identities", "`zero_shot`", "`direct`", "`pd`", "seeds", "difference, points", "interval", "verdict"]
        return "\n\n".join(
            [
                "## From a better base",
                f"The same runs from {self._base()}. Rates are those tuned on version 2, which may suit one arm better "
                "than the other here. The last column: how much larger the difference is than from version 2, paired "
                "by seed and person. Intervals have 95 %; exploratory.",
                markdown([*head, "than from version 2"], rows),
                made_by(self._every(self.from_better_base), f"{COMMAND} --parts better_base", minutes=False),
            ]
        )

    @staticmethod
    def _every(by_identities: dict[int, Results]) -> Results:
        return {f"{arm} {number}": seeds for number, found in by_identities.items() for arm, seeds in found.items()}

    def _base(self) -> str:
        record = json.loads((TINY_FOLDER / "training-v3.json").read_text(encoding="utf-8"))
        if not record["weights_sha256"].startswith(str(self.better)):
            return f"other weights, `{self.better}`"
        steps = f"{record['settings']['further']:,} further steps of its own pretraining, on none of these people"
        return f"[version 3 of the base](synthetic.md#promptreid-tiny), {steps}"

    def curves(self, number: int) -> str:
        """Validation mAP by epoch of the encoders: means over seeds, of which one that has ended keeps its best."""
        results = self.by_identities.get(number, {})
        if not self._is_complete(number, "pd", "direct"):
            return ""
        shown = [arm for arm in COLOURS if results.get(arm)]
        drawn = new_figure(6.0, 3.2)
        axes = drawn.subplots()
        for arm in shown:
            stages = [stages_of(run["history"]) for run in results[arm].values()]
            prompts = mean_curve([first for first, *others in stages if others])
            encoders = mean_curve([last for *_, last in stages])
            epochs = [*range(-len(prompts), 0), *range(1, len(encoders) + 1)]
            axes.plot(epochs, [100 * value for value in (*prompts, *encoders)], color=COLOURS[arm], label=arm)
        axes.axvline(0, color="0.8", linewidth=1)
        axes.set_xlabel("epochs of the encoders; before 0, of prompts alone")
        axes.set_ylabel("validation mAP, %")
        axes.legend(frameon=False)
        path = save_figure(drawn, self.plots / f"convergence_{number}.png")
        return figure(
            path, f"Validation mAP by epoch of the encoders at {number} identities; before 0, of prompts alone"
        )

    def not_run(self) -> str:
        """What of the protocol has no result yet."""
        lines: list[str] = []
        for name, wanted in parts(EVERY_ARM, base="other").items():
            done = sum(run.path(self.results).is_file() for run in self.parts[name])
            if done < len(wanted):
                lines.append(f"- `{name}`: {done} of {len(wanted)} runs")
        if not lines:
            return ""
        reason = "Nothing is left out because of a result; `make study-convergence` does what is left, in this order."
        return "\n".join(["## What is not run yet", "", *lines, "", reason, ""])

    def text(self) -> str:
        """The answer, a figure, a table, and what is not run."""
        blocks = [INTRODUCTION, "## What was found", self.answer()]
        blocks += filter(None, (self.curves(number) for number in (400, 100)))
        table = self.response()
        if table:
            arms = "`direct` has the encoder epochs of `pd`; `direct_more` has those of stage 1 too"
            blocks += [
                f"## PD against direct fine-tuning\n\n{table}",
                f"Rank-1 in percent, mean ± standard deviation; {arms}.",
            ]
            blocks += [
                made_by(self._every(self.by_identities), COMMAND, minutes=False),
                "All scores: [the appendix](convergence_tables.md).",
            ]
        return "\n\n".join(filter(None, [*blocks, self.better_base(), self.not_run()])).rstrip() + "\n"

    def appendix(self) -> str:
        """All scores, and the epochs that stages used."""
        blocks = [
            f"# Evidence at convergence: all tables\n\n{BUILT}",
            "The appendix of [the study](convergence.md). Scores are in percent on the test split.",
            "## Arms\n\n" + markdown(["arm", "what it is"], [[f"`{n}`", c.purpose] for n, c in COURSES.items()]),
        ]
        for number, results in self.by_identities.items():
            shown = [arm for arm in COURSES if results.get(arm)]
            if shown:
                blocks += [f"## {number} identities", score_table(results, shown)]
                blocks += [score_table(results, shown, direction="image to text"), epochs_table(results, shown)]
        if not any(self.by_identities.values()):
            blocks.append("No run has ended yet.")
        if self.rates["rates"]:
            rows = [
                [f"`{arm}`", *(f"{rate:g}" for rate in pair), str(self.rates["runs"][arm])]
                for arm, pair in self.rates["rates"].items()
            ]
            blocks.append("## Rates\n\n" + markdown(["arm", "prompts", "encoders", "tuning runs"], rows))
        return "\n\n".join(filter(None, blocks)) + "\n"


def stages_of(history: Iterable[dict[str, Any]]) -> list[list[dict[str, Any]]]:
    """The entries of each stage.

    Example:
        >>> [len(entries) for entries in stages_of([{"stage": "one"}, {"stage": "one"}, {"stage": "two"}])]
        [2, 1]
    """
    return [list(entries) for _, entries in groupby(history, key=lambda entry: entry["stage"])]


def mean_curve(histories: Sequence[list[dict[str, Any]]]) -> list[float]:
    """Mean validation mAP of each epoch of a stage over runs; one that has ended keeps its best.

    Example:
        >>> one = [{"scores": {"mAP": 0.25}}, {"scores": {"mAP": 0.5}}]
        >>> mean_curve([one, [{"scores": {"mAP": 0.75}}]])
        [0.5, 0.625]
    """
    curves = [[entry["scores"]["mAP"] for entry in history if "scores" in entry] for history in histories]
    longest = max(map(len, curves), default=0)
    padded = [curve + [max(curve)] * (longest - len(curve)) for curve in curves]
    return [sum(values) / len(values) for values in zip(*padded, strict=True)]


def epochs_table(results: Results, arms: Iterable[str]) -> str:
    """How many epochs each stage used, and the seconds of an epoch."""
    rows: list[list[str]] = []
    for arm in arms:
        stages: dict[str, list[list[dict[str, Any]]]] = {}
        for run in results[arm].values():
            for entries in stages_of(run["history"]):
                stages.setdefault(entries[0]["stage"], []).append(entries)
        for name, runs in stages.items():
            mean, std = mean_and_std([len(entries) for entries in runs])
            best, _ = mean_and_std([best_epoch(entries) for entries in runs])
            rows.append([f"`{arm}`", name.replace("_", " "), f"{mean:.1f} ± {std:.1f}", f"{best:.1f}"])
    return markdown(["arm", "stage", "epochs used", "best epoch"], rows) if rows else ""


def best_epoch(entries: Sequence[dict[str, Any]]) -> int:
    """The first epoch with the highest validation mAP."""
    scored = [entry for entry in entries if "scores" in entry]
    return max(scored, key=lambda entry: entry["scores"]["mAP"])["epoch"] if scored else 0


def main() -> None:
    """Write both pages and their figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--results", type=Path, default=RESULTS)
    parser.add_argument("--rates", type=Path, default=RATES)
    parser.add_argument("--docs", type=Path, default=DOCS)
    arguments = parser.parse_args()
    page = ConvergencePage(read_rates(arguments.rates), arguments.results, arguments.docs / "pictures")
    (arguments.docs / "convergence.md").write_text(page.text(), encoding="utf-8")
    (arguments.docs / "convergence_tables.md").write_text(page.appendix(), encoding="utf-8")


if __name__ == "__main__":
    main()
