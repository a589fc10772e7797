"""Train the stage-1 prompts that ship beside the small base: domain adaptation to synthetic pedestrians.

    python tools/adapt_tiny.py

Encoders stay as they are; only prompts learn. The data have their own seed, which no example, test or benchmark
uses, so that no search is among persons that the prompts have seen. Settings and scores go into
`adaptation.json`.
"""

import json
import tempfile
import time

import torch

from promptreid import PromptConfig, PromptedCLIP, Trainer, TwoStageSchedule, evaluate, load_clip, save_prompts
from promptreid.data.dataset import CaptionedImages
from promptreid.data.reader import load_cuhk_pedes
from promptreid.synthetic import write_generated
from promptreid.towers.tiny import TINY_TAG, tiny_prompts

SETTINGS = {
    "identities": (400, 100, 1),
    "data_seed": 1000,
    "image_size": (96, 48),
    "prompt_length": 4,
    "batch_size": 64,
    "epochs": 3,
    "learning_rate": 5e-3,
    "seed": 0,
}


def main() -> None:
    """Draw, train stage 1, save prompts and what they were trained with."""
    torch.manual_seed(SETTINGS["seed"])
    clip = load_clip("promptreid-tiny", pretrained=TINY_TAG, image_size=SETTINGS["image_size"])
    length = SETTINGS["prompt_length"]
    model = PromptedCLIP(clip, PromptConfig(text_length=length, vision_length=length))
    with tempfile.TemporaryDirectory() as folder:
        identities, seed = SETTINGS["identities"], SETTINGS["data_seed"]
        data = load_cuhk_pedes(write_generated(f"{folder}/data", num_identities=identities, seed=seed))
        if data.val is None:
            raise RuntimeError("the synthetic data have no validation split")
        with model.disabled():
            bare = evaluate(model, data.val).as_dict()
        schedule = TwoStageSchedule(
            model,
            num_identities=data.train.num_identities,
            stage_one_epochs=SETTINGS["epochs"],
            stage_two_epochs=0,
            stage_one_learning_rate=SETTINGS["learning_rate"],
        )
        pairs = CaptionedImages(data.train, transform=model.train_transform, tokenizer=model.tokenizer)
        started = time.perf_counter()
        Trainer(
            model, schedule, train_data=pairs, batch_size=SETTINGS["batch_size"], output_dir=f"{folder}/run",
            seed=SETTINGS["seed"], device="cpu",
        ).fit()  # fmt: skip
        seconds = round(time.perf_counter() - started)
        adapted = evaluate(model, data.val).as_dict()
    save_prompts(model, tiny_prompts(), overwrite=True)
    report = {"settings": SETTINGS, "seconds": seconds, "validation": {"bare": bare, "adapted": adapted}}
    text = json.dumps(report, indent=1) + "\n"
    (tiny_prompts().parent / "adaptation.json").write_text(text, encoding="utf-8")
    print(f"validation Rank-1: bare {100 * bare['rank1']:.1f} %, adapted {100 * adapted['rank1']:.1f} %")


if __name__ == "__main__":
    main()
