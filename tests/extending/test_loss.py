import json

import pytest
import torch


@pytest.fixture
def loss_example(run_example):
    return run_example("A loss")


def test_loss_is_the_hand_worked_value(loss_example):
    images, texts = torch.tensor([[1.0, 0.0], [0.0, 1.0]]), torch.tensor([[3.0, 4.0], [0.0, 2.0]])
    # Cosines by image and text: [[0.6, 0], [0.8, 1]]. By image: 0.2 - 0.6 + 0 < 0, 0.2 - 1 + 0.8 = 0. By text:
    # 0.2 - 0.6 + 0.8 = 0.4, 0.2 - 1 + 0 < 0. The mean over two pairs is 0.2.
    value = loss_example.HardestNegativeLoss(margin=0.2)(images, texts, torch.tensor([3, 4]))
    torch.testing.assert_close(value, torch.tensor(0.2))
    assert loss_example.HardestNegativeLoss()(images, texts, torch.tensor([3, 3])) == 0


def test_loss_trains_the_prompts_and_is_logged(loss_example, split, tmp_path):
    from promptreid import Trainer
    from promptreid.data.dataset import CaptionedImages

    model, stage = loss_example.model, loss_example.stage
    before = model.vision.prompts.tokens.detach().clone()
    pairs = CaptionedImages(split, transform=model.eval_transform, tokenizer=model.tokenizer)
    Trainer(model, [stage], train_data=pairs, batch_size=24, output_dir=tmp_path / "run", device="cpu").fit()
    assert not torch.equal(model.vision.prompts.tokens, before)
    steps = [json.loads(line) for line in (tmp_path / "run" / "steps.jsonl").read_text().splitlines()]
    losses = [step["losses"] for step in steps if "losses" in step]
    assert losses
    assert losses[0]["total"] == pytest.approx(losses[0]["contrastive"] + 0.5 * losses[0]["triplet"], rel=1e-5)


def test_run_with_another_margin_is_another_run(loss_example):
    other = loss_example.Stage(
        "s", loss_example.model, trains=["prompts"], losses={"triplet": loss_example.HardestNegativeLoss(margin=0.3)}
    )
    assert "margin=0.3" in str(other.settings()["losses"])
