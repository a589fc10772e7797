"""The options of `promptreid train` that say how it trains: what the recipe becomes."""

import argparse
from typing import get_args

import pytest

from promptreid.cli.train_model import ALGORITHMS, add_training_arguments, complete_training_arguments, make_model
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


def test_option_of_the_kind_makes_a_model_of_it() -> None:
    parser = argparse.ArgumentParser()
    add_training_arguments(parser)
    words = ["--prompt-kind", "coupled", "--device", "cpu", "--image-size", "32", "16"]
    arguments, _ = complete_training_arguments(vars(parser.parse_args(words)))
    model = make_model(arguments)
    assert (model.config.kind, model.image_size) == ("coupled", (32, 16))
    assert "vision.prompts.weight" in model.prompt_state_dict()
    assert vars(parser.parse_args([]))["prompt_kind"] == "independent"


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
