"""Build docs/convergence.md and its appendix, docs/convergence_tables.md, from the committed results.

python benchmarks/study/convergence_page.py
"""

import argparse
import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from comparison import (
    Difference,
    Results,
    gains,
    gather,
    have_a_pair,
    paired_difference,
    rank1_difference,
)
from convergence_plan import COURSES, EVERY_ARM, RATES, RESULTS, LongRun, parts, read_rates
from curves import draw_curves, epochs_table, lead_section
from page import DOCS
from promptreid.evaluation.pictures.canvas import BLUE, GREY, VERMILION
from promptreid.towers.tiny import TINY_FOLDER
from tables import cell, difference_cells, figure, made_by, markdown, score_table

COMMAND = "python benchmarks/study/convergence.py run"
NEITHER = "not significantly different"
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

# Title, what the arms are, and what is compared with what.
QUESTIONS = (
    (
        "PD against direct fine-tuning",
        "`direct` may use as many epochs of the encoders as `pd`, 60, and `direct_more` those of stage 1 too, 120; all "
        "stop early ([epochs used](convergence_tables.md)). The rows at 97.5 % are the primary comparison, the others "
        "exploratory.",
        (("pd", "direct"), ("pd", "direct_more")),
    ),
    (
        "Which part does the work",
        "`pd_no_id` is `pd` without the identity loss; `joint` trains prompts and encoders at once. Exploratory; the "
        "two were tuned over more runs than `pd` and `direct` ([rates](convergence_tables.md#rates)), and at 50, 200 "
        "and 400 identities run on a CPU, those on a GPU ([why](protocol_convergence.md#notes-after-its-date)). Of "
        "such intervals one in twenty leaves out 0 by chance.",
        (("pd", "pd_no_id"), ("pd", "joint"), ("joint", "direct")),
    ),
    (
        "How far prompts alone get",
        "Prompts in front of a frozen model, 4, 16 or 64 a block in both towers, for at most 120 epochs. Exploratory.",
        (
            ("prompts_4", "zero_shot"), ("prompts_4", "direct"), ("prompts_16", "prompts_4"),
            ("prompts_64", "prompts_16"), ("prompts_64", "direct"),
        ),
    ),
)  # fmt: skip

ABOUT_LEADS = """\
Exploratory; these epochs were chosen after the results were in. Best validation mAP so far of `pd` less that of
`direct`, after so many epochs of the encoders: in points, mean ± standard deviation over seeds, **bold** where the
95 % interval over seeds (Student's t) leaves out 0, as it would in one cell of twenty by chance. `pd` has had its
stage 1 by then, and trains encoders at a lower rate ([rates](convergence_tables.md#rates)), which alone could explain
a lead of `direct` in early epochs."""


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
        found = paired_difference(many, few)
        words = {
            1: "With fewer identities PD does worse against direct fine-tuning",
            0: "No dependence on the number of identities was found",
            -1: "With fewer identities PD does better against direct fine-tuning",
        }[direction(found)]
        return f"{words} (400 less 50: {points(found)})."

    def comparisons(self, pairs: Iterable[tuple[str, str]]) -> str:
        """Rank-1 of one arm less that of another at each number of identities; empty without a pair."""
        rows: list[list[str]] = []
        for arm, baseline in pairs:
            for number, results in self.by_identities.items():
                if have_a_pair(results, arm, baseline):
                    primary = (arm, baseline) == ("pd", "direct") and number in (100, 400)
                    level = PRIMARY_LEVEL if primary else 0.95
                    one, other = ([run["test"]["rank1"] for run in results[name].values()] for name in (arm, baseline))
                    difference = rank1_difference(results, arm, baseline, level=level)
                    cells = difference_cells(difference, neither=NEITHER)
                    scores = [f"`{arm}`", cell(one), f"`{baseline}`", cell(other)]
                    rows.append([str(number), *scores, *cells, f"{100 * level:g} %"])
        names = ["identities", "arm", "Rank-1", "baseline", "Rank-1"]
        head = [*names, "seeds", "difference, points", "interval", "verdict", "level"]
        return markdown(head, rows) if rows else ""

    def compared(self, title: str, arms: str, pairs: Iterable[tuple[str, str]]) -> str:
        """A section with the comparisons that answer one question, and what its arms are."""
        table = self.comparisons(pairs)
        return f"## {title}\n\n{arms} Rank-1 in percent, mean ± standard deviation.\n\n{table}" if table else ""

    def lead(self) -> str:
        """By epochs of the encoders, who is ahead on validation."""
        complete = [number for number in self.by_identities if self._is_complete(number, "pd", "direct")]
        found = lead_section({number: self.by_identities[number] for number in complete}, "pd", "direct")
        return f"## Who leads after how many epochs\n\n{ABOUT_LEADS}\n\n{found}" if found else ""

    def better_base(self) -> str:
        """The comparison from the better base, and how its difference compares with that from version 2."""
        rows: list[list[str]] = []
        shown: dict[int, Results] = {}
        for number, results in self.from_better_base.items():
            arms = ("zero_shot", "direct", "pd")
            if not have_a_pair(results, "pd", "direct") or not results.get("zero_shot"):
                continue
            scores = [cell([run["test"]["rank1"] for run in results[arm].values()]) for arm in arms]
            difference = difference_cells(rank1_difference(results, "pd", "direct"), neither=NEITHER)
            better, before = gains(results, "pd", "direct"), gains(self.by_identities.get(number, {}), "pd", "direct")
            change = points(paired_difference(better, before)) if better.keys() & before.keys() else "–"
            rows.append([str(number), *scores, *difference, change])
            shown[number] = results
        if not rows:
            return ""
        head = ["identities", "`zero_shot`", "`direct`", "`pd`", "seeds", "difference, points", "interval", "verdict"]
        return "\n\n".join(
            [
                "## From a better base",
                f"The same runs from {self._base()}. Rates are those tuned on version 2, which may suit one arm better "
                "than the other here. The last column: how much larger the difference is than from version 2, paired "
                "by seed and person. 95 % intervals; exploratory.",
                markdown([*head, "than from version 2"], rows),
                made_by(self._every(shown), f"{COMMAND} --parts better_base", minutes=False),
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
        """Best validation mAP so far by epoch of the encoders: means over seeds."""
        results = self.by_identities.get(number, {})
        if not self._is_complete(number, "pd", "direct"):
            return ""
        path = draw_curves(self.plots / f"convergence_{number}.png", results, COLOURS)
        return figure(
            path,
            f"Best validation mAP so far by epoch of the encoders at {number} identities; before 0, of prompts alone",
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
        reason = "Nothing is left out because of a result; `make study-convergence` does what is left."
        return "\n".join(["## Not run yet", "", *lines, "", reason, ""])

    def text(self) -> str:
        """The answer, a figure, a table for each question, and what is not run."""
        blocks = [INTRODUCTION, "## What was found", self.answer()]
        blocks += [self.curves(number) for number in (400, 100)]
        blocks += [self.compared(*question) for question in QUESTIONS[:1]] + [self.lead()]
        blocks += [self.compared(*question) for question in QUESTIONS[1:]]
        if any(self.by_identities.values()):
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
                [f"`{arm}`", *_tuned_rates(arm, pair), str(self.rates["runs"][arm])]
                for arm, pair in self.rates["rates"].items()
            ]
            blocks.append("## Rates\n\n" + markdown(["arm", "prompts", "encoders", "tuning runs"], rows))
        return "\n\n".join(filter(None, blocks)) + "\n"


def _tuned_rates(arm: str, rates: Sequence[float]) -> list[str]:
    """The rates of prompts and of encoders; a dash for one that the arm does not have."""
    has = {"first": (True, False), "last": (False, True)}.get(COURSES[arm].tuned, (True, True))
    return [f"{rate:g}" if there else "–" for rate, there in zip(rates, has, strict=True)]


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
