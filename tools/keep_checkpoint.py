"""Keep a small checkpoint of this version in the tests, which load it for ever: run once for each release.

    python tools/keep_checkpoint.py

It writes tests/hub/kept/<version>/: prompts alone, prompts with fine-tuned encoders, a gallery and a half-finished
training run, and what each must give.
"""

import json
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import open_clip
import torch
from torch.nn.functional import normalize

from promptreid import (
    Gallery,
    PromptConfig,
    PromptedCLIP,
    Trainer,
    TwoStageSchedule,
    __version__,
    load_clip,
    load_prompts,
    save_prompts,
)

KEPT = Path(__file__).parents[1] / "tests" / "hub" / "kept"
IMAGE_SIZE = (32, 16)
# An architecture of its own, because every one of open_clip's is too large to keep.
ARCHITECTURE = {
    "embed_dim": 16,
    "vision_cfg": {"image_size": [32, 16], "layers": 2, "width": 16, "head_width": 8, "patch_size": 8},
    "text_cfg": {"context_length": 16, "vocab_size": 64, "width": 16, "heads": 2, "layers": 2},
}


def inputs(context_length: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Two pictures and two captions that need neither files nor a tokenizer."""
    images = torch.linspace(-1, 1, 2 * 3 * 32 * 16).reshape(2, 3, 32, 16).sin()
    tokens = torch.zeros(2, context_length, dtype=torch.int64)
    tokens[:, 0], tokens[0, 1:4], tokens[1, 1:6], tokens[0, 4], tokens[1, 6] = 62, 7, 11, 63, 63
    return images, tokens


@torch.no_grad()
def scores(model: PromptedCLIP) -> list[list[float]]:
    """Similarity of each caption with each picture."""
    images, tokens = inputs(model.context_length)
    text, image = model.encode_text(tokens, normalize=True), model.encode_image(images, normalize=True)
    return (text @ image.T).tolist()


def make_models() -> dict[str, PromptedCLIP]:
    """The models by the name of their folder."""
    torch.manual_seed(0)
    with tempfile.TemporaryDirectory() as scratch:
        config = Path(scratch) / "promptreid-kept.json"
        config.write_text(json.dumps(ARCHITECTURE), encoding="utf-8")
        open_clip.add_model_config(config)
    base = load_clip("promptreid-tiny", pretrained="generated", image_size=IMAGE_SIZE)
    tuned = load_clip("promptreid-kept", image_size=IMAGE_SIZE)
    models = {
        "prompts": PromptedCLIP(base, PromptConfig(text_length=2, vision_length=1, text_depth=2)),
        "tuned": PromptedCLIP(tuned, PromptConfig(text_length=1, vision_length=2, position_embedding=True)),
    }
    return {name: model.eval() for name, model in models.items()}


class Pairs(torch.utils.data.Dataset[dict[str, torch.Tensor]]):
    """Eight pairs of four persons, the same everywhere."""

    def __len__(self) -> int:
        return 8

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        image = torch.linspace(-1, 1, 3 * 32 * 16).reshape(3, 32, 16).mul(index + 1).sin()
        tokens = torch.zeros(16, dtype=torch.int64)
        tokens[0], tokens[1:4], tokens[4] = 62, torch.tensor([index + 1, 2 * index + 3, 9]), 63
        return {"images": image, "tokens": tokens, "person_ids": torch.tensor(index % 4)}


def trainer(model: PromptedCLIP, folder: Path, **settings: Any) -> Trainer:
    """Two epochs of each stage, a checkpoint an epoch."""
    torch.manual_seed(1)
    schedule = TwoStageSchedule(
        model,
        num_identities=4,
        stage_one_epochs=2,
        stage_two_epochs=2,
        stage_one_learning_rate=1e-2,
        stage_two_learning_rate=1e-3,
    )
    defaults = {"batch_size": 4, "device": "cpu", "progress": False, "trackers": (), "output_dir": folder}
    return Trainer(model, schedule, train_data=Pairs(), **{**defaults, **settings})


def trained(model: PromptedCLIP) -> dict[str, list[float]]:
    """A few of the weights that each stage has changed."""
    state = model.state_dict()
    names = ("vision.prompts.tokens", "text.prompts.tokens", "clip.visual.proj", "clip.text_projection")
    return {name: state[name].flatten()[:8].tolist() for name in names}


def keep_run(folder: Path) -> None:
    """A run that ended after the first epoch of stage 2, and what it must give when it is resumed."""
    shutil.rmtree(folder, ignore_errors=True)
    model = load_prompts(KEPT / __version__ / "tuned", trust_base=True)
    before = folder.with_name("before")
    shutil.rmtree(before, ignore_errors=True)
    # Called before the checkpoint of its epoch is written; the last copy is of the folder before the last epoch's.
    finished = trainer(model, folder, keep_checkpoints=1)
    without_lock = shutil.ignore_patterns(".training.lock")
    finished.on_epoch_end = lambda *_: shutil.copytree(folder, before, dirs_exist_ok=True, ignore=without_lock)
    finished.fit()
    kept = max((before / "checkpoints").iterdir())
    for path in (before / "checkpoints").iterdir():
        if path != kept:
            shutil.rmtree(path)
    shutil.rmtree(folder)
    before.rename(folder)
    (folder / "expected.json").write_text(json.dumps({"kept": kept.name, "trained": trained(model)}) + "\n")


def gallery_entries() -> Iterator[tuple[str, dict[str, Any]]]:
    """Paths and metadata of the kept gallery."""
    for index in range(6):
        yield f"crops/cam_{index % 2}/{index}.jpg", {"folder": f"cam_{index % 2}", "person_id": index // 2}


def keep_gallery(folder: Path) -> None:
    """A gallery of made-up features, and what a search must find."""
    shutil.rmtree(folder, ignore_errors=True)
    model = load_prompts(KEPT / __version__ / "tuned", trust_base=True)
    paths, metadata = zip(*gallery_entries(), strict=True)
    features = normalize(torch.linspace(-1, 1, 6 * 16).reshape(6, 16).mul(7).sin(), dim=-1)
    gallery = Gallery(model, list(paths), features, metadata=list(metadata))
    gallery.notes["model"] = {"model": "kept"}
    gallery.remove([1])
    gallery.save(folder)
    (folder / "gallery.lock").unlink(missing_ok=True)
    hits = gallery.search(features[3], k=3, where={"folder": "cam_1"})
    found = [[str(hit.path), hit.id, round(hit.score, 6), dict(hit.metadata)] for hit in hits]
    (folder / "expected.json").write_text(json.dumps(found) + "\n", encoding="utf-8")


def main() -> None:
    """Write the checkpoint of this version."""
    for name, model in make_models().items():
        folder = save_prompts(model, KEPT / __version__ / name, overwrite=True)
        (folder / ".prompts.lock").unlink(missing_ok=True)
        expected = {"scores": scores(model), "shapes": {k: list(v.shape) for k, v in model.prompt_state_dict().items()}}
        (folder / "expected.json").write_text(json.dumps(expected) + "\n", encoding="utf-8")
        print(f"{folder}: {sum(path.stat().st_size for path in folder.iterdir())} bytes")
    keep_run(KEPT / __version__ / "run")
    keep_gallery(KEPT / __version__ / "gallery")


if __name__ == "__main__":
    main()
