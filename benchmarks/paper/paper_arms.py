"""The rows of the paper's tables, each a model and a list of stages."""

from collections.abc import Callable
from dataclasses import dataclass, replace

from promptreid import PromptConfig, PromptedCLIP, Stage
from promptreid.training import ablations
from promptreid.training.recipe import Recipe

NONE = PromptConfig(text_length=0, vision_length=0)
PROMPTS = PromptConfig(text_length=4, vision_length=4)  # the paper's length is not known to us
TEXT_ALONE, IMAGE_ALONE = replace(PROMPTS, vision_length=0), replace(PROMPTS, text_length=0)


@dataclass(frozen=True)
class Row:
    """A row of a table.

    Attributes:
        label: What the table calls it.
        stages: From model and recipe to stages; `None` for the model as it comes.
        prompts: What the model carries.
    """

    label: str
    stages: Callable[[PromptedCLIP, Recipe], list[Stage]] | None
    prompts: PromptConfig = PROMPTS


def _length(text: int, image: int) -> Row:
    prompts = PromptConfig(text_length=text, vision_length=image)
    return Row(f"{text} for text, {image} for images", ablations.two_stages, prompts)


ROWS: dict[str, Row] = {
    "zero_shot": Row("CLIP, zero-shot", None, NONE),
    "direct": Row("CLIP, fine-tuned directly", ablations.direct_fine_tuning, NONE),
    "pd": Row("Prompt Decoupling", ablations.two_stages),
    "joint": Row("prompts, one stage", ablations.joint_one_stage),
    "stage_one": Row("prompts, stage 1 alone", ablations.prompts_only),
    "prompts_both": Row("two stages, prompts train in both", ablations.prompts_in_both_stages),
    "no_identity": Row("two stages without the identity loss", ablations.stage_two_without_identity),
    "text_prompts": Row("two stages, text prompts alone", ablations.text_prompts_only, TEXT_ALONE),
    "image_prompts": Row("two stages, image prompts alone", ablations.image_prompts_only, IMAGE_ALONE),
    "length_1": _length(1, 1),
    "length_2": _length(2, 2),
    "length_8": _length(8, 8),
    "length_16": _length(16, 16),
    "text_8_image_2": _length(8, 2),
    "text_2_image_8": _length(2, 8),
    "positions": Row("with position embedding", ablations.two_stages, replace(PROMPTS, position_embedding=True)),
}

# Title of each table → its rows, and what each is called there.
MAIN: dict[str, dict[str, str]] = {"Main": {name: ROWS[name].label for name in ("zero_shot", "direct", "pd")}}
ABLATIONS: dict[str, dict[str, str]] = {
    "Prompts and stages": {
        "direct": "no prompts, one stage",
        **{name: ROWS[name].label for name in ("joint", "stage_one", "text_prompts", "image_prompts")},
        **{name: ROWS[name].label for name in ("prompts_both", "no_identity")},
        "pd": "prompts, two stages (the method)",
    },
    "Prompt length": {
        **{name: ROWS[name].label for name in ("length_1", "length_2")},
        "pd": "4 for text, 4 for images",
        **{name: ROWS[name].label for name in ("length_8", "length_16", "text_8_image_2", "text_2_image_8")},
    },
    "Position embedding on prompts": {"pd": "without", "positions": ROWS["positions"].label},
}
TABLES = {"main": MAIN, "ablations": ABLATIONS}


def rows_of(tables: list[str]) -> list[str]:
    """The rows that tables need, each once, those of the main table first."""
    wanted = {row for name in tables for table in TABLES[name].values() for row in table}
    return [name for name in ROWS if name in wanted]
