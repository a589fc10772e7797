"""The options of `promptreid train` that say how it trains: what the recipe becomes."""

import argparse
from typing import get_args

import pytest

from promptreid.cli.train_model import ALGORITHMS, add_training_arguments, complete_training_arguments
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
    ("words", "message"),
    [
        (["--algorithm", "lion"], "argument --algorithm: invalid choice: 'lion'"),
        (["--epsilon", "0"], "argument --epsilon: is 0, expected a number above 0"),
        (["--max-norm", "-1"], "argument --max-norm: is -1, expected a number above 0"),
        (["--max-norm", "off"], "argument --max-norm: invalid number value: 'off'"),
    ],
)
def test_options_of_the_optimizer_out_of_range_are_refused(
    words: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        recipe_of(*words)
    assert message in capsys.readouterr().err
