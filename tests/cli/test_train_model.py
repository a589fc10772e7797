"""The options of `promptreid train` that say how it trains: what the recipe becomes."""

import argparse
from typing import get_args

import pytest

from promptreid.cli.train_model import (
    ALGORITHMS,
    add_training_arguments,
    complete_training_arguments,
    make_model,
)
from promptreid.training.recipe import Recipe
from promptreid.training.stage import Algorithm


def recipe_of(*words: str) -> Recipe:
    parser = argparse.ArgumentParser()
    add_training_arguments(parser)
    return complete_training_arguments(vars(parser.parse_args([*words, "--device", "cpu"])))[1]


def test_options_of_the_optimizer_are_the_recipes() -> None:
    assert get_args(Algorithm) == ALGORITHMS
    found = recipe_of("--algorithm", "adam", "--epsilon", "1e-3", "--max-norm", "none")
    assert (found.algorithm, found.epsilon, found.max_norm) == ("adam", 1e-3, None)
    assert recipe_of("--max-norm", "0.5").max_norm == 0.5
    plain = recipe_of()
    assert (plain.algorithm, plain.epsilon, plain.max_norm) == ("adamw", 1e-8, 1.0)


@pytest.mark.parametrize(
    ("kind", "shape"),
    [
        ("independent", {"tokens": (1, 4, 128)}),
        ("coupled", {"weight": (1, 128, 128), "bias": (1, 128), "scale": (1,)}),
        ("prefix", {"keys": (1, 4, 128), "values": (1, 4, 128)}),
        ("grouped", {"tokens": (2, 1, 4, 128)}),
    ],
)
def test_options_of_kind_and_depth_make_a_model_of_them(kind: str, shape: dict[str, tuple[int, ...]]) -> None:
    parser = argparse.ArgumentParser()
    add_training_arguments(parser)
    words = ["--prompt-kind", kind, "--prompt-depth", "1", "--device", "cpu", "--image-size", "32", "16"]
    arguments, _ = complete_training_arguments(vars(parser.parse_args(words)))
    model = make_model(arguments, cameras=("cam_a", "cam_b"))
    assert (model.config.kind, model.image_size) == (kind, (32, 16))
    found = {name: tuple(value.shape) for name, value in model.vision.prompts.state_dict().items()}
    assert found == shape
    assert vars(parser.parse_args([]))["prompt_kind"] == "independent"
    assert vars(parser.parse_args([]))["prompt_depth"] is None


def test_grouped_prompts_are_for_the_cameras_and_need_some() -> None:
    parser = argparse.ArgumentParser()
    add_training_arguments(parser)
    words = ["--prompt-kind", "grouped", "--device", "cpu", "--image-size", "32", "16"]
    arguments, _ = complete_training_arguments(vars(parser.parse_args(words)))
    assert make_model(arguments, cameras=("a", "b")).groups == ("a", "b")
    with pytest.raises(ValueError, match='names none; give its records a field "camera"'):
        make_model(arguments)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--prompt-kind", "shared"], "argument --prompt-kind: invalid choice: 'shared'"),
        (["--algorithm", "lion"], "argument --algorithm: invalid choice: 'lion'"),
        (["--epsilon", "0"], "argument --epsilon: is 0, expected a number above 0"),
        (["--max-norm", "-1"], "argument --max-norm: is -1, expected a number above 0"),
        (["--max-norm", "off"], "argument --max-norm: invalid number value: 'off'"),
    ],
)
def test_training_options_out_of_range_are_refused(
    words: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        recipe_of(*words)
    assert message in capsys.readouterr().err
