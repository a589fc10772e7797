"""Build docs/convergence.md and its appendix, docs/convergence_tables.md, from the committed results.

python benchmarks/study/convergence_page.py
"""

import argparse
from pathlib import Path

from comparison import paired_difference
from convergence_appendix import ConvergenceAppendix
from convergence_blocks import (
    BUILT,
    COMMAND,
    LIMITS,
    NEITHER,
    comparison_table,
    cut_short,
    direction,
    every,
    joined,
    points,
)
from convergence_plan import EVERY_ARM, PRIMARY, RATES, RESULTS, parts, read_rates
from convergence_results import PRIMARY_LEVEL, PRIMARY_NUMBERS, ConvergenceResults
from curves import draw_curves, steps_table
from page import DOCS
from promptreid.evaluation.pictures.canvas import BLUE, GREY, VERMILION
from tables import figure, made_by

COLOURS = {"direct": VERMILION, "direct_more": GREY, "pd": BLUE}

INTRODUCTION = f"""# Evidence at convergence

{BUILT}

Prompt Decoupling, `pd`, first tunes prompts of frozen encoders (stage 1), then the encoders behind frozen prompts
(stage 2). Direct fine-tuning, `direct`, trains the encoders without prompts. The [first study](evidence.md) stopped
after 360 steps; this one trains until validation no longer improves, or for 60 epochs a stage, with 50 to 400
identities. It has the same synthetic pedestrians and the same small base, version 2. The
[protocol](protocol_convergence.md) was committed before the first run. Nothing here is about photographs."""

# What stands above a table, and what is compared with what.
TABLES = (
    (
        "With equal epochs of the encoders, at most 60. The rows at 97.5 % are the primary comparison, the others "
        "exploratory. Rank-1 in percent, mean ± standard deviation over seeds.",
        ("pd", "direct"),
    ),
    (
        "With the epochs of stage 1 for direct fine-tuning too: `direct_more` may train for 120, at a rate of "
        "its own. Exploratory.",
        ("pd", "direct_more"),
    ),
)

HOW = f"""\
- **Data**: 4 drawn images a person, each with 2 captions, {LIMITS.image_size[0]} × {LIMITS.image_size[1]} pixels.
  Trained on the first *n* of {LIMITS.persons[0]} persons, validated on {LIMITS.persons[1]} others, and tested on
  {LIMITS.persons[2]} others, once, at the end.
- **Training**: batches of {LIMITS.batch_size} pairs; the rate warms up over a twelfth of the most epochs and falls to 0
  as a cosine. A stage ends when validation mAP has not improved for {LIMITS.patience} epochs, or at its most epochs,
  and keeps the weights of its best epoch.
- **Rates** were tuned for each arm, on another seed, with 100 identities alone
  ([rates](convergence_tables.md#rates)). Arms are compared at their own rates.
- **Intervals**: of the difference in Rank-1, paired by seed and person, from a bootstrap that draws seeds, and persons
  within each.
- **Epochs, steps and time**: arms may use equally many epochs, and each stage ends when it no longer improves. The
  steps that were used are below: direct fine-tuning left steps, and so time, unused."""

# What else was asked: where it stands in the appendix, its comparison, and what is said above 0, below and of neither.
ELSE = (
    ("what the identity loss adds", "PD", ("pd", "pd_no_id"), "PD without the identity loss"),
    ("what the decoupling adds", "PD", ("pd", "joint"), "prompts and encoders trained at once"),
    ("how far prompts alone get", "Four prompts a block alone", ("prompts_4", "zero_shot"), "the untrained model"),
    ("how far prompts alone get", "Four prompts a block alone", ("prompts_4", "direct"), "direct fine-tuning"),
)
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
        gains = self.found.gains("pd", "direct")
        if not {50, 400} <= gains.keys():
            return ""
        found = paired_difference(gains[400], gains[50])
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
        return figure(path, "Best validation mAP so far after each epoch, mean over seeds; stage 1 of PD is below 0")

    def comparison(self) -> str:
        """The tables of the primary comparison and of that with more epochs."""
        tables = [(above, comparison_table(self.found.from_version_2, [pair], levels=True)) for above, pair in TABLES]
        shown = [f"{above}\n\n{table}" for above, table in tables if table]
        return "\n\n".join(["## PD against direct fine-tuning", *shown]) if shown else ""

    def what_else(self) -> str:
        """A sentence for each further question that was run, with its place in the appendix."""
        lines: list[str] = []
        for title, subject, (arm, baseline), other in ELSE:
            found = self.found.differences(arm, baseline)
            if found:
                verb = "is" if subject == "PD" else "are"
                said = joined(found, {way: f"{verb} {words}" for way, words in WAYS.items()}, other, brief=True)
                lines.append(f"- {subject} {said} ([{title}]({_place(title)})).")
        if base := self._better_base():
            lines.append(base)
        if not lines:
            return ""
        head = "Exploratory, with 95 % intervals: with no true difference, about one in twenty excludes 0."
        return "\n".join(["## What else was found", "", head, "", *lines])

    def _better_base(self) -> str:
        found = self.found.differences_from_better_base()
        changes = {number: self.found.change_from_version_2(number) for number in found}
        known = {number: change for number, change in changes.items() if change is not None}
        if not known:
            return ""
        said = joined(found, {way: f"is {words}" for way, words in WAYS.items()}, "direct fine-tuning")
        ways = {1: "is larger than", 0: f"is {NEITHER} from", -1: "is smaller than"}
        changed = joined(known, ways, "that from version 2")
        title = "from a better base"
        return f"- From a better base, PD {said}; the difference {changed} ([{title}]({_place(title)}))."

    def how(self) -> str:
        """Data, training and statistics, and the steps that were used."""
        results = {number: found for number, found in self.found.from_version_2.items() if found}
        if not results:
            return ""
        table = steps_table(results, PRIMARY[1:])
        made = made_by(every(results), COMMAND, minutes=False)
        used = f"Steps used, mean ± standard deviation over seeds. {cut_short(results, PRIMARY[1:])}"
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
        blocks += [self.what_else(), self.how(), self.not_run()]
        return "\n\n".join(filter(None, blocks)) + "\n"


def _place(title: str) -> str:
    return f"convergence_tables.md#{title.replace(' ', '-')}"


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
