"""`promptreid demo`: a page in the browser to search a gallery."""

import argparse
from pathlib import Path

from promptreid.cli.options import (
    add_device_argument,
    add_revision_argument,
    check_device,
    folder_to_read,
    refuse_unused,
    saved_model,
    whole,
)
from promptreid.cli.output import Output

DESCRIPTION = """Serve a page on this computer that searches drawn pedestrians, or your own crops, by a sentence or an
image, adapted beside bare. Needs the extra demo. Ends with Ctrl-C."""
NEEDS = [(None, "gradio", "demo")]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Describe the arguments."""
    parser.add_argument(
        "folder", type=folder_to_read, nargs="?", help="crops to search; default: drawn pedestrians only"
    )
    parser.add_argument(
        "--model",
        type=saved_model,
        help="a folder that save_prompts wrote, or a Hub repository USER/NAME; default: the shipped small model",
    )
    add_revision_argument(parser)
    parser.add_argument("--host", default="127.0.0.1", help="default %(default)s: this computer alone")
    parser.add_argument("--port", type=whole(1, 65535), help="default: a free one")
    parser.add_argument("--open", action="store_true", help="open the page in the browser")
    add_device_argument(parser)


def run(
    console: Output,
    /,
    *,
    folder: Path | None,
    model: str | None,
    revision: str | None,
    host: str,
    port: int | None,
    open: bool,
    device: str | None,
) -> int:
    """Serve the page until Ctrl-C."""
    from promptreid.demo.app import check_address, launch
    from promptreid.model.prompted_clip import load_prompts

    check_address(host, port)
    if model is None:
        refuse_unused(
            {"revision": revision, "device": device}, "it goes with --model; without, drawn people are searched"
        )
    loaded = None if model is None else load_prompts(model, revision=revision, device=check_device(device))
    launch(folder, model=loaded, host=host, port=port, open_browser=open)
    return 0
