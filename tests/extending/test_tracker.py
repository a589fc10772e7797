import csv
import json


def test_tracker_gets_settings_and_the_numbers_of_every_step(run_example, split, tmp_path):
    from promptreid import PromptedCLIP, Stage, Trainer, load_clip
    from promptreid.data.dataset import CaptionedImages
    from promptreid.losses.contrastive import ContrastiveLoss

    tracker = run_example("A tracker").tracker
    model = PromptedCLIP(load_clip("promptreid-tiny", pretrained="generated", image_size=(96, 48)))
    stage = Stage("prompts", model, trains=["prompts"], losses={"contrastive": ContrastiveLoss()})
    pairs = CaptionedImages(split, transform=model.eval_transform, tokenizer=model.tokenizer)
    trainer = Trainer(
        model, [stage], train_data=pairs, batch_size=24, output_dir=tmp_path / "run", device="cpu", trackers=[tracker]
    )
    trainer.fit()
    steps = [json.loads(line) for line in (tmp_path / "run" / "steps.jsonl").read_text().splitlines()]
    rows = list(csv.reader(tracker.path.read_text().splitlines()))
    assert steps
    assert [(int(row[0]), float(row[2])) for row in rows if row[1] == "loss/contrastive"] == [
        (step["step"], step["losses"]["contrastive"]) for step in steps
    ]
    assert tracker.settings["seed"] == 0
    assert tracker.settings["run"].endswith("/run")
