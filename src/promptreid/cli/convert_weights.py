"""`promptreid convert`: writes weights of any origin as an ordinary folder."""

import argparse
from pathlib import Path
from typing import Any

from promptreid.cli.argument_types import folder_to_write, whole
from promptreid.cli.model_names import FOLDER
from promptreid.cli.options import LARGEST_SIDE
from promptreid.cli.output import Output
from promptreid.defaults import IMAGE_SIZE
from promptreid.errors import shell_word

DESCRIPTION = """Read weights of any common format (OpenAI's, training checkpoints, transformers', IRRA's, RDE's,
TBPS-CLIP's, CLIP-ReID's; recognised from the content, without running code) and write an ordinary open_clip
folder, which open_clip, load_clip and --model local-dir:OUTPUT load; or one of transformers."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Describe the arguments."""
    parser.add_argument("source", help="a file, a folder, a Hub repository USER/NAME or USER/NAME@REVISION, or a tag")
    parser.add_argument("output", type=folder_to_write, help="the folder to write")
    parser.add_argument(
        "--model", help="open_clip's name of the architecture; default: what the source's configuration or shapes say"
    )
    parser.add_argument(
        "--to", choices=("open_clip", "transformers"), default="open_clip", help="layout; default: %(default)s"
    )
    for option, words in {
        "--image-size": "pixels to resize positions to; default: that of the weights",
        "--weights-size": "pixels that the weights were trained at, where nothing says it",
    }.items():
        parser.add_argument(option, type=whole(1, LARGEST_SIDE), nargs=2, metavar=("H", "W"), help=words)
    parser.add_argument(
        "--quick-gelu",
        action=argparse.BooleanOptionalAction,
        help="whether they were trained with QuickGELU, if the source does not say",
    )
    parser.add_argument("--overwrite", action="store_true", help="replace an existing model")


def run(console: Output, /, *, source: str, output: Path, model: str | None, **options: Any) -> int:
    """Convert the weights."""
    from promptreid.towers.converting import PROMPTS, convert_weights

    for size in ("image_size", "weights_size"):
        options[size] = options[size] and tuple(options[size])
    made = convert_weights(source, output, name=model, **options)
    height, width = made.image_size
    console.record(
        title=made.title,
        model=made.name,
        output=str(made.folder),
        image_size=[height, width],
        quick_gelu=made.quick_gelu,
        left_out=list(made.left_out),
        loads_in_open_clip=made.loads_in_open_clip,
    )
    activation = "QuickGELU" if made.quick_gelu else "the architecture's activation"
    console.say(f"{source}: {made.title}, {made.name}, images of {height} x {width}, {activation}")
    if made.left_out:
        console.say(f"left out: {', '.join(sorted({name.split('.')[0] for name in made.left_out}))}")
    if PROMPTS in made.left_out:
        console.say(
            f"the prompts of {source} are not in it: --model {shell_word(source.removeprefix(FOLDER))} uses encoders "
            "and prompts together, and promptreid export writes both as ONNX files"
        )
    own = f"--image-size {height} {width}"
    use = f"use it with --model local-dir:{made.folder}"
    if made.image_size != IMAGE_SIZE:
        # An ordinary CLIP is square, and resized for people; any other size is how this model is to be used.
        is_for_people = bool(options["image_size"] or made.trained_size) or height != width
        resized = f", which resizes it to {IMAGE_SIZE[0]} x {IMAGE_SIZE[1]} unless you add {own}"
        use += f" {own}" if is_for_people else resized
    console.say(f"written: {made.folder}; {use}")
    if not made.loads_in_open_clip:
        console.note(f"warning: plain open_clip does not build this model for {height} x {width}; promptreid does")
    return 0
