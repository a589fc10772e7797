"""Build docs/convergence.md and its appendix, docs/convergence_tables.md, from the committed results.

python benchmarks/study/convergence_page.py
"""

import argparse
from pathlib import Path

from convergence_appendix import ConvergenceAppendix
from convergence_blocks import (
    BETTER_BASE,
    BUILT,
    COMMAND,
    EXPLORATORY,
    LIMITS,
    NEITHER,
    QUESTIONS,
    comparison_table,
    direction,
    ended_by_limits,
    every,
    joined,
    not_by_seeds_alone,
    points,
)
from convergence_plan import COURSES, EVERY_ARM, PRIMARY, RATES, RESULTS, parts, read_rates
from convergence_results import PRIMARY_LEVEL, PRIMARY_NUMBERS, ConvergenceResults
from curves import draw_curves, steps_table
from page import DOCS
from promptreid.evaluation.pictures.canvas import BLUE, GREY, VERMILION
from tables import figure, made_by

COLOURS = {"direct": VERMILION, "direct_more": GREY, "pd": BLUE}

MOST, MORE = COURSES["direct"].epochs[1], COURSES["direct_more"].epochs[1]  # epochs of the encoders

INTRODUCTION = f"""# Evidence at convergence

{BUILT}

Prompt Decoupling, `pd`, first tunes prompts of frozen encoders (stage 1), then the encoders behind frozen prompts
(stage 2). Direct fine-tuning, `direct`, trains the encoders without prompts; `direct_more` may do so for as many epochs
as both stages of `pd` together. The [first study](evidence.md) stopped after 360 steps; this one trains until
validation no longer improves, or for {MOST} epochs a stage, with 50 to 400 identities. It has the same synthetic
pedestrians and the same small base, version 2. The [protocol](protocol_convergence.md) was committed before the first
run. Nothing here is about photographs."""

# What stands above a table, and what is compared with what.
TABLES = (
    (
        f"With the same limit, {MOST} epochs of the encoders. The rows at 97.5 % are the primary comparison, the "
        "others exploratory. Rank-1 in percent, mean ± standard deviation over seeds.",
        ("pd", "direct"),
    ),
    (
        f"With a limit of {MORE} epochs for direct fine-tuning, at a rate tuned for it. Exploratory.",
        ("pd", "direct_more"),
    ),
)

HOW = f"""\
- **Data**: {LIMITS.images_per_identity} drawn images a person, each with 2 captions,
  {LIMITS.image_size[0]} × {LIMITS.image_size[1]} pixels. Trained on the first *n* of {LIMITS.persons[0]} persons,
  validated on {LIMITS.persons[1]} others, and tested on {LIMITS.persons[2]} others, once, at the end.
- **Training**: batches of {LIMITS.batch_size} pairs; the rate warms up over a twelfth of the epoch limit and falls to
  0 as a cosine. A stage ends when validation mAP has not improved for {LIMITS.patience} epochs, or at its limit, and
  keeps the weights of its best epoch.
- **Rates** were tuned per arm on a separate seed, with 100 identities only ([rates](convergence_tables.md#rates)).
  Arms are compared at their own rates.
- **Intervals** are bootstrap intervals of the difference in Rank-1, resampling seeds, and then persons within each.
- **Epochs, steps and time**: arms have equal limits and stop early, so they differ in the steps that they use. Most
  runs of `direct_more` used less than the limit of `direct`: with it, a longer schedule and another rate are tested
  more than longer training."""

WAYS = {1: "ahead of", 0: f"{NEITHER} from", -1: "behind"}


class ConvergencePage:
    """The answer in three sentences and a figure, its tables, what else was found, and how.

    Args:
        found: The results.
        plots: Folder for the figure.
    """

    def __init__(self, found: ConvergenceResults, plots: Path) -> None:
        self.found, self.plots = found, plots

    def answer(self) -> str:
        """The three sentences of the protocol; of what is not run yet, that it is not."""
        equal = self.found.differences("pd", "direct", PRIMARY_NUMBERS, level=PRIMARY_LEVEL)
        if not equal:
            return "**Not finished.** A sentence is written once all seeds of its comparison have been run."
        more = self.found.differences("direct_more", "pd", PRIMARY_NUMBERS)
        words = {1: "beats", 0: f"is {NEITHER} from", -1: "is behind"}
        said = joined(equal, words, "direct fine-tuning")
        first = f"**Trained to convergence with equal encoder epochs, PD {said}.**"
        words = {1: "is ahead of", 0: f"is {NEITHER} from", -1: "is still behind"}
        second = f"Given the epochs of stage 1 too, direct fine-tuning {joined(more, words, 'PD')}." if more else ""
        missing = [str(number) for number in PRIMARY_NUMBERS if number not in equal]
        left = f"The comparison at {missing[0]} identities is not finished yet." if missing else ""
        return "\n".join(filter(None, [first, second, self._trend(), left]))

    def _trend(self) -> str:
        found = self.found.trend()
        if found is None:
            return ""
        words = {
            1: "With fewer identities PD does worse against direct fine-tuning",
            0: "No dependence on the number of identities was found",
            -1: "With fewer identities PD does better against direct fine-tuning",
        }[direction(found)]
        return f"{words} (400 less 50: {points(found)})."

    def curves(self) -> str:
        """Best validation mAP so far by epoch, means over seeds, at the numbers of the primary comparison."""
        complete = self.found.complete("pd", "direct")
        shown = {f"{number} identities": complete[number] for number in PRIMARY_NUMBERS if number in complete}
        if not shown:
            return ""
        path = draw_curves(self.plots / "convergence.png", shown, COLOURS)
        return figure(
            path, "Best validation mAP so far after each epoch, mean over seeds; negative epochs are stage 1 of PD"
        )

    def comparison(self) -> str:
        """The tables of the primary comparison and of that with more epochs."""
        tables = [(above, comparison_table(self.found.from_version_2, [pair], levels=True)) for above, pair in TABLES]
        shown = [f"{above}\n\n{table}" for above, table in tables if table]
        return "\n\n".join(["## PD against direct fine-tuning", *shown]) if shown else ""

    def what_else(self) -> str:
        """A sentence for each further question that was answered, with its place in the appendix."""
        lines: list[str] = []
        for question in QUESTIONS:
            for pair, (subject, baseline) in question.sentences.items():
                if found := self.found.differences(*pair):
                    weak = not_by_seeds_alone(self.found.complete(*pair), [pair])
                    lines.append(_item(question.title, f"{subject} {joined(found, WAYS, baseline)}", weak))
        if base := self._better_base():
            lines.append(base)
        if not lines:
            return ""
        return "\n".join(["## What else was found", "", f"These are {EXPLORATORY}.", "", *lines])

    def _better_base(self) -> str:
        found = self.found.differences_from_better_base()
        changes = {number: self.found.change_from_version_2(number) for number in found}
        known = {number: change for number, change in changes.items() if change is not None}
        if not known:
            return ""
        said = joined(found, WAYS, "direct fine-tuning")
        ways = {1: "larger than", 0: f"{NEITHER} from", -1: "smaller than"}
        changed = joined(known, ways, "that from version 2")
        weak = not_by_seeds_alone({n: self.found.from_better_base[n] for n in found}, [("pd", "direct")])
        return _item(BETTER_BASE, f"From a better base, PD is {said}; the difference is {changed}", weak)

    def how(self) -> str:
        """Data, training and statistics, and the steps that were used."""
        results = self.found.from_version_2
        if not results:
            return ""
        table = steps_table(results, PRIMARY[1:])
        made = made_by(every(results), COMMAND, minutes=False)
        used = f"Steps used, mean ± standard deviation over seeds. {ended_by_limits(results, PRIMARY[1:])}"
        more = "All scores, epochs, curves and rates: [the appendix](convergence_tables.md)."
        return "\n\n".join(filter(None, ["## How", HOW, used if table else "", table, made, more]))

    def not_run(self) -> str:
        """What of the protocol has no result yet."""
        lines: list[str] = []
        for name, wanted in parts(EVERY_ARM, base="other").items():
            done = sum(run.path(self.found.folder).is_file() for run in self.found.parts[name])
            if done < len(wanted):
                lines.append(f"- `{name}`: {done} of {len(wanted)} runs")
        if not lines:
            return ""
        reason = "Nothing is left out because of a result; `make study-convergence` runs the rest."
        return "\n".join(["## Not run yet", "", *lines, "", reason])

    def text(self) -> str:
        """The whole page."""
        blocks = [INTRODUCTION, "## What was found", self.answer(), self.curves(), self.comparison()]
        blocks += [self.how(), self.what_else(), self.not_run()]
        return "\n\n".join(filter(None, blocks)) + "\n"


def _item(title: str, said: str, weak: str) -> str:
    link = f"[{title[0].lower()}{title[1:]}](convergence_tables.md#{title.lower().replace(' ', '-')})"
    return f"- {said} ({link}). {weak}".rstrip()


def main() -> None:
    """Write both pages and their figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--results", type=Path, default=RESULTS)
    parser.add_argument("--rates", type=Path, default=RATES)
    parser.add_argument("--docs", type=Path, default=DOCS)
    arguments = parser.parse_args()
    found = ConvergenceResults(read_rates(arguments.rates), arguments.results)
    plots = arguments.docs / "pictures"
    (arguments.docs / "convergence.md").write_text(ConvergencePage(found, plots).text(), encoding="utf-8")
    (arguments.docs / "convergence_tables.md").write_text(ConvergenceAppendix(found, plots).text(), encoding="utf-8")


if __name__ == "__main__":
    main()
