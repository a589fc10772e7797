"""Every kind of prompts on the synthetic data: only stage 1, and before stage 2, with equal tuning.

    python benchmarks/prompt_kinds.py                                # tune, run, measure costs, and write the table
    python benchmarks/prompt_kinds.py --kinds prefix --parts tune runs
    python benchmarks/prompt_kinds.py --parts table                  # from existing results

Each kind is an arm of the study (`study/plan.py`) with only stage 1 and one with both stages. Learning rates are tuned
on the validation split of a seed that no reported run uses, with the same number of runs for every kind; `--kinds` that
are added later start from the current grids. Each run has a JSON file below `benchmarks/results/prompt-kinds/`,
so the same command resumes after an interruption, run by run. `--output` gets the summary, `docs/prompts.md` the table.
"""

import argparse
import json
import resource
import statistics
import sys
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import torch

from _bench import (
    RESULTS,
    in_own_process,
    in_words,
    made_with,
    make_parser,
    paired_ratio,
    random_captions,
    seconds,
    take_turns,
    write_between,
    write_json,
)
from promptreid import PromptConfig, PromptedCLIP, load_clip
from promptreid.synthetic.camera import CAMERAS
from promptreid.training import ablations

sys.path.append(str(Path(__file__).parent / "study"))
import plan
import runs
import tune

PAGE = Path(__file__).parents[1] / "docs" / "prompts.md"
LENGTH = 4
KINDS: dict[str, PromptConfig] = {
    "independent": PromptConfig(LENGTH, LENGTH),
    "kept": PromptConfig(LENGTH, LENGTH, 1, 1),
    "coupled": PromptConfig(LENGTH, LENGTH, kind="coupled"),
    "prefix": PromptConfig(LENGTH, LENGTH, kind="prefix"),
    "grouped": PromptConfig(
        LENGTH, LENGTH, kind="grouped", groups=tuple(sorted(camera.name for camera in CAMERAS))
    ),
}  # fmt: skip
PARTS = ("tune", "runs", "costs", "table")
STAGES = {"stage 1": "alone", "both": "both"}
# Half of the study's training, on half of its persons; the test split is the study's.
BUDGET = plan.Budget((300, 60, 400), stage_one_steps=60, stage_two_steps=120, round_steps=30)
SEEDS = 5
COST_STEPS = 12


def arms() -> dict[str, plan.Arm]:
    """Both arms of every kind, by name."""
    found: dict[str, plan.Arm] = {}
    for kind, prompts in KINDS.items():
        found[f"{kind}_alone"] = plan.Arm(ablations.prompts_only, f"{kind}, stage 1 alone", prompts, tuned="first")
        found[f"{kind}_both"] = plan.Arm(ablations.two_stages, f"{kind}, before stage 2", prompts)
    return found


class Study:
    """Runs, tuning and results of the kinds.

    Args:
        folder: Gets results.
        scratch: Gets data and checkpoints.
        device: Where it trains.
        seeds: How many seeds are reported.
    """

    def __init__(self, folder: Path, scratch: Path, *, device: str = "cpu", seeds: int = SEEDS) -> None:
        self.folder, self.scratch, self.device, self.seeds = folder, scratch, device, seeds
        plan.ARMS.update(arms())

    @property
    def rates_file(self) -> Path:
        """Where tuned rates are kept."""
        return self.folder / "rates.json"

    def tune(self, kinds: Sequence[str]) -> None:
        """Tune the kinds that are not tuned yet, each with as many runs as any other."""
        before = self.rates() if self.rates_file.is_file() else {"rates": {}, "runs": {}, "grids": [(0, 0), (0, 0)]}
        names = [f"{kind}_{part}" for kind in kinds for part in ("alone", "both")]
        names = [name for name in names if name not in before["rates"]]
        if not names:
            return
        tried: dict[str, set[tuple[float, float]]] = {}

        def score(arm: str, rates: tuple[float, float]) -> float:
            tried.setdefault(arm, set()).add(rates)
            result = self._perform(plan.Run(arm, tune.SEED, rates, budget=BUDGET), tuning=True)
            return result["validation"]["mAP"]

        start = tune.Grid(*before["grids"][0]), tune.Grid(*before["grids"][1])
        found, grids = tune.tune(names, score, start=start)
        counts = {arm: len(rates) for arm, rates in tried.items()}
        if len(set(counts.values())) != 1:
            raise RuntimeError(f"kinds were tuned over different numbers of runs: {counts}")
        kept = before["grids"] if before["rates"] else [(grid.low, grid.high) for grid in grids]
        merged = {"rates": before["rates"] | found, "runs": before["runs"] | counts}
        write_json(self.rates_file, {"seed": tune.SEED, "grids": kept, **merged})

    def rates(self) -> dict[str, Any]:
        """The tuned rates; refuses to go on where there are none."""
        if not self.rates_file.is_file():
            sys.exit(f"{self.rates_file} is missing: tune first, with --parts tune")
        return json.loads(self.rates_file.read_text(encoding="utf-8"))

    def planned(self, kinds: Iterable[str]) -> list[plan.Run]:
        """The reported runs, seed by seed, so that what is cut short still compares whole seeds."""
        tuned = self.rates()["rates"]
        names = [f"{kind}_{part}" for kind in kinds for part in ("alone", "both") if f"{kind}_{part}" in tuned]
        return [
            plan.Run(name, seed, (tuned[name][0], tuned[name][1]), budget=BUDGET)
            for seed in range(self.seeds)
            for name in names
        ]

    def run(self, kinds: Sequence[str]) -> None:
        """Do the reported runs that are not done yet."""
        planned = self.planned(kinds)
        for number, run in enumerate(planned, start=1):
            rank1 = self._perform(run)["test"]["rank1"]
            print(f"{number}/{len(planned)} {run.arm} seed {run.seed}: Rank-1 {rank1:.3f}", flush=True)

    def _perform(self, run: plan.Run, *, tuning: bool = False) -> dict[str, Any]:
        results = self.folder / ("tuning" if tuning else "runs")
        return runs.perform(run, results, self.scratch, device=self.device, tuning=tuning)

    def measure_costs(self, kinds: Iterable[str]) -> None:
        """Parameters, step time and memory of stage 1, each kind in turn with independent tokens."""
        for kind in kinds:
            path = self.folder / "costs" / f"{kind}.json"
            if not path.is_file():
                memory = in_own_process(peak_memory, kind)
                write_json(path, {**in_own_process(step_cost, kind), "peak_memory_mb": memory, **made_with()})

    def summary(self) -> dict[str, Any]:
        """What the table shows, from the results that are there."""
        found: dict[str, Any] = {}
        tuned = self.rates()["rates"] if self.rates_file.is_file() else {}
        for kind in KINDS:
            path = self.folder / "costs" / f"{kind}.json"
            costs = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
            entry = {"costs": {name: value for name, value in costs.items() if name not in _RECORD}}
            for label, part in STAGES.items():
                if (name := f"{kind}_{part}") in tuned:
                    entry[label] = {"rates": tuned[name], **self._scores(kind, part)}
            found[kind] = entry
        return {"kinds": found, "budget": runs.settings_of(plan.Run("zero_shot", 0, (0, 0), budget=BUDGET))["budget"]}

    def _scores(self, kind: str, part: str) -> dict[str, Any]:
        done = [
            result for run in self.planned([kind])
            if run.arm == f"{kind}_{part}" and (result := runs.read_result(run, self.folder / "runs")) is not None
        ]  # fmt: skip
        return {
            "seeds": len(done),
            **{name: [round(result["test"][name], 5) for result in done] for name in ("rank1", "mAP")},
        }


_RECORD = ("machine", "versions", "date")


def _model(kind: str) -> PromptedCLIP:
    torch.manual_seed(0)
    clip = load_clip("promptreid-tiny", pretrained="generated", image_size=BUDGET.image_size)
    model = PromptedCLIP(clip, KINDS[kind]).train()
    model.clip.requires_grad_(False)
    return model


def _step(kind: str) -> tuple[Callable[[], None], int]:
    """One step of stage 1, and how many parameters it trains."""
    model = _model(kind)
    optimizer = torch.optim.AdamW(model.prompt_parameters(), lr=0.0, weight_decay=0.0)
    images = torch.randn(BUDGET.batch_size, 3, *BUDGET.image_size)
    tokens = random_captions(BUDGET.batch_size, words=[20 + row % 8 for row in range(BUDGET.batch_size)])
    groups = (torch.arange(BUDGET.batch_size) % len(model.groups),) if model.groups else ()

    def work() -> None:
        output = model(images, tokens, *groups)
        logits = 50 * output["image_features"] @ output["text_features"].T
        torch.nn.functional.cross_entropy(logits, torch.arange(BUDGET.batch_size)).backward()
        optimizer.step()
        optimizer.zero_grad()

    return work, sum(parameter.numel() for parameter in model.prompt_parameters())


def step_cost(kind: str) -> dict[str, Any]:
    """Parameters, and a step's time over one with independent tokens, which take turns with it."""
    work, parameters = _step(kind)
    other, _ = _step("independent")
    variants = {"own": lambda: seconds(work), "independent": lambda: seconds(other)}
    times = take_turns(variants, rounds=COST_STEPS, warm_up=2, mirrored=True)
    ratio = paired_ratio(times["own"], times["independent"]).rounded(3)
    return {
        "parameters": parameters,
        "step_seconds": round(statistics.median(times["own"]), 4),
        "step_ratio": {"ratio": ratio.median, "lowest": ratio.lowest, "highest": ratio.highest},
    }


def peak_memory(kind: str) -> float:
    """The most memory of a process that takes a few steps, in MB."""
    work, _ = _step(kind)
    for _ in range(3):
        work()
    unit = 1 if sys.platform == "darwin" else 1024  # bytes there, kilobytes elsewhere
    return round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e6, 1)


def _percent(values: Sequence[float]) -> str:
    """Mean and standard deviation over seeds."""
    if not values:
        return "–"
    spread = f" ± {100 * statistics.stdev(values):.2f}" if len(values) > 1 else ""
    return f"{100 * statistics.fmean(values):.2f}{spread}"


def table(summary: dict[str, Any]) -> str:
    """The table of docs/prompts.md."""
    lines = [
        "| kind | parameters | step / independent | memory, MB | stage 1 alone: Rank-1 | mAP | both stages: Rank-1 "
        "| mAP | seeds |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for kind, entry in summary["kinds"].items():
        costs, both, alone = entry["costs"], entry.get("both", {}), entry.get("stage 1", {})
        ratio = f"{costs['step_ratio']['ratio']:.2f}" if costs else "–"
        cells = [
            kind,
            f"{costs['parameters']:,}" if costs else "–",
            ratio,
            f"{costs['peak_memory_mb']:.0f}" if costs else "–",
            *(_percent(part.get(name, [])) for part in (alone, both) for name in ("rank1", "mAP")),
            str(min(alone.get("seeds", 0), both.get("seeds", 0))),
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def write_table(summary: dict[str, Any], page: Path) -> None:
    """Put the table, and what it was made with, between the page's marks."""
    budget = summary["budget"]
    persons = " / ".join(f"{count}" for count in budget["identities"])
    words = (
        f"{persons} synthetic persons to train, choose and test on, version 2 of the small base; "
        f"{budget['stage_one_steps']} steps of stage 1 and {budget['stage_two_steps']} of stage 2, "
        f"{budget['batch_size']} pairs each; mean ± standard deviation over seeds, in percent. "
        f"{in_words(summary)}, {summary['date']}."
    )
    write_between(page, "prompt kinds", f"{words}\n\n{table(summary)}")


def main() -> None:
    """Do what is not done yet, and write the summary and the table."""
    parser = make_parser(__doc__, output=RESULTS / "prompt-kinds" / "summary.json")
    parser.add_argument("--kinds", nargs="+", choices=KINDS, default=list(KINDS))
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument("--seeds", type=int, default=SEEDS, help="seeds that are reported (default: %(default)s)")
    parser.add_argument("--scratch", type=Path, default=Path("runs/prompt-kinds"))
    parser.add_argument("--page", type=Path, default=PAGE, help="gets the table")
    parser.add_argument("--device", default="cpu")
    arguments: argparse.Namespace = parser.parse_args()
    study = Study(arguments.output.parent, arguments.scratch, device=arguments.device, seeds=arguments.seeds)
    if "tune" in arguments.parts:
        study.tune(arguments.kinds)
    if "runs" in arguments.parts:
        study.run(arguments.kinds)
    if "costs" in arguments.parts:
        study.measure_costs(arguments.kinds)
    if "table" in arguments.parts:
        summary = {**study.summary(), **made_with()}
        write_json(arguments.output, summary)
        write_table(summary, arguments.page)
        print(table(summary))


if __name__ == "__main__":
    main()
