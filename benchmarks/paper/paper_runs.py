"""One row of the paper's tables under one seed: trained, tested, and kept as JSON."""

import json
import platform
import shutil
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import open_clip
import torch

import promptreid
from paper_arms import ROWS
from promptreid import PromptedCLIP, Stage, Trainer, evaluate, load_clip
from promptreid.data.dataset import CaptionedImages
from promptreid.data.image_cache import ImageCache, build_image_cache
from promptreid.data.records import ReIDDataset
from promptreid.files import write_bytes_atomically
from promptreid.training.recipe import Recipe


@dataclass(frozen=True)
class Setting:
    """What all rows have in common. Rates, epochs and batch of the paper are not known: ours are CSKT's and IRRA's."""

    model: str = "ViT-B-16"
    pretrained: str | None = "openai"
    image_size: tuple[int, int] = (384, 128)
    batch_size: int = 64
    epochs: tuple[int, int] = (30, 60)
    rates: tuple[float, float] = (3e-4, 1e-5)

    def recipe(self, num_identities: int) -> Recipe:
        """The numbers of both stages."""
        return Recipe(
            num_identities=num_identities,
            stage_one_epochs=self.epochs[0],
            stage_two_epochs=self.epochs[1],
            stage_one_learning_rate=self.rates[0],
            stage_two_learning_rate=self.rates[1],
        )


@dataclass(frozen=True)
class Place:
    """Where and how it runs, which changes no result but by rounding.

    Attributes:
        output: Gets results, checkpoints and tables.
        device: For example `"cuda"`.
        num_workers: Processes that load data.
        cache: Whether pictures are decoded once and kept on disk (5 GB for CUHK-PEDES).
    """

    output: Path
    device: str
    num_workers: int = 0
    cache: bool = True

    @property
    def mixed_precision(self) -> Literal["bf16", "no"]:
        """Only GPUs are faster for it."""
        return "bf16" if self.device.startswith("cuda") else "no"


def perform(row: str, seed: int, data: ReIDDataset, setting: Setting, place: Place) -> dict[str, Any]:
    """Train and test a row, or read its result; a run that was killed goes on.

    Raises:
        FileExistsError: The folder holds a result of other settings.
    """
    path = place.output / "results" / f"{row}-seed{seed}.json"
    settings = json.loads(json.dumps({"row": row, "seed": seed, "data": data.name, **asdict(setting)}))
    if path.is_file():
        result: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        if result["settings"] != settings:
            raise FileExistsError(f"{path} is of other settings, {result['settings']}; give another --output")
        return result
    started = time.perf_counter()
    model = make_model(row, seed, setting, device=place.device)
    stages = make_stages(row, model, setting.recipe(data.train.num_identities))
    work = place.output / "work" / path.stem
    history = train(stages, seed, data, setting, place, work)
    result = {"settings": settings, "rule": "best validation mAP" if data.val else "last epoch", "history": history}
    result["test"] = evaluate(model, data.test, num_workers=place.num_workers).as_dict()
    result |= {"seconds": round(time.perf_counter() - started, 1), "made_with": versions(place.device)}
    path.parent.mkdir(parents=True, exist_ok=True)
    write_bytes_atomically(path, (json.dumps(result, indent=1) + "\n").encode())
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
    return [] if make is None else make(model, recipe)


def train(
    stages: list[Stage], seed: int, data: ReIDDataset, setting: Setting, place: Place, work: Path
) -> list[dict[str, Any]]:
    """Run the stages; the validation split chooses each one's epoch, where there is one, else it is the last."""
    if not stages:
        return []
    model, validation = stages[0].model, data.val
    pairs = CaptionedImages(
        data.train,
        transform=model.train_transform,
        tokenizer=model.tokenizer,
        cache=make_cache(data, setting, place),
        token_cache=place.output / "tokens",
    )
    trainer = Trainer(
        model,
        stages,
        train_data=pairs,
        batch_size=setting.batch_size,
        output_dir=work,
        seed=seed,
        device=place.device,
        mixed_precision=place.mixed_precision,
        num_workers=place.num_workers,
        evaluate=validation and (lambda model: evaluate(model, validation, progress=False).text_to_image.as_dict()),
        evaluate_every_epoch=True,
        best_metric="mAP" if validation else None,
        keep_checkpoints=1,
    )
    return trainer.fit()


def make_cache(data: ReIDDataset, setting: Setting, place: Place) -> ImageCache | None:
    """The training pictures decoded once, or `None` where they are not to be kept."""
    if not place.cache:
        return None
    return build_image_cache(
        [record.path for record in data.train.records], place.output / "cache", image_size=setting.image_size
    )


def versions(device: str) -> Mapping[str, str]:
    """What a result was made with."""
    return {
        "promptreid": promptreid.__version__,
        "torch": torch.__version__,
        "open_clip": open_clip.__version__,
        "machine": torch.cuda.get_device_name() if device.startswith("cuda") else f"{platform.machine()} CPU",
        "date": time.strftime("%Y-%m-%d"),
    }
