"""The runs of `promptreid train`: one, or several ways of training under several seeds, each with what it leaves."""

import shutil
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

from promptreid.adaptation import ZERO_SHOT, Adaptation, adapt
from promptreid.cli.output import Output
from promptreid.cli.train_model import TrainingArguments, holds_comparison, make_model
from promptreid.data.records import ReIDDataset, is_synthetic
from promptreid.errors import spoken
from promptreid.evaluation.comparison import Comparison, write_comparison
from promptreid.evaluation.evaluate import score_table, write_evaluation
from promptreid.evaluation.pictures.curves import draw_compared_curves, draw_training_curves, read_log
from promptreid.evaluation.pictures.feature_space import draw_feature_map, draw_similarities
from promptreid.evaluation.splits import is_main_process
from promptreid.hub.card import FIGURE, CardDetails
from promptreid.model.publishing import write_card
from promptreid.scores import METRICS, shared_metrics, shown_score
from promptreid.training.ablations import ABLATIONS
from promptreid.training.processes import failing_together
from promptreid.training.recipe import Recipe
from promptreid.training.run_folder import claim_folder
from promptreid.training.seeds import SeedScores, run_seeds
from promptreid.training.stage import Stage

_TERMS_OF_DRAWINGS = """\
This model was adapted to drawings of people who do not exist, which promptreid made with their captions: no terms of a
dataset of photographs apply to them. The images and captions in the figure are from the test split."""
_NOTE = "comparison-settings.json"


@dataclass(frozen=True)
class Training:
    """The settings that all runs of a command share.

    Attributes:
        console: Where results go.
        data: The dataset.
        arguments: Complete ones.
        recipe: The numbers of the stages.
        options: Further settings of `adapt`.
        on_claimed: Called by the main process once it is sure that the folder holds no other run, before anything is
            trained; maybe more than once.
    """

    console: Output
    data: ReIDDataset
    arguments: TrainingArguments
    recipe: Recipe
    options: dict[str, Any]
    on_claimed: Callable[[], None]

    def run(self, output: Path) -> None:
        """One run: trained, scored, drawn and reported."""

        def claimed(_: Stage) -> dict[str, Any]:
            with failing_together():
                if is_main_process():
                    self.on_claimed()
            return {}

        result = self._adapt(output, "pd", self.arguments["seed"], stage_settings=claimed)
        self.console.record(**result.as_dict())
        self._say(result, output)

    def compare(self, output: Path, seeds: Sequence[int], ways: Sequence[str]) -> None:
        """Several ways of training under several seeds; a run that has ended is not run again."""
        with failing_together():
            if is_main_process():
                self._claim(output)
                self.on_claimed()
        found: dict[str, SeedScores] = {}
        for way in ways:
            self.console.say(f"{way}: {ABLATIONS[way].label}; seeds {', '.join(map(str, seeds))}")
            train = partial(self._scores_of, way)
            found[way] = run_seeds(train, seeds, output_dir=output / way)
        comparison = Comparison(found, {way: ABLATIONS[way].label for way in ways})
        self.console.record(**comparison.as_dict())
        if is_main_process():
            write_comparison(output, comparison, caption=self.data.title)
            _draw_comparison(output, {way: seeds for way in ways})
        self.console.say(*comparison.table().split("\n"))
        self.console.say(f"comparison.md, .tex, .json, curves.png and each run's report.html are in {output}")

    def _claim(self, output: Path) -> None:
        facts = {name: value for name, value in self.arguments.items() if name in _ALIKE}
        facts |= {"recipe": asdict(self.recipe), "data": self.data.identity()}
        if not holds_comparison(output):  # the settings of a comparison that was refused bind nobody
            (output / _NOTE).unlink(missing_ok=True)
        claim_folder(output, facts, note=_NOTE)

    def _scores_of(self, way: str, seed: int, folder: Path) -> dict[str, float]:
        result = self._adapt(folder, way, seed)
        scores = list(result.scores.values())[-1].text_to_image.as_dict()
        self.console.say(f"{way}, seed {seed}: {_shown(scores)}")
        return scores

    def _adapt(self, folder: Path, way: str, seed: int, **settings: Any) -> Adaptation:
        ablation = ABLATIONS[way]
        arguments = self.arguments.copy()
        arguments["seed"] = seed
        with failing_together():
            model = make_model(arguments, way=way, cameras=self.data.train.cameras)
        # The same size, and from now on one that is asked for: that weights are resized is said once.
        self.arguments["image_size"] = model.image_size
        make_stages: Any = {} if way == "pd" else {"make_stages": ablation.stages}
        recipe = ablation.recipe(self.recipe)
        used = ("batch_size", "steps_per_epoch", "seed", "device", "num_workers")
        result = adapt(
            model,
            self.data,
            recipe,
            output_dir=folder,
            **make_stages,
            **{name: arguments[name] for name in used},
            **self.options,
            **settings,
        )
        if is_main_process():
            _write_figures(folder, result)
            settings = {"way": ABLATIONS[way].label, **_shown_settings(arguments, recipe)}
            result.write_report(folder / "report.html", self.data, settings=settings)
            if result.model_dir is not None:
                _write_card(result.model_dir, arguments, self.data, recipe, result)
        return result

    def _say(self, result: Adaptation, output: Path) -> None:
        self.console.say(*score_table(result.as_dict()["results"]).split("\n"))
        kept = [
            f"epoch {entry['chosen']['epoch']} of {spoken(entry['stage'])}"
            for entry in result.history
            if "chosen" in entry
        ]
        self.console.say(f"kept {' and '.join(kept)} ({result.checkpoint_rule})")
        self.console.say(f"report.html shows it all; results.json, metrics.json, pictures and model/ are in {output}")


def _shown(scores: Mapping[str, float]) -> str:
    return ", ".join(f"{METRICS[name].title} {shown_score(name, scores[name])}" for name in ("rank1", "mAP"))


# What all runs of a comparison have in common, beside the recipe and the data.
_ALIKE = (
    "model",
    "pretrained",
    "image_size",
    "prompt_length",
    "prompt_depth",
    "prompt_kind",
    "batch_size",
    "steps_per_epoch",
)


def _draw_comparison(folder: Path, runs: Mapping[str, Sequence[int]]) -> None:
    """The validation curves of all runs over one another, where there is a validation split."""
    histories: dict[str, list[list[dict[str, Any]]]] = {}
    for way, seeds in runs.items():
        logs = [sorted((folder / way / f"seed-{seed}").glob("*/log.jsonl"), key=_when) for seed in seeds]
        histories[way] = [[entry for log in each for entry in read_log(log)] for each in logs]
    with suppress(ValueError):  # without a validation split there is no curve
        draw_compared_curves(folder / "curves.png", histories)


def _when(log: Path) -> tuple[bool, str]:
    """Stage two after stage one, and any stages in between."""
    return log.parent.name == "stage_two", log.parent.name


def _shown_settings(arguments: TrainingArguments, recipe: Recipe) -> dict[str, Any]:
    """The settings as cards and reports list them."""
    numbers = {name: value for name, value in asdict(recipe).items() if name != "num_identities"}
    chosen = ("image_size", "prompt_kind", "prompt_length", "prompt_depth", "batch_size", "seed")
    depth = {"prompt_depth": "every block"} if arguments["prompt_depth"] is None else {}
    return {name: arguments[name] for name in chosen} | depth | numbers


def _write_card(
    folder: Path, arguments: TrainingArguments, data: ReIDDataset, recipe: Recipe, result: Adaptation
) -> None:
    """The model card: scores by stage, settings, and what captions find where the images may be passed on."""
    rows = {state: scores.as_dict() for state, scores in result.scores.items()}
    names = shared_metrics(*rows.values())
    table = [f"| state | {' | '.join(names)} |", "|---|" + "---|" * len(names)]
    table += [
        f"| {spoken(state)} | " + " | ".join(shown_score(name, row[name]) for name in names) + " |"
        for state, row in rows.items()
    ]
    terms = None
    sections = {"Scores of each stage": "Text to image, in percent, on the test split.\n\n" + "\n".join(table)}
    if is_synthetic(data.root):
        shutil.copyfile(folder.parent / FIGURE, folder / FIGURE)
        terms = _TERMS_OF_DRAWINGS
        sections["What it finds"] = f"![What four captions find]({FIGURE})"
    details = CardDetails(
        dataset=data.title,
        checkpoint_rule=result.checkpoint_rule,
        seeds=(arguments["seed"],),
        training={spoken(name): value for name, value in _shown_settings(arguments, recipe).items()},
        sections=sections,
        terms=terms,
    )
    write_card(folder, metrics=list(rows.values())[-1], details=details)


def _write_figures(folder: Path, result: Adaptation) -> None:
    """The last scores with a ranking, and what the stages changed: similarities, features, and how training went."""
    last = list(result.encoded)[-1]
    write_evaluation(folder, result.encoded[last], result.scores[last])
    draw_similarities(folder / "similarities.png", result.encoded)
    draw_feature_map(folder / "feature_map.png", result.encoded)
    if result.history:
        baseline = result.validation.get(ZERO_SHOT)
        draw_training_curves(folder / "curves.png", result.history, baseline=baseline)
