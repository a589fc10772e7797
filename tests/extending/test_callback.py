import torch


def test_callback_measures_every_epoch_from_the_start(run_example):
    example = run_example("A callback")
    distances = example.movement.distances
    assert len(distances) == 2
    # The last call saw the prompts as the run left them.
    assert distances[-1] == float((example.movement.prompts(example.model) - example.movement.start).norm())
    assert 0 < distances[0] != distances[1]


def test_callback_starts_at_nothing_moved(run_example):
    example = run_example("A callback")
    fresh = example.PromptMovement(example.model)
    fresh({"stage": "s", "epoch": 1}, example.model)
    assert fresh.distances == [0.0]
    assert torch.is_grad_enabled()
