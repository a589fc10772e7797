"""The whole method in one call: score the bare model, train the stages, score after each, and save."""

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal, get_args

import torch

from promptreid.data.dataset import CaptionedImages
from promptreid.data.image_cache import build_image_cache
from promptreid.data.records import ReIDDataset, ReIDSplit, is_synthetic
from promptreid.defaults import BATCH_SIZE, IMAGE_SIZE
from promptreid.errors import WeightsError, spoken
from promptreid.evaluation.evaluate import Evaluation, evaluate, score
from promptreid.evaluation.splits import EncodedSplit, encode_split, is_main_process
from promptreid.files import write_sealed_json
from promptreid.model.encoding import check_prompted
from promptreid.model.prompted_clip import PromptedCLIP, load_prompts
from promptreid.model.saving import check_destination, save_prompts
from promptreid.scores import ZERO_SHOT
from promptreid.towers.modes import evaluating
from promptreid.towers.tiny import TINY_IMAGE_SIZE, TINY_NAME, TINY_TAG
from promptreid.training.callbacks import Evaluate
from promptreid.training.checkpoint import FORMER_NAMES
from promptreid.training.display import bars_can_move
from promptreid.training.processes import best_device, failing_together
from promptreid.training.recipe import Recipe, TwoStageSchedule
from promptreid.training.run_folder import claim_folder, whole_run
from promptreid.training.run_identity import run_identity
from promptreid.training.stage import Stage, as_stages
from promptreid.training.trainer import Trainer
from promptreid.values import check_choice, given_path

_NOTE = "identity.json"

EvaluateTest = Literal["always", "last", "never"]

MakeStages = Callable[[PromptedCLIP, Recipe], Stage | Sequence[Stage]]


@dataclass(frozen=True)
class Preset:
    """How a base is adapted unless other settings are given.

    Attributes:
        pretrained: Tag of its weights; None where one must be given.
        image_size: (height, width) in pixels.
        recipe: The numbers of both stages.
    """

    pretrained: str | None
    image_size: tuple[int, int]
    recipe: Recipe


_PAPER = Preset(None, IMAGE_SIZE, Recipe())
_TINY = Preset(TINY_TAG, TINY_IMAGE_SIZE, Recipe().with_stages(epochs=(3, 6), learning_rates=(5e-3, 3e-4)))


def preset_for(model_name: str) -> Preset:
    """The preset of an open_clip model: the small base that ships has its own."""
    return _TINY if model_name == TINY_NAME else _PAPER


@dataclass(frozen=True)
class Adaptation:
    """The result of `adapt`. A state is `"zero_shot"` or the name of the stage that ended.

    Attributes:
        scores: Scores on the test split by state, in order.
        encoded: The test split as each state encodes it, for figures.
        histories: The trainer's history by stage name, in order.
        validation: Scores of the validation split, or of your own `evaluate`, by state: the bare model's, where the
            test split is scored in every state, and those of the epoch that each stage kept.
        checkpoint_rule: How the epoch was chosen with whose weights each stage ended.
        model_dir: Folder of the saved model; None if it was not saved.
    """

    scores: dict[str, Evaluation]
    encoded: dict[str, EncodedSplit]
    histories: dict[str, list[dict[str, Any]]]
    checkpoint_rule: str
    model_dir: Path | None
    validation: dict[str, dict[str, float]] = field(default_factory=dict[str, dict[str, float]])

    @property
    def history(self) -> list[dict[str, Any]]:
        """The entries of all epochs, one stage after the other."""
        return [entry for entries in self.histories.values() for entry in entries]

    def write_report(self, path: str | Path, data: ReIDDataset, *, settings: Mapping[str, Any]) -> Path:
        """Write one page about the run, with everything that it shows in it (extra `viz`).

        Args:
            path: HTML file to write.
            data: The dataset.
            settings: What the run was made with, as the page lists it.

        Raises:
            ValueError: The test split was scored in no state.
            MissingExtraError: matplotlib is not installed.
        """
        from promptreid.evaluation.report import RunReport, write_report

        report = RunReport(
            title=f"{data.title}: {', then '.join(map(spoken, self.histories)) or spoken(ZERO_SHOT)}",
            data=data.summary(),
            scores=self.scores,
            encoded=self.encoded,
            history=self.history,
            validation=self.validation,
            settings=settings,
            is_synthetic=is_synthetic(data.root),
        )
        return write_report(path, report)

    def as_dict(self) -> dict[str, Any]:
        """Scores, rule and folder as `results.json` holds them; scores are fractions."""
        return {
            "results": {state: scores.as_dict() for state, scores in self.scores.items()},
            "validation": self.validation,
            "kept_epochs": {name: entries[-1]["chosen"]["epoch"] for name, entries in self.histories.items()},
            "checkpoint_rule": self.checkpoint_rule,
            "model": None if self.model_dir is None else str(self.model_dir),
        }


def adapt(
    model: PromptedCLIP,
    data: ReIDDataset,
    recipe: Recipe | None = None,
    *,
    output_dir: str | Path,
    make_stages: MakeStages = TwoStageSchedule,
    stage_settings: Callable[[Stage], Mapping[str, Any]] | None = None,
    evaluate_test: EvaluateTest = "always",
    save: bool = True,
    cache_dir: str | Path | None = None,
    progress: bool = True,
    **settings: Any,
) -> Adaptation:
    """Adapt a model to a dataset: zero-shot scores, the stages with a `Trainer` each, scores after each, saving.

    Each stage ends with the weights of the epoch with the best validation mAP, or of the last one without a validation
    split or with `best_metric=None`. The test split never chooses. Run again with the same arguments after a kill, it
    resumes.

    Args:
        model: The model; it is trained in place. Draw it under a seed.
        data: The dataset.
        recipe: The numbers of the stages; those of `Recipe()` if None. `num_identities` is filled in from the data.
        output_dir: Gets a folder per stage with its log and checkpoints, `model/`, `results.json` and what went in.
        make_stages: From model and recipe to the stages, such as one of `promptreid.training.ablations`.
        stage_settings: From a stage to settings of only its `Trainer`, such as its own `make_sampler`; called for every
            stage before anything is trained.
        evaluate_test: Score the test split in every state, only in the last one, or never.
        save: Save the model as `save_prompts` does.
        cache_dir: Folder to keep the decoded training images and token ids in (see `build_image_cache`).
        progress: Print one line per epoch, and show bars on a terminal or in a notebook.
        **settings: Settings of the `Trainer`, for every stage: `seed`, `num_workers`, `on_epoch_end`, `trackers` and
            others. By default `batch_size` is 64, `device` the model's, `mixed_precision` bf16 where `device` is a GPU,
            and `train_data` all pairs of the training split.

    Returns:
        Scores and encoded test split by state, histories, and where the model is.

    Raises:
        ValueError: Two stages have the same name, or a setting is out of range.
        CheckpointError: `output_dir` holds another run.
        FloatingPointError: Training diverged.
        FileExistsError: Its folder `model/` holds another model, or the weights that are to be trained.
        TimeoutError: Another process has a run in `output_dir`.
        TypeError: `model` or `data`, or what `make_stages` returned, is something else, or a number is none.
        MissingExtraError: accelerate is not installed.

    Example:
        ```python
        model = PromptedCLIP(load_clip("ViT-B-16", pretrained="openai"))
        result = adapt(model, load_dataset("data/CUHK-PEDES"), Recipe(), output_dir="runs/first")
        print(result.scores["stage_two"].text_to_image.rank1)
        ```
    """
    check_prompted(model)
    if not isinstance(data, ReIDDataset):  # pyright: ignore[reportUnnecessaryIsInstance]
        raise TypeError(f"data is {type(data).__name__}, expected a ReIDDataset, as load_dataset(folder) gives")
    check_choice("evaluate_test", evaluate_test, get_args(EvaluateTest))
    recipe = recipe or Recipe()
    recipe = replace(recipe, num_identities=recipe.num_identities or data.train.num_identities)
    stages = as_stages(make_stages(model, recipe))  # before anything is encoded: both draw random numbers
    states = [ZERO_SHOT, *(stage.name for stage in stages)]
    _check_different(states)
    wanted = {"always": states, "last": states[-1:], "never": []}[evaluate_test]
    folder = given_path("output_dir", output_dir)
    settings = _with_defaults(settings, model, data, cache_dir, progress=progress)
    with ExitStack() as held:
        with failing_together():
            if is_main_process():
                held.enter_context(whole_run(folder))
                if save:
                    check_destination(folder / "model", model.source, overwrite=True)
                _claim(folder, run_identity(model, data))
        bars = settings["progress"] and bars_can_move()
        encode = partial(encode_split, model, data.test, num_workers=settings["num_workers"], progress=bars)

        # What one of the trainers refuses waits neither for the zero-shot scores nor for the stages before.
        trainers = [_make_trainer(model, folder, settings, stage_settings, stage) for stage in stages]
        model.to(trainers[0].device if trainers else settings["device"])
        encoded: dict[str, EncodedSplit] = {}
        histories: dict[str, list[dict[str, Any]]] = {}
        validation: dict[str, dict[str, float]] = {}
        rules: dict[str, str] = {}
        if ZERO_SHOT in wanted:
            with model.disabled():
                encoded[ZERO_SHOT] = encode()
                if evaluate_test == "always" and stages and settings.get("evaluate") is not None:
                    validation[ZERO_SHOT] = _bare_scores(settings["evaluate"], model)
        for index, (stage, trainer) in enumerate(zip(stages, trainers, strict=True)):
            trainer.baseline = next(reversed(validation.values()), None)
            trainer.on_validation = _is_on_validation(trainer.evaluate)
            trainer.epochs_after = sum(later.epochs for later in stages[index + 1 :])
            histories[stage.name] = trainer.fit()
            validation |= _kept_scores(stage.name, histories[stage.name])
            rules[stage.name] = _rule(histories[stage.name], on_validation=trainer.on_validation)
            if stage.name in wanted:
                encoded[stage.name] = encode()
                _check_finite(encoded[stage.name], stage)

        scores = {state: score(split) for state, split in encoded.items()}
        saved = folder / "model" if save else None
        result = Adaptation(scores, encoded, histories, _joined(rules), saved, validation)
        if is_main_process():
            if result.model_dir is not None:
                save_prompts(model, result.model_dir, overwrite=True)
            write_sealed_json(folder / "results.json", result.as_dict())
        return result


def _check_finite(encoded: EncodedSplit, stage: Stage) -> None:
    if encoded.image_features.isfinite().all() and encoded.text_features.isfinite().all():
        return
    raise FloatingPointError(
        f"{spoken(stage.name)} left a model whose features are NaN or infinity: training diverged. Lower its learning "
        "rate or clip the gradient (max_norm), in another output_dir"
    )


def _check_different(states: Sequence[str]) -> None:
    if len(set(states)) < len(states):
        raise ValueError(f"the states {', '.join(states)} are not all different; give each stage its own name")


def _bare_scores(evaluate: Evaluate, model: PromptedCLIP) -> dict[str, float]:
    """Check, before the first epoch, the arguments that the trainer will get after each."""
    with evaluating(model), torch.no_grad():
        return {name: float(value) for name, value in evaluate(model).items()}


def _kept_scores(state: str, history: Sequence[Mapping[str, Any]]) -> dict[str, dict[str, float]]:
    """Scores of the epoch that a stage kept, if it has any."""
    kept = history[history[-1]["chosen"]["epoch"] - 1]
    return {state: kept["scores"]} if "scores" in kept else {}


def _rule(history: Sequence[Mapping[str, Any]], *, on_validation: bool) -> str:
    """How the epoch that a stage kept was chosen, in words."""
    rule: str = history[-1]["chosen"]["rule"]
    metric = rule.removeprefix("highest ")
    return rule if metric == rule else f"epoch with the best {'validation ' if on_validation else ''}{metric}"


def _joined(rules: Mapping[str, str]) -> str:
    """The rule of all stages, or that of each where they differ."""
    if len(set(rules.values())) > 1:
        return "; ".join(f"{spoken(name)}: {rule}" for name, rule in rules.items())
    return next(iter(rules.values()), "nothing was trained")


def _claim(folder: Path, identity: Mapping[str, Any]) -> None:
    # If nothing has been trained or scored yet, errors in the data may have been fixed since.
    if next(folder.glob("*/checkpoints/step-*"), None) is None and not (folder / "results.json").exists():
        (folder / _NOTE).unlink(missing_ok=True)
    claim_folder(folder, identity, note=_NOTE)


def _make_trainer(
    model: PromptedCLIP, folder: Path, settings: Mapping[str, Any], stage_settings: Any, stage: Stage
) -> Trainer:
    own = stage_settings(stage) if stage_settings is not None else {}
    former = folder / FORMER_NAMES.get(stage.name, stage.name)  # of a run that an earlier version began
    output_dir = former if former.is_dir() else folder / stage.name
    return Trainer(model, [stage], output_dir=output_dir, **{**settings, **own})


def load_and_verify(
    result: Adaptation, test: ReIDSplit, *, device: str | torch.device | None = None, **loading: Any
) -> PromptedCLIP:
    """Load the model that `adapt` saved, and check that it scores as it did before saving.

    Args:
        result: What `adapt` returned, with scores of the last state.
        test: The test split.
        device: Where the model is to be.
        **loading: Settings of `load_prompts`, such as the `vision_prompts=` that the model was made with. `trust_base`
            is True unless given: the model was saved here, maybe on a base from a file.

    Raises:
        WeightsError: The scores differ.
        CheckpointError: The prompts are of your own kind, and what makes them was not passed.
        ValueError: The model was not saved or not scored.
    """
    if result.model_dir is None or not result.scores:
        raise ValueError("adapt did not save the model or did not score it, so there is nothing to compare")
    loading = {"trust_base": True, **loading}
    model = load_prompts(result.model_dir, device=device, **loading)
    before, after = list(result.scores.values())[-1], evaluate(model, test)
    for old, new in ((before.text_to_image, after.text_to_image), (before.image_to_text, after.image_to_text)):
        for name, value in old.as_dict().items():
            if abs(new.as_dict()[name] - value) > 1e-6:
                raise WeightsError(
                    f"the saved model scores {name} {new.as_dict()[name]:.6f}, but it scored {value:.6f} before "
                    f"saving; do not publish {result.model_dir}. Save it again with save_prompts(model, folder, "
                    "overwrite=True); if it happens again, report it with the versions of torch and open_clip"
                )
    return model


def _with_defaults(
    settings: Mapping[str, Any], model: PromptedCLIP, data: ReIDDataset, cache_dir: str | Path | None, *, progress: bool
) -> dict[str, Any]:
    device = settings.get("device", next(model.parameters()).device)
    device = best_device() if device is None else torch.device(device)
    defaults: dict[str, Any] = {
        "batch_size": BATCH_SIZE,
        "mixed_precision": "bf16" if device.type == "cuda" else "no",
        "num_workers": 0,
        "progress": progress,
    }
    if "train_data" not in settings:
        defaults["train_data"] = _pairs(data.train, model, cache_dir, progress=progress and bars_can_move())
    if data.val is not None:
        defaults |= {"evaluate": partial(_scores_on, data.val), "evaluate_every_epoch": True, "best_metric": "mAP"}
    return {**defaults, **settings, "device": device}


def _pairs(split: ReIDSplit, model: PromptedCLIP, cache_dir: str | Path | None, *, progress: bool) -> CaptionedImages:
    transform, cache = model.train_transform, None
    if cache_dir is not None:
        size, interpolation = transform.image_size, transform.interpolation
        cache = build_image_cache(
            split.paths, cache_dir, image_size=size, interpolation=interpolation, progress=progress
        )
    return CaptionedImages(
        split,
        transform=transform,
        tokenizer=model.tokenizer,
        cache=cache,
        token_cache=cache_dir,
        groups=model.groups,
    )


def _scores_on(split: ReIDSplit, model: PromptedCLIP) -> dict[str, float]:
    return evaluate(model, split, progress=False).text_to_image.as_dict()


def _is_on_validation(evaluate: Evaluate | None) -> bool:
    """Whether a trainer's `evaluate` is the one that scores the validation split: nobody knows what another does."""
    return isinstance(evaluate, partial) and evaluate.func is _scores_on
