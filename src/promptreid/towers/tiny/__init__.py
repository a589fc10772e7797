"""The small base that ships with the package, and prompts for it."""

from pathlib import Path

TINY_NAME, TINY_TAG = "promptreid-tiny", "generated_v3"

# File by tag. A tag's weights never change, since saved prompts belong to them; "generated" is version 2.
TINY_WEIGHTS = {"generated": "promptreid-tiny.safetensors", TINY_TAG: "promptreid-tiny-v3.safetensors"}

TINY_ADAPTED = "promptreid-tiny-adapted"  # what the command line calls the base with the shipped prompts

TINY_IMAGE_SIZE = (96, 48)  # height and width in pixels

TINY_FOLDER = Path(__file__).parent


def tiny_weights(name: str, tag: str | None) -> Path | None:
    """The file of weights that ship with this package; `None` for any other model or tag."""
    return TINY_FOLDER / TINY_WEIGHTS[tag] if name == TINY_NAME and tag in TINY_WEIGHTS else None


def tiny_prompts() -> Path:
    """Folder of the stage-1 prompts that ship for `promptreid-tiny`; `load_prompts` takes it.

    They adapt the base to generated pedestrians (seed 1000, which no example or benchmark uses), so that search and
    demo have a better start than the bare base. They are of no use on photographs.

    Returns:
        The folder, which holds `prompts.safetensors` and `prompt_config.json`.

    Example:
        >>> from promptreid import load_prompts
        >>> model = load_prompts(tiny_prompts())
        >>> model.image_size
        (96, 48)
    """
    return TINY_FOLDER / "prompts"
