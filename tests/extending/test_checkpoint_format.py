import pytest
import torch


@pytest.fixture
def format_example(run_example):
    return run_example("A checkpoint format")


def test_weights_under_names_of_ones_own_are_loaded_exactly(format_example):
    trained, loaded = format_example.trained.state_dict(), format_example.clip.state_dict()
    assert loaded.keys() == trained.keys()
    assert all(torch.equal(loaded[name], value) for name, value in trained.items())


def test_format_is_named_and_its_head_left_out(format_example, tmp_path):
    from promptreid.towers.weights import read_checkpoint

    checkpoint = read_checkpoint(tmp_path / "ours.pt")
    assert checkpoint.title == "our script"
    assert checkpoint.left_out == ("head.weight",)
    assert checkpoint.quick_gelu is False


def test_format_does_not_outlive_the_page():
    from promptreid.towers.checkpoint_kinds import KINDS

    assert "our script" not in [kind.title for kind in KINDS]
