"""Keep a small checkpoint of this version in the tests, which load it for ever: run once for each release.

    python tools/keep_checkpoint.py

It writes tests/hub/kept/<version>/: prompts alone, prompts with fine-tuned encoders, and the scores they must give.
"""

import json
import tempfile
from pathlib import Path

import open_clip
import torch

from promptreid import PromptConfig, PromptedCLIP, __version__, load_clip, save_prompts

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


def main() -> None:
    """Write the checkpoint of this version."""
    for name, model in make_models().items():
        folder = save_prompts(model, KEPT / __version__ / name, overwrite=True)
        (folder / ".prompts.lock").unlink(missing_ok=True)
        expected = {"scores": scores(model), "shapes": {k: list(v.shape) for k, v in model.prompt_state_dict().items()}}
        (folder / "expected.json").write_text(json.dumps(expected) + "\n", encoding="utf-8")
        print(f"{folder}: {sum(path.stat().st_size for path in folder.iterdir())} bytes")


if __name__ == "__main__":
    main()
