"""Build docs/evidence.md and its appendix, docs/evidence_tables.md, from the committed results.

python benchmarks/study/page.py
"""

import argparse
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from comparison import Results, gather
from plan import (
    ABLATIONS,
    ARMS,
    BUDGET,
    COMPARED,
    CONTROLS,
    HERE,
    LONG,
    MAIN,
    RATES,
    RESULTS,
    SMALL_ARMS,
    Run,
    expected,
    parts,
    plan,
    read_rates,
)
from steps import split_steps
from tables import (
    change_table,
    difference_table,
    draw_differences,
    draw_response,
    figure,
    group_table,
    markdown,
    measure_table,
    not_run,
    response_table,
    score_table,
    section,
)

DOCS = HERE.parents[1] / "docs"
FINDINGS = HERE / "findings.md"
UNTUNED: dict[str, Any] = {"costs": (1.0, 1.0), "rates": {}}
Against = tuple[Sequence[str], str]  # some arms, and the one that they are compared with
FULL = "python benchmarks/study/full.py --parts"

BUILT = "*Built by `python benchmarks/study/page.py` from `benchmarks/results/study`; not edited by hand.*"

INTRODUCTION = f"""# Evidence

{BUILT}

Everything here was measured on synthetic pedestrians with version 2 of the small base. It tests the mechanism of
Prompt Decoupling, and says nothing about the paper's figures on CUHK-PEDES, ICFG-PEDES or RSTPReid. The
[protocol](protocol.md) was committed before the first comparison. Every other table is in the
[appendix](evidence_tables.md).
"""

APPENDIX = f"""# Evidence: all tables

{BUILT}

Every comparison of the [protocol](protocol.md), which explains the arms; [Evidence](evidence.md) says what they show.
Scores are in percent on the test split, mean ± standard deviation over seeds. Intervals are bootstrapped; one that
contains 0 is called *no difference found*.
"""


class Page:
    """The sections of both pages, from results in one folder.

    Args:
        rates: What `read_rates` returned, or `UNTUNED`.
        results: Where the results are.
        plots: Folder for the plots.
    """

    def __init__(self, rates: Mapping[str, Any], results: Path, plots: Path) -> None:
        self.rates, self.results, self.plots = rates, results, plots
        self.parts = parts(rates)
        self.usual = self._gather(self.parts["main"] + self.parts["controls"] + self.parts["ablations"])
        costly = [run for part in ("gap", "long", "base", "low_data", "transfer") for run in self.parts[part]]
        self.others = {
            name: self._gather(run for run in costly if run.condition == name)
            for name in dict.fromkeys(run.condition for run in costly)
        }

    def _gather(self, runs: Iterable[Run]) -> Results:
        return gather(runs, self.results)

    def small(self) -> str:
        """The arms of `make study`, on its seeds alone."""
        results = self._gather(plan(SMALL_ARMS, range(5), self.rates))
        tables = [score_table(results, SMALL_ARMS), difference_table(results, SMALL_ARMS, "direct")]
        return section("The small study", "make study", results, tables, minutes=True)

    def table(self, title: str, part: str, arms: Sequence[str], baseline: str, *, also: Against | None = None) -> str:
        """The scores of a part both ways, the differences with their plot, and `also` some arms less another."""
        wanted = (*arms, baseline, *([also[1]] if also else []))
        results = {arm: self.usual[arm] for arm in wanted if arm in self.usual}
        if not any(arm in results for arm in arms if arm != baseline):
            return section(title, f"{FULL} {part}", {}, [])
        shown = arms if baseline in arms else (baseline, *arms)
        plot = draw_differences(self.plots / f"evidence_{part}.png", results, shown, baseline)
        tables = [
            score_table(results, shown),
            score_table(results, shown, direction="image to text"),
            not_run(f"`{arm}`" for arm in shown if arm not in results),
            difference_table(results, shown, baseline),
            figure(plot, f"Rank-1 of each arm less that of {baseline}, with 95 % intervals"),
        ]
        if also:
            tables.append(difference_table(results, *also))
        return section(title, f"{FULL} {part}", results, tables)

    def equal_time(self) -> str:
        """Where `direct` has as many steps as the arm of equal wall-clock time, a sentence that says so."""
        one, two = BUDGET.stage_one_steps, BUDGET.stage_two_steps
        steps = ARMS["direct_equal_time"].last_steps(one, two, costs=(self.rates["costs"][0], self.rates["costs"][1]))
        rounds, length = split_steps(steps, about=BUDGET.round_steps)
        if not self.rates["rates"] or rounds * length != one + two:
            return ""
        return (
            f"In wall-clock time both stages of `pd` take as long as {steps} steps of direct fine-tuning. In whole "
            f"rounds that is {rounds * length}: `direct_equal_time` is `direct` itself, and the comparison of the two "
            "above is also the one at equal wall-clock time.\n"
        )

    def response(self, title: str, part: str, attribute: str, label: str) -> str:
        """PD less direct fine-tuning over the gap, or over the share of identities."""
        doses = {getattr(run, attribute): run.condition for run in self.parts[part]}
        results = {dose: self.others[name] for dose, name in doses.items()}
        if not any(results.values()):
            return section(title, f"{FULL} {part}", {}, [])
        results[1.0] = self._compared()
        named = {f"{label} {dose:g}": results[dose] for dose in sorted(results)}
        plot = draw_response(self.plots / f"evidence_{part}.png", results, "pd", "direct", label=label)
        tables = [response_table(named, "pd", "direct"), figure(plot, f"PD less direct fine-tuning by {label}")]
        every = {f"{arm} {dose}": seeds for dose, found in results.items() for arm, seeds in found.items()}
        return section(title, f"{FULL} {part}", every, tables)

    def long(self) -> str:
        """PD less direct fine-tuning at the budget of everything else and at twice as many steps in all."""
        usual, twice = (budget.stage_one_steps + budget.stage_two_steps for budget in (BUDGET, LONG))
        costs = self.rates["costs"]
        clock = round(costs[0] * LONG.stage_one_steps + costs[1] * LONG.stage_two_steps)
        note = (
            f"In wall-clock time `pd` takes {clock} steps of direct fine-tuning here. Rates: those of the usual budget."
        )
        return self.contrast("Twice the steps", "long", (f"{usual} steps", f"{twice} steps"), [note])

    def base(self) -> str:
        """Direct fine-tuning and PD from version 2 of the base and from the one that was pretrained further."""
        further, arms = self._condition("base"), ("zero_shot", *COMPARED)
        blocks = [
            "From the base that was pretrained further:",
            score_table(further, arms),
            measure_table(further, arms),
            "MMD² here is measured by that base's own features, so it cannot be compared with that of other sections.",
        ]
        return self.contrast("Another base", "base", ("version 2", "pretrained further"), blocks)

    def contrast(self, title: str, part: str, names: tuple[str, str], blocks: Sequence[str]) -> str:
        """PD less direct fine-tuning as usual and under a part's one condition, how much that changes, and `blocks`."""
        other = self._condition(part)
        if not other:
            return section(title, f"{FULL} {part}", {}, [])
        named = dict(zip(names, (self._compared(), other), strict=True))
        every = {f"{arm}, {name}": seeds for name, found in named.items() for arm, seeds in found.items()}
        tables = [response_table(named, "pd", "direct"), change_table(named, "pd", "direct")]
        return section(title, f"{FULL} {part}", every, [*tables, *blocks])

    def transfer(self) -> str:
        """Trained and validated on some cameras, tested on the others."""
        results, arms = self._condition("transfer"), ("zero_shot", *COMPARED)
        tables = [score_table(results, arms), difference_table(results, arms, "direct")]
        return section("Other cameras", f"{FULL} transfer", results, tables)

    def _condition(self, part: str) -> Results:
        """The results of a part whose runs are all of one condition."""
        runs = self.parts[part]
        return self.others[runs[0].condition] if runs else {}

    def _compared(self) -> Results:
        """Direct fine-tuning and PD under the usual conditions."""
        return self._gather(plan(COMPARED, range(5), self.rates))

    def distances(self) -> str:
        """Domain gap per modality, the modality gap apart, and forgetting."""
        note = (
            "MMD² is the squared distance from the target's features to the bare model's features of its own domain, "
            "each modality by itself: `zero_shot` is before stage 1, `stage_one` after it. The modality gap is the "
            "distance between the mean image and the mean text feature. All of it is measured with prompts on: without "
            "them, the model after stage 1 is the base."
        )
        shown = {arm: self.usual[arm] for arm in (*MAIN, *CONTROLS) if arm in self.usual}
        return section(
            "Distance and forgetting", f"{FULL} main controls", shown, [note, measure_table(shown, tuple(shown))]
        )

    def groups(self) -> str:
        """Rank-1 by skin tone, body build and words for gender."""
        note = (
            "These are drawn people: this shows how to analyse a system's errors, not how any system treats people. "
            "“none” are captions without a word for gender."
        )
        shown = {arm: self.usual[arm] for arm in ("zero_shot", "direct", "pd") if arm in self.usual}
        return section("Who is found less often", "make study", shown, [note, group_table(shown, tuple(shown))])

    def not_run(self) -> str:
        """What of the whole protocol has no result yet."""
        lines: list[str] = []
        for part, runs in self.parts.items():
            done = sum(run.path(self.results).is_file() for run in runs)
            if done < expected(part):
                lines.append(f"- `{part}`: {done} of {expected(part)} runs done")
        untuned = [f"`{name}`" for name, arm in ARMS.items() if arm.tuned != "none" and name not in self.rates["rates"]]
        if untuned:
            lines.append(f"- rates not tuned, so not run: {', '.join(untuned)}")
        lines.append(
            "- everything on CUHK-PEDES, ICFG-PEDES and RSTPReid: the data and CLIP's weights are not available here; "
            "[the recipe](paper_recipe.md) is ready"
        )
        reason = "Runs are missing for lack of time on two cores; nothing was left out because of its result."
        return "\n".join(["## What was not run, and why", "", *lines, "", reason, ""])

    def tuning(self) -> str:
        """The rates and how they were found."""
        head = "## Rates\n\nTuned by `python benchmarks/study/tune.py` on the validation split of seed 100"
        if not self.rates["rates"]:
            return f"{head}: **not done yet.**\n"
        rows = [
            [
                f"`{arm}`",
                f"{first:g}" if ARMS[arm].tuned != "last" else "",
                f"{last:g}" if ARMS[arm].tuned != "first" else "",
                str(self.rates["runs"][arm]),
            ]
            for arm, (first, last) in self.rates["rates"].items()
        ]
        table = markdown(["arm", "stage 1 or prompts", "last stage", "runs"], rows)
        costs = self.rates["costs"]
        coarseness = (
            "With as many runs, an arm with two rates sees each on a grid twice as coarse (a factor of 3.2) "
            "as an arm with one (1.8), so `direct` could be tuned more finely than `pd`."
        )
        took = f"A step of stage 1 took {costs[0]:g} of a step of direct fine-tuning, one of stage 2 {costs[1]:g}."
        return f"{head}.\n\n{table}\n\n{coarseness} {took}\n"

    def text(self) -> str:
        """The findings, the scores they rest on, and what was not run."""
        found = FINDINGS.read_text(encoding="utf-8") if FINDINGS.is_file() else "Nothing yet.\n"
        note = (
            "Scores are in percent on the test split, mean ± standard deviation over seeds; the arms are explained in "
        )
        arms = f"{note}[the protocol](protocol.md#arms).\n"
        return "\n".join([INTRODUCTION, f"## What was found\n\n{found}", self.small(), arms, self.not_run()])

    def appendix(self) -> str:
        """Every other table."""
        texts = [
            APPENDIX,
            self.table("Main arms", "main", tuple(MAIN), "direct", also=(["pd"], "joint")),
            self.table("Controls", "controls", ("pd", *CONTROLS), "direct", also=(["pd"], "direct_short")),
            self.equal_time(),
            self.response("Dose and response", "gap", "gap", "gap"),
            self.long(),
            self.base(),
            self.response("Few identities", "low_data", "share", "share of the training identities"),
            self.transfer(),
            self.distances(),
            self.groups(),
            self.table("Ablations", "ablations", tuple(ABLATIONS), "pd", also=(tuple(ABLATIONS), "direct")),
            self.tuning(),
        ]
        return "\n".join(texts)


def main() -> None:
    """Write both pages and their plots."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--results", type=Path, default=RESULTS)
    parser.add_argument("--rates", type=Path, default=RATES)
    parser.add_argument("--docs", type=Path, default=DOCS)
    arguments = parser.parse_args()
    rates = read_rates(arguments.rates) if arguments.rates.is_file() else UNTUNED
    page = Page(rates, arguments.results, arguments.docs / "pictures")
    (arguments.docs / "evidence.md").write_text(page.text(), encoding="utf-8")
    (arguments.docs / "evidence_tables.md").write_text(page.appendix(), encoding="utf-8")


if __name__ == "__main__":
    main()
