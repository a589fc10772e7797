"""`promptreid demo`: a page in the browser to search a gallery."""

import argparse
from pathlib import Path

from promptreid.cli.options import add_device_argument, check_device
from promptreid.cli.output import Output
from promptreid.demo.app import launch
from promptreid.model.prompted_clip import load_prompts


def add_parser(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> argparse.ArgumentParser:  # pyright: ignore[reportPrivateUsage]
    """Describe the command."""
    parser = commands.add_parser(
        "demo",
        help="search in the browser",
        description="Serve a page on this computer that searches drawn pedestrians, or your own crops, by a sentence "
        "or a picture, adapted beside bare. Needs the extra demo. Ends with Ctrl-C.",
    )
    parser.add_argument("folder", type=Path, nargs="?", help="crops to search; default: drawn pedestrians only")
    parser.add_argument(
        "--model",
        help="a folder that save_prompts wrote, or a Hub repository USER/NAME; default: the shipped small model",
    )
    parser.add_argument("--host", default="127.0.0.1", help="default %(default)s: this computer alone")
    parser.add_argument("--port", type=int, help="default: a free one")
    parser.add_argument("--open", action="store_true", help="open the page in the browser")
    add_device_argument(parser)
    return parser


def run(settings: argparse.Namespace, output: Output) -> int:
    """Serve the page until Ctrl-C."""
    model = None if settings.model is None else load_prompts(settings.model, device=check_device(settings.device))
    launch(settings.folder, model=model, host=settings.host, port=settings.port, open_browser=settings.open)
    return 0
