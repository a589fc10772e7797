"""`promptreid export`: writes a model's encoders as ONNX files."""

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from promptreid.cli.argument_types import folder_to_write
from promptreid.cli.options import ModelArguments, add_model_arguments, chosen_model, load_model
from promptreid.cli.output import Output
from promptreid.towers.tiny import TINY_ADAPTED

if TYPE_CHECKING:
    from typing_extensions import Unpack

DESCRIPTION = """Write image_encoder.onnx and text_encoder.onnx, with the prompts in them and features of unit length,
and preprocessing.json with the preprocessing of images and captions. ONNX Runtime, OpenVINO and others run them without
PyTorch."""
NEEDS = [(None, "onnxscript", "onnx"), (None, "onnxruntime", "onnx")]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Describe the arguments."""
    parser.add_argument("output", type=folder_to_write, help="folder for the files")
    add_model_arguments(parser, default=TINY_ADAPTED, device="cpu")


def run(console: Output, /, *, output: Path, **model: "Unpack[ModelArguments]") -> int:
    """Export the model."""
    choice = chosen_model(model)
    from promptreid.model.onnx_files import export_onnx

    files = export_onnx(load_model(choice, device=model["device"] or "cpu"), output)
    for file in files:
        console.say(f"{file.stat().st_size:>12,} bytes  {file}")
    console.record(files=[str(file) for file in files], model=choice.as_dict())
    return 0
