"""One run of the study: an arm, on the data and from the starting values of a seed. Its result is one JSON file."""

import hashlib
import json
import shutil
import subprocess
import sys
import time
from dataclasses import asdict, replace
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from measures import (
    OwnDomain,
    caption_groups,
    draw_own_domain,
    encode_own_domain,
    first_hits,
    measure,
    rank1_by_group,
    rank1_by_person,
)
from plan import ARMS, FIRST_STAGES, HERE, Arm, Run
from promptreid import PromptedCLIP, Stage, evaluate, load_clip
from promptreid.adaptation import adapt
from promptreid.data.dataset import CaptionedImages
from promptreid.data.reader import load_cuhk_pedes
from promptreid.data.records import ReIDDataset, ReIDSplit
from promptreid.evaluation.evaluate import encode_split, score
from promptreid.synthetic import write_generated
from promptreid.training.recipe import Recipe
from shared import made_with, write_json
from steps import Repeated, StepSampler, split_steps

PRETRAINING = HERE.parents[1] / "tools" / "pretrain_tiny.py"
History = list[dict[str, Any]]  # an entry a round
BASE = "generated"  # version 2 of the base, which shipped when the studies began
FURTHER_STEPS, FURTHER_PAIRS = 1000, 48_000  # about as many steps as what ships has seen, on pairs of their own


def perform(run: Run, results: Path, scratch: Path, *, device: str = "cpu", tuning: bool = False) -> dict[str, Any]:
    """Train and score a run, or read its result if it is there; an interrupted run resumes.

    Args:
        run: The run.
        results: Gets `<condition>/<arm>-seed<n>.json`, which is to be committed.
        scratch: Gets data and checkpoints, which are not.
        device: Where.
        tuning: Score the validation split alone; the test split is not looked at while rates are tuned.

    Raises:
        FileExistsError: The file holds the result of another run.
    """
    path = run.path(results, tuning=tuning)
    found = read_result(run, results, tuning=tuning)
    if found is not None:
        return found
    root, data = make_data(run, scratch)
    work = scratch / "work" / run.condition / path.stem
    weights = base_weights(run, scratch)
    # Before the seed is set: what is kept from an earlier run draws nothing.
    home = _home(run.budget.image_size, weights, device)
    torch.manual_seed(run.seed)
    model = make_model(run, device, weights)
    started = time.perf_counter()
    history = train(run, model, data, work, device, home[0])
    result = {"run": settings_of(run), "seconds": round(time.perf_counter() - started, 1), "history": history}
    result["validation"] = evaluate(model, validation_of(data), progress=False).as_dict()
    if not tuning:
        result |= score_test(model, data, root, home)
    result["made_with"] = made_with() | ({} if run.base == "shipped" else {"base_sha256": weights_hash(weights)})
    write_json(path, result, indent=1)
    shutil.rmtree(work, ignore_errors=True)
    return result


def read_result(run: Run, results: Path, *, tuning: bool = False) -> dict[str, Any] | None:
    """A run's result, or `None` if it was not run.

    Raises:
        FileExistsError: The file holds the result of another run.
        ValueError: The file is damaged.
    """
    path = run.path(results, tuning=tuning)
    if not path.is_file():
        return None
    try:
        result: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        settings = result["run"]
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{path} is damaged ({error!r}); delete it, and the run is done again") from error
    if settings != settings_of(run):
        raise FileExistsError(
            f"{path} is the result of another run: {settings}, expected {settings_of(run)}; move it away, and the run "
            "is done again"
        )
    return result


def settings_of(run: Run) -> dict[str, Any]:
    """What a result says of the run that it is of."""
    settings = json.loads(json.dumps(asdict(run)))
    if run.base == "shipped":  # results from before there was another do not name it
        del settings["base"]
    return settings


def base_weights(run: Run, scratch: Path) -> str:
    """What `load_clip` takes for `pretrained`; the first run that needs the other base pretrains it.

    Args:
        run: Says which one.
        scratch: Gets the other base's weights, in `base-further`.

    Raises:
        subprocess.CalledProcessError: Pretraining failed; its own message stands above.
        ValueError: The folder holds weights of another pretraining, or damaged ones.
    """
    if run.base == "shipped":
        return BASE
    folder = scratch / "base-further"
    record, weights = folder / "training.json", folder / "promptreid-tiny.safetensors"
    if not record.is_file():  # it is written last
        print(f"pretraining the other base, {FURTHER_STEPS} steps; about 20 minutes on a core", flush=True)
        words = ("--further", FURTHER_STEPS, "--start", BASE, "--pairs", FURTHER_PAIRS, "--output", folder)
        subprocess.run([sys.executable, str(PRETRAINING), *map(str, words)], check=True)
    made = json.loads(record.read_text(encoding="utf-8"))
    settings = [made["settings"].get(name, BASE) for name in ("further", "pairs", "start")]
    if settings != [FURTHER_STEPS, FURTHER_PAIRS, BASE] or weights_hash(weights) != made["weights_sha256"]:
        raise ValueError(
            f"{folder} holds damaged weights or those of another pretraining; delete it, and they are made"
        )
    return str(weights)


def weights_hash(weights: Path | str) -> str:
    """SHA-256 of a weight file."""
    return hashlib.sha256(Path(weights).read_bytes()).hexdigest()


def make_model(run: Run, device: str, weights: str = BASE) -> PromptedCLIP:
    """The small base with the prompts of the run's arm."""
    clip = load_clip("promptreid-tiny", pretrained=weights, image_size=run.budget.image_size, device=device)
    return PromptedCLIP(clip, ARMS[run.arm].prompts)


@lru_cache(maxsize=1)
def _home(image_size: tuple[int, int], weights: str, device: str) -> tuple[OwnDomain, tuple[Tensor, Tensor]]:
    """The base's own domain, and its features by the bare base: the same for every run from these weights."""
    clip = load_clip("promptreid-tiny", pretrained=weights, image_size=image_size, device=device)
    pairs = draw_own_domain()
    return pairs, encode_own_domain(PromptedCLIP(clip, ARMS["zero_shot"].prompts), pairs)


def make_data(run: Run, folder: Path) -> tuple[Path, ReIDDataset]:
    """Draw the run's data, or take what was drawn, and keep its share of the training identities."""
    budget = run.budget
    root = folder / "data" / f"seed{run.seed}-gap{run.gap:g}"
    write_generated(
        root,
        num_identities=budget.identities,
        images_per_identity=budget.images_per_identity,
        seed=run.seed,
        gap=run.gap,
    )
    return root, _part_of(load_cuhk_pedes(root), run)


def _part_of(data: ReIDDataset, run: Run) -> ReIDDataset:
    """The run's share of the training identities, and its cameras: the others' images are only tested on."""
    kept = set(list(data.train.labels)[: max(2, round(run.share * data.train.num_identities))])
    train = ReIDSplit("train", [record for record in data.train.records if record.person_id in kept])
    if not run.train_cameras:
        return replace(data, train=train)
    return replace(
        data,
        train=_of_cameras(train, run.train_cameras),
        val=_of_cameras(validation_of(data), run.train_cameras),
        test=_of_cameras(data.test, run.train_cameras, others=True),
    )


def _of_cameras(split: ReIDSplit, cameras: tuple[str, ...], *, others: bool = False) -> ReIDSplit:
    chosen = [record for record in split.records if (record.path.parent.name in cameras) != others]
    return ReIDSplit(split.name, chosen)


def train(run: Run, model: PromptedCLIP, data: ReIDDataset, work: Path, device: str, pairs: OwnDomain) -> History:
    """Run the arm's stages; the validation split chooses the round with which each ends.

    Args:
        run: The run.
        model: Its model.
        data: Its data.
        work: Gets checkpoints.
        device: Where.
        pairs: The base's own domain, for the scale of dot products.
    """
    arm = ARMS[run.arm]
    if arm.stages is None:
        return []
    recipe = make_recipe(run, arm)
    if recipe.similarity == "dot":
        recipe = replace(recipe, temperature=recipe.temperature * squared_length(model, pairs))
    train_data = CaptionedImages(
        data.train, transform=model.train_transform, tokenizer=model.tokenizer, groups=model.groups
    )
    found = adapt(
        model,
        data,
        recipe,
        output_dir=work,
        make_stages=arm.stages,
        stage_settings=partial(stage_settings, run, train_data),
        evaluate_test="never",
        save=False,
        train_data=train_data,
        batch_size=run.budget.batch_size,
        seed=run.seed,
        device=device,
        mixed_precision="no",
        keep_checkpoints=1,
        trackers=(),
    )
    return [entry for entries in found.histories.values() for entry in entries]


def stage_settings(run: Run, pairs: CaptionedImages, stage: Stage) -> dict[str, Any]:
    """Rounds of equal length for a stage's trainer, which calls them epochs."""
    steps, batch_size = rounds_of(run)["first" if stage.name in FIRST_STAGES else "last"][1], run.budget.batch_size
    return {
        "train_data": Repeated(pairs, steps=steps, batch_size=batch_size),
        "make_sampler": partial(StepSampler, len(pairs), batch_size=batch_size, steps=steps),
    }


def rounds_of(run: Run) -> dict[str, tuple[int, int]]:
    """How many rounds of how many steps the first and the last stage have."""
    budget = run.budget
    return {
        "first": split_steps(budget.stage_one_steps, about=budget.round_steps),
        "last": split_steps(run.last_steps, about=budget.round_steps),
    }


def make_recipe(run: Run, arm: Arm) -> Recipe:
    """The numbers of a run's stages."""
    epochs = [rounds for rounds, _ in rounds_of(run).values()]
    return replace(Recipe().with_stages(epochs=epochs, learning_rates=run.rates), **arm.recipe)


def squared_length(model: PromptedCLIP, pairs: OwnDomain) -> float:
    """Mean product of the lengths of an image and a text feature of the bare base: the scale of dot products."""
    some = OwnDomain(pairs.images[:100], pairs.captions[:100])
    with model.disabled():
        images, texts = encode_own_domain(model, some, normalize=False)
    return float(images.norm(dim=1).mean() * texts.norm(dim=1).mean())


def score_test(
    model: PromptedCLIP, data: ReIDDataset, root: Path, home: tuple[OwnDomain, tuple[Tensor, Tensor]]
) -> dict[str, Any]:
    """Everything that is reported, from one look at the test split."""
    encoded = encode_split(model, data.test, progress=False)
    hits = first_hits(encoded)
    return {
        "test": score(encoded).as_dict(),
        "rank1_by_person": rank1_by_person(hits, encoded.text_ids.tolist()),
        "rank1_by_group": rank1_by_group(hits, caption_groups(encoded, root)),
        "measures": measure(model, encoded, *home),
    }


def validation_of(data: ReIDDataset) -> ReIDSplit:
    """The validation split."""
    if data.val is None:
        raise ValueError("the study chooses rounds on a validation split, and these data have none")
    return data.val
