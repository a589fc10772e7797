"""Prompt Decoupling in a plain PyTorch loop: promptreid gives the model, the stages and the losses, the loop is yours.

    python examples/own_training_loop.py

It draws a small dataset, so that it runs without any data; put your own `DataLoader` where `batches` is made.
"""

import torch
from torch.utils.data import DataLoader

from promptreid import PromptConfig, PromptedCLIP, TwoStageSchedule, evaluate, load_clip, save_prompts
from promptreid.data import CaptionedImages, load_dataset
from promptreid.synthetic import write_generated

DATA = "runs/own_training_loop/data"
OUTPUT = "runs/own_training_loop/model"
MODEL, PRETRAINED, IMAGE_SIZE = "promptreid-tiny", "generated_v3", (96, 48)  # or "ViT-B-16", "openai", (384, 128)
IDENTITIES = (200, 20, 50)  # persons to draw for training, validation and test
EPOCHS = (2, 3)  # of stage 1 and stage 2
LEARNING_RATES = (5e-3, 3e-4)
BATCH_SIZE = 64
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


def main() -> None:
    """Train both stages and save the model."""
    torch.manual_seed(0)
    data = load_dataset(write_generated(DATA, num_identities=IDENTITIES, seed=0))
    model = PromptedCLIP(load_clip(MODEL, pretrained=PRETRAINED, image_size=IMAGE_SIZE, device=DEVICE), PromptConfig())
    pairs = CaptionedImages(data.train, transform=model.train_transform, tokenizer=model.tokenizer)
    batches = DataLoader(pairs, batch_size=BATCH_SIZE, shuffle=True, drop_last=True)

    schedule = TwoStageSchedule(
        model,
        num_identities=data.train.num_identities,
        stage_one_epochs=EPOCHS[0],
        stage_two_epochs=EPOCHS[1],
        stage_one_learning_rate=LEARNING_RATES[0],
        stage_two_learning_rate=LEARNING_RATES[1],
    )
    print(f"before training: rank-1 {evaluate(model, data.test).text_to_image.rank1:.3f}")
    for stage in schedule:
        stage.prepare()  # freezes the encoders in stage 1 and the prompts in stage 2
        optimizer = stage.optimizer()
        scheduler = stage.scheduler(optimizer, steps_per_epoch=len(batches))
        for epoch in range(stage.epochs):
            for batch in batches:
                image_features = model.encode_image(batch["images"].to(DEVICE))
                text_features = model.encode_text(batch["tokens"].to(DEVICE))
                losses = stage.losses(image_features, text_features, batch["person_ids"].to(DEVICE))
                optimizer.zero_grad()
                losses["total"].backward()
                torch.nn.utils.clip_grad_norm_(stage.parameters(), stage.max_norm)
                optimizer.step()
                scheduler.step()
            print(f"{stage.name}, epoch {epoch + 1}: last loss {losses['total'].item():.3f}")
        print(f"after {stage.name}: rank-1 {evaluate(model, data.test).text_to_image.rank1:.3f}")
    print(f"saved in {save_prompts(model, OUTPUT, overwrite=True)}")


if __name__ == "__main__":
    main()
