"""Checks `--model`: refuses names that are not models, and says what they are instead."""

from pathlib import Path

from promptreid.towers.tiny import TINY_NAME

FOLDER = "local-dir:"
BARE = ("hf-hub:", FOLDER)  # open_clip's repositories, which hold no prompts


def check_names(model: str, pretrained: str | None) -> None:
    """Refuse a name or a tag that open_clip does not have, before data are read.

    Raises:
        ValueError: The name or the tag is unknown.
    """
    from promptreid.towers.names import check_name, needs_quick_gelu

    check_name(model)
    needs_quick_gelu(model, pretrained)


def check_not_a_file(model: str) -> None:
    """Refuse a file in the place of a model.

    Raises:
        ValueError: It is a file.
    """
    if Path(model).is_file():
        raise ValueError(
            f"--model {model} is a file; give a folder that `promptreid train` or save_prompts wrote. A file of "
            f"weights goes with the name of its architecture: --model ViT-B-16 --pretrained {model}"
        )


def check_listed(model: str, pretrained: str | None, *, without: str) -> None:
    """Refuse what is neither the small model, open_clip's repository nor one of its models with weights.

    Args:
        model: What was given; no saved model.
        pretrained: Its weights.
        without: What is said of a model without weights.

    Raises:
        ValueError: The name is unknown, or weights are missing.
    """
    if model == TINY_NAME or model.startswith(BARE):
        return
    from promptreid.towers.names import check_name

    try:
        check_name(model)
    except ValueError as error:
        raise ValueError(
            f"--model {model} is not a folder here, and {error} A model on the Hub is named USER/NAME"
        ) from error
    if pretrained is None:
        raise ValueError(f"--model {model} needs --pretrained TAG, such as openai; {without}")


def check_start(model: str) -> None:
    """Refuse a model that training cannot start from, above all a saved one.

    Raises:
        ValueError: It is a folder, a file or the id of a repository, and not the name of an open_clip model.
    """
    from promptreid.hub.prompt_files import MANIFEST

    check_not_a_file(model)
    folder = next((each for each in (Path(model), Path(model, "model")) if (each / MANIFEST).is_file()), None)
    if folder is not None:
        raise ValueError(
            f"train starts from an open_clip model, and {folder} was trained already. evaluate, index, search, export "
            f"and push use it: promptreid evaluate DATA --model {folder}. To train a new one, leave --model out or "
            "give --model ViT-B-16 --pretrained openai; an interrupted run resumes with the same command"
        )
    if Path(model).is_dir():
        raise ValueError(
            f"train starts from an open_clip model, and {model} is a folder; if open_clip wrote it, "
            f"give --model local-dir:{model}"
        )
