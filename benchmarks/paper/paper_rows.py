"""The rows of the paper's tables, each a model and a list of stages; and a row's run, saved as JSON."""

import json
import shutil
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch

from paper_shared import made_with, write_json
from promptreid import PromptConfig, PromptedCLIP, Stage, evaluate, load_clip
from promptreid.adaptation import adapt
from promptreid.data.dataset import CaptionedImages
from promptreid.data.image_cache import ImageCache, build_image_cache
from promptreid.data.records import ReIDDataset
from promptreid.training import ablations
from promptreid.training.recipe import Recipe
from promptreid.training.run_identity import differences

NONE = PromptConfig(text_length=0, vision_length=0)
PROMPTS = PromptConfig(text_length=4, vision_length=4)  # the paper's length is not known to us
TEXT_ALONE, IMAGE_ALONE = replace(PROMPTS, vision_length=0), replace(PROMPTS, text_length=0)

# How the baseline of this field is trained: solver/build.py and processor/processor.py of github.com/anosorae/IRRA.
IRRA_SOLVER: dict[str, Any] = {"algorithm": "adam", "epsilon": 1e-3, "max_norm": None, "weight_decay": 4e-5}


@dataclass(frozen=True)
class Row:
    """A row of a table.

    Attributes:
        label: What the table calls it.
        stages: From model and recipe to stages; `None` for the model as it comes.
        prompts: What the model carries.
        own: Numbers of the recipe that only this row has.
    """

    label: str
    stages: Callable[[PromptedCLIP, Recipe], list[Stage]] | None
    prompts: PromptConfig = PROMPTS
    own: Mapping[str, Any] = field(default_factory=dict[str, Any])


def _length(text: int, image: int) -> Row:
    prompts = PromptConfig(text_length=text, vision_length=image)
    return Row(f"{text} for text, {image} for images", ablations.two_stages, prompts)


ROWS: dict[str, Row] = {
    "zero_shot": Row("CLIP, zero-shot", None, NONE),
    "direct": Row("CLIP, fine-tuned directly", ablations.direct_fine_tuning, NONE, IRRA_SOLVER),
    "pd": Row("Prompt Decoupling", ablations.two_stages),
    "joint": Row("prompts, one stage", ablations.joint_one_stage),
    "stage_one": Row("prompts, stage 1 alone", ablations.prompts_only),
    "prompts_both": Row("two stages, prompts train in both", ablations.prompts_in_both_stages),
    "no_identity": Row("two stages without the identity loss", ablations.stage_two_without_identity),
    "text_prompts": Row("two stages, text prompts alone", ablations.text_prompts_only, TEXT_ALONE),
    "image_prompts": Row("two stages, image prompts alone", ablations.image_prompts_only, IMAGE_ALONE),
    "length_1": _length(1, 1),
    "length_2": _length(2, 2),
    "length_8": _length(8, 8),
    "length_16": _length(16, 16),
    "text_8_image_2": _length(8, 2),
    "text_2_image_8": _length(2, 8),
    "positions": Row("with position embedding", ablations.two_stages, replace(PROMPTS, position_embedding=True)),
}

# Title of each table → its rows, and what each is called there.
MAIN: dict[str, dict[str, str]] = {"Main": {name: ROWS[name].label for name in ("zero_shot", "direct", "pd")}}
ABLATIONS: dict[str, dict[str, str]] = {
    "Prompts and stages": {
        "direct": "no prompts, one stage",
        **{name: ROWS[name].label for name in ("joint", "stage_one", "text_prompts", "image_prompts")},
        **{name: ROWS[name].label for name in ("prompts_both", "no_identity")},
        "pd": "prompts, two stages (the method)",
    },
    "Prompt length": {
        **{name: ROWS[name].label for name in ("length_1", "length_2")},
        "pd": "4 for text, 4 for images",
        **{name: ROWS[name].label for name in ("length_8", "length_16", "text_8_image_2", "text_2_image_8")},
    },
    "Position embedding on prompts": {"pd": "without", "positions": ROWS["positions"].label},
}
TABLES = {"main": MAIN, "ablations": ABLATIONS}


def rows_of(tables: list[str]) -> list[str]:
    """The rows that tables need, each once, those of the main table first."""
    wanted = {row for name in tables for table in TABLES[name].values() for row in table}
    return [name for name in ROWS if name in wanted]


@dataclass(frozen=True)
class Setting:
    """What all rows have in common. Rates, epochs and batch of the paper are not known: ours are CSKT's and IRRA's."""

    model: str = "ViT-B-16"
    pretrained: str | None = "openai"
    image_size: tuple[int, int] = (384, 128)
    batch_size: int = 64
    epochs: tuple[int, int] = (30, 60)
    rates: tuple[float, float] = (3e-4, 1e-5)

    def recipe(self) -> Recipe:
        """The numbers of both stages."""
        return Recipe().with_stages(epochs=self.epochs, learning_rates=self.rates)


@dataclass(frozen=True)
class Resources:
    """Where and on what it runs, which changes no result but by rounding.

    Attributes:
        output: Gets results, checkpoints and tables.
        device: For example `"cuda"`.
        num_workers: Processes that load data.
        cache: Whether images are decoded once and kept on disk (5 GB for CUHK-PEDES).
    """

    output: Path
    device: str
    num_workers: int = 0
    cache: bool = True

    @property
    def mixed_precision(self) -> Literal["bf16", "no"]:
        """Only GPUs are faster for it."""
        return "bf16" if self.device.startswith("cuda") else "no"


def perform(row: str, seed: int, data: ReIDDataset, setting: Setting, resources: Resources) -> dict[str, Any]:
    """Train and test a row, or read its result; an interrupted run resumes.

    Raises:
        FileExistsError: The folder holds a result of other settings.
    """
    path = resources.output / "results" / f"{row}-seed{seed}.json"
    settings = json.loads(json.dumps({"row": row, "seed": seed, "data": data.name, **asdict(setting)}))
    settings["own"] = dict(ROWS[row].own)
    identity, done = data.identity(), None
    for other in sorted(path.parent.glob("*.json")):  # those of rows that are not wanted now, too
        result: dict[str, Any] = json.loads(other.read_text(encoding="utf-8"))
        kept = result["settings"]
        common = {name: kept.get(name) for name in ("row", "seed", "own")} if other != path else {}
        whole = {**kept, "identity": result.get("identity", identity)}
        if different := differences(whole, {**settings, **common, "identity": identity}):
            raise FileExistsError(f"{other} is of other settings: {'; '.join(different)}; give another --output")
        done = result if other == path else done
    if done is not None:
        return done
    started = time.perf_counter()
    model = make_model(row, seed, setting, device=resources.device)
    work = resources.output / "work" / path.stem
    history = train(row, model, seed, data, setting, resources, work)
    result = {"settings": settings, "identity": identity}
    result |= {"rule": "best validation mAP" if data.val else "last epoch", "history": history}
    result["test"] = evaluate(model, data.test, num_workers=resources.num_workers).as_dict()
    result |= {"seconds": round(time.perf_counter() - started, 1), "made_with": made_with()}
    write_json(path, result, indent=1)
    shutil.rmtree(work, ignore_errors=True)
    return result


def make_model(row: str, seed: int, setting: Setting, *, device: str) -> PromptedCLIP:
    """The model of a row, with starting values drawn from the seed."""
    torch.manual_seed(seed)
    clip = load_clip(setting.model, pretrained=setting.pretrained, image_size=setting.image_size, device=device)
    return PromptedCLIP(clip, ROWS[row].prompts)


def make_stages(row: str, model: PromptedCLIP, recipe: Recipe) -> list[Stage]:
    """The stages of a row; none for the model as it comes."""
    make = ROWS[row].stages
    return [] if make is None else make(model, replace(recipe, **ROWS[row].own))


def train(
    row: str, model: PromptedCLIP, seed: int, data: ReIDDataset, setting: Setting, resources: Resources, work: Path
) -> list[dict[str, Any]]:
    """Run a row's stages; the validation split chooses each one's epoch, where there is one, else it is the last."""
    if ROWS[row].stages is None:
        return []
    pairs = CaptionedImages(
        data.train,
        transform=model.train_transform,
        tokenizer=model.tokenizer,
        cache=make_cache(data, setting, resources),
        token_cache=resources.output / "tokens",
    )
    found = adapt(
        model,
        data,
        setting.recipe(),
        output_dir=work,
        make_stages=partial(make_stages, row),
        evaluate_test="never",
        save=False,
        train_data=pairs,
        batch_size=setting.batch_size,
        seed=seed,
        device=resources.device,
        mixed_precision=resources.mixed_precision,
        num_workers=resources.num_workers,
        keep_checkpoints=1,
    )
    return [entry for entries in found.histories.values() for entry in entries]


def make_cache(data: ReIDDataset, setting: Setting, resources: Resources) -> ImageCache | None:
    """The training images decoded once, or `None` where they are not to be kept."""
    if not resources.cache:
        return None
    return build_image_cache(
        [record.path for record in data.train.records], resources.output / "cache", image_size=setting.image_size
    )
