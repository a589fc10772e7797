"""Train on as many GPUs as there are; the script does not mention them, the command that starts it does.

    python examples/many_gpus.py                                             # one process
    accelerate launch --multi_gpu --num_processes 4 examples/many_gpus.py    # four GPUs of one machine
    torchrun --nproc_per_node 4 examples/many_gpus.py                        # the same with torch's own launcher
    torchrun --nnodes 2 --nproc_per_node 4 --rdzv_backend c10d --rdzv_endpoint HOST:29500 examples/many_gpus.py

`BATCH_SIZE` counts the pairs of a step over all processes. Each process encodes its share; the contrastive loss then
compares every image with every caption of the whole batch, so the number of GPUs does not change what is learned.
Install the extra first: pip install "promptreid[train]".
"""

import torch
from accelerate import PartialState

from promptreid import PromptConfig, PromptedCLIP, Trainer, TwoStageSchedule, evaluate, load_clip, save_prompts
from promptreid.data import CaptionedImages, load_dataset
from promptreid.synthetic import write_generated

DATA = "runs/many_gpus/data"
OUTPUT = "runs/many_gpus"
MODEL, PRETRAINED, IMAGE_SIZE = "promptreid-tiny", "generated_v3", (96, 48)  # or "ViT-B-16", "openai", (384, 128)
IDENTITIES = (200, 20, 50)  # persons to draw for training, validation and test
EPOCHS = (2, 3)  # of stage 1 and stage 2
LEARNING_RATES = (5e-3, 3e-4)
BATCH_SIZE = 64
NUM_WORKERS = 0  # processes that load images, for each GPU
SEED = 0


def main() -> None:
    """Train both stages; the first process writes."""
    state = PartialState(cpu=not torch.cuda.is_available())
    with state.main_process_first():  # the others find the data that the first has drawn
        data = load_dataset(write_generated(DATA, num_identities=IDENTITIES, seed=SEED))
    torch.manual_seed(SEED)  # every process draws the same prompts
    model = PromptedCLIP(load_clip(MODEL, pretrained=PRETRAINED, image_size=IMAGE_SIZE), PromptConfig())
    trainer = Trainer(
        model,
        TwoStageSchedule(
            model,
            num_identities=data.train.num_identities,
            stage_one_epochs=EPOCHS[0],
            stage_two_epochs=EPOCHS[1],
            stage_one_learning_rate=LEARNING_RATES[0],
            stage_two_learning_rate=LEARNING_RATES[1],
        ),
        train_data=CaptionedImages(data.train, transform=model.train_transform, tokenizer=model.tokenizer),
        batch_size=BATCH_SIZE,
        output_dir=OUTPUT + "/training",
        seed=SEED,
        num_workers=NUM_WORKERS,
        mixed_precision="bf16" if torch.cuda.is_available() else "no",
    )
    trainer.fit()
    scores = evaluate(model, data.test).text_to_image  # every process encodes its share
    if state.is_main_process:
        save_prompts(model, OUTPUT + "/model", overwrite=True)
        print(f"processes: {state.num_processes}; rank-1 {scores.rank1:.3f}, mAP {scores.mAP:.3f}")
    state.wait_for_everyone()


if __name__ == "__main__":
    main()
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()
