"""The appendix of the study at convergence: its further questions, and all scores, epochs, curves and rates."""

import json
from collections.abc import Sequence
from pathlib import Path

from comparison import Results, have_a_pair, rank1_difference
from convergence_blocks import (
    BETTER_BASE,
    BUILT,
    COMMAND,
    EXPLORATORY,
    NEITHER,
    QUESTIONS,
    Question,
    comparison_table,
    ended_by_limits,
    every,
    not_by_seeds_alone,
    points,
)
from convergence_plan import COURSES, PRIMARY
from convergence_results import ConvergenceResults
from curves import draw_curves, epochs_table, lead_section
from promptreid.evaluation.pictures.canvas import BLUE, GREEN, GREY, ORANGE, SKY, VERMILION
from promptreid.towers.tiny import TINY_FOLDER
from tables import cell, difference_cells, figure, made_by, markdown, score_table

OF_ENCODERS = {"direct": VERMILION, "direct_more": GREY, "pd": BLUE, "pd_no_id": SKY, "joint": GREEN}
OF_PROMPTS = {"prompts_4": SKY, "prompts_16": BLUE, "prompts_64": ORANGE}

INTRODUCTION = f"""# Evidence at convergence: appendix

{BUILT}

The further questions of [the study](convergence.md), and all its scores. Comparisons here are {EXPLORATORY}.
From version 2 at 50, 200 and 400 identities, `zero_shot`, `direct`, `direct_more` and `pd` ran on a GPU; everything
else ran on CPUs ([why](protocol_convergence.md#notes-after-its-date)). Scores are in percent on the test split: mean ±
standard deviation over seeds."""

ABOUT_LEADS = """\
The epochs in this table were chosen after the results were in. It gives the best validation mAP so far of `pd` less
that of `direct`, in points, after so many epochs of the encoders, in **bold** where the 95 % interval over seeds
(Student's t) excludes 0. By then `pd` has had its stage 1. It trains encoders at a lower rate ([rates](#rates)), which
alone could explain a lead of `direct` in early epochs."""


class ConvergenceAppendix:
    """What does not stand on the page.

    Args:
        found: The results.
        plots: Folder for the figures.
    """

    def __init__(self, found: ConvergenceResults, plots: Path) -> None:
        self.found, self.plots = found, plots
        self.results = found.from_version_2

    def answer(self, question: Question) -> str:
        """What the arms are, their comparisons, and what weakens these; empty for a question that was not run."""
        table = comparison_table(self.results, question.pairs, levels=False)
        if not table:
            return ""
        new = dict.fromkeys(arm for pair in question.pairs for arm in pair if arm not in PRIMARY)
        weak = [not_by_seeds_alone(self.results, question.pairs), ended_by_limits(self.results, new)]
        return "\n\n".join([f"## {question.title}", question.arms, table, " ".join(filter(None, weak))])

    def better_base(self) -> str:
        """The comparison from the better base, and how its difference compares with that from version 2."""
        rows: list[list[str]] = []
        shown: dict[int, Results] = {}
        for number, results in self.found.from_better_base.items():
            arms = ("zero_shot", "direct", "pd")
            if not have_a_pair(results, "pd", "direct") or not results.get("zero_shot"):
                continue
            scores = [cell([run["test"]["rank1"] for run in results[arm].values()]) for arm in arms]
            difference = difference_cells(rank1_difference(results, "pd", "direct"), neither=NEITHER)
            change = self.found.change_from_version_2(number)
            rows.append([str(number), *scores, *difference, points(change) if change else "–"])
            shown[number] = results
        if not rows:
            return ""
        head = ["identities", "`zero_shot`", "`direct`", "`pd`", "seeds", "difference, points", "interval", "verdict"]
        weak = " ".join(
            [not_by_seeds_alone(shown, [("pd", "direct")]), ended_by_limits(shown, ("direct", "pd"))]
        ).strip()
        return "\n\n".join(
            [
                f"## {BETTER_BASE}",
                f"`zero_shot`, `direct` and `pd` again, from {self._base()}. Rates are those tuned on version 2, which "
                "may suit one arm better than the other here. The last column gives how much larger the difference is "
                "than from version 2, paired by seed and person.",
                markdown([*head, "change from version 2"], rows),
                weak,
                made_by(every(shown), f"{COMMAND} --parts better_base", minutes=False),
            ]
        )

    def _base(self) -> str:
        record = json.loads((TINY_FOLDER / "training-v3.json").read_text(encoding="utf-8"))
        if not record["weights_sha256"].startswith(str(self.found.better)):
            return f"other weights, `{self.found.better}`"
        steps = f"{record['settings']['further']:,} further steps of its own pretraining"
        return f"[version 3 of the base](synthetic.md#promptreid-tiny), {steps} without any of these people"

    def lead(self) -> str:
        """By epochs of the encoders, who is ahead on validation."""
        section = lead_section(self.found.complete("pd", "direct"), "pd", "direct")
        return f"## Who leads after how many epochs\n\n{ABOUT_LEADS}\n\n{section}" if section else ""

    def curves(self) -> str:
        """The learning curves of all arms, by number of identities."""
        drawn = (
            ("encoders", self.results, OF_ENCODERS, "of the arms that train encoders; stage 1 is below 0"),
            ("prompts", self.results, OF_PROMPTS, "of prompts alone"),
            ("better_base", self.found.from_better_base, OF_ENCODERS, "from the better base; stage 1 is below 0"),
        )
        figures: list[str] = []
        for name, by_identities, colours, what in drawn:
            panels = {f"{n} identities": found for n, found in by_identities.items() if found.keys() & colours.keys()}
            if panels:
                path = draw_curves(self.plots / f"convergence_{name}.png", panels, colours)
                figures.append(figure(path, f"Best validation mAP so far after each epoch, mean over seeds, {what}"))
        return "\n\n".join(["## Learning curves", *figures]) if figures else ""

    def scores(self) -> str:
        """By number of identities, all scores and the epochs that were used."""
        blocks: list[str] = []
        for number, results in self.results.items():
            shown = [arm for arm in COURSES if results.get(arm)]
            blocks += [f"## {number} identities", score_table(results, shown)]
            blocks += [score_table(results, shown, direction="image to text")]
            blocks += [epochs_table(results, shown)]
        return "\n\n".join(filter(None, blocks))

    @staticmethod
    def arms() -> str:
        """What every arm is."""
        rows = [[f"`{name}`", course.purpose] for name, course in COURSES.items()]
        return "## Arms\n\n" + markdown(["arm", "what it is"], rows)

    def rates(self) -> str:
        """The tuned rates."""
        tuned, runs = self.found.rates["rates"], self.found.rates["runs"]
        rows = [[f"`{arm}`", *_tuned_rates(arm, pair), str(runs[arm])] for arm, pair in tuned.items()]
        return "## Rates\n\n" + markdown(["arm", "prompts", "encoders", "tuning runs"], rows) if rows else ""

    def text(self) -> str:
        """The whole appendix."""
        blocks = [INTRODUCTION, self.arms(), *map(self.answer, QUESTIONS), self.better_base()]
        blocks += [self.lead(), self.curves(), "" if self.results else "No run has ended yet."]
        return "\n\n".join(filter(None, [*blocks, self.scores(), self.rates()])) + "\n"


def _tuned_rates(arm: str, rates: Sequence[float]) -> list[str]:
    """The rates of prompts and of encoders; a dash for one that the arm does not have."""
    has = {"first": (True, False), "last": (False, True)}.get(COURSES[arm].tuned, (True, True))
    return [f"{rate:g}" if there else "–" for rate, there in zip(rates, has, strict=True)]
