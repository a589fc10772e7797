"""Writes both encoders as ONNX files, for programs without PyTorch."""

import tempfile
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor, nn

from promptreid.errors import WeightsError, missing_extra
from promptreid.files import rename_over, write_json_atomically
from promptreid.towers.initial_states import probe_images, probe_tokens
from promptreid.towers.modes import evaluating
from promptreid.towers.tower import image_preprocessing_of
from promptreid.values import given_path

if TYPE_CHECKING:
    from promptreid.model.prompted_clip import PromptedCLIP

IMAGE_ENCODER, TEXT_ENCODER, DESCRIPTION = "image_encoder.onnx", "text_encoder.onnx", "preprocessing.json"

_MOST_IN_A_BATCH = 1024
_DIFFERENCE = 1e-3  # of any number in unit features


def export_onnx(model: "PromptedCLIP", directory: str | Path) -> list[Path]:
    """Write `image_encoder.onnx`, `text_encoder.onnx` and `preprocessing.json` into a folder.

    Prompts are part of the graphs, features have unit length, and the batch size is free. onnxruntime runs each graph
    once, and its features are compared with the model's.

    Args:
        model: The model; float32, on the CPU.
        directory: The folder; files of these names in it are replaced.

    Shape:
        - images: (B, 3, H, W) float32, prepared as `preprocessing.json` says, to image_features (B, E) float32
        - tokens: (B, L) int64, as `model.tokenizer` makes them, to text_features (B, E) float32

    Returns:
        The files.

    Raises:
        MissingExtraError: The extra `onnx` is not installed.
        ValueError: The model is not float32 on the CPU, or `directory` is empty.
        WeightsError: onnxruntime gives other features.
    """
    try:
        import onnxruntime
        import onnxscript  # noqa: F401  # pyright: ignore[reportUnusedImport]
    except ImportError as error:
        raise missing_extra("ONNX export", error.name or "onnxscript", "onnx") from error
    parameter = next(model.clip.parameters())
    if parameter.device.type != "cpu" or parameter.dtype != torch.float32:
        raise ValueError(
            f"the model is {parameter.dtype} on {parameter.device}, expected torch.float32 on the CPU: "
            "model.float().cpu()"
        )
    folder = given_path("directory", directory)
    folder.mkdir(parents=True, exist_ok=True)
    encoders = {
        IMAGE_ENCODER: (_Encoder(model, "image"), probe_images(model.clip)),
        TEXT_ENCODER: (_Encoder(model, "text"), probe_tokens(model.text.tower)),
    }
    written: list[Path] = []
    with evaluating(model), tempfile.TemporaryDirectory(dir=folder, prefix=".onnx-") as scratch:
        for name, (encoder, example) in encoders.items():
            _export(encoder, example, Path(scratch) / name)
            _compare(onnxruntime, encoder, example, Path(scratch) / name)
        for file in sorted(Path(scratch).iterdir()):
            written.append(folder / file.name)
            rename_over(file, written[-1])
    write_json_atomically(folder / DESCRIPTION, _description(model))
    return [*written, folder / DESCRIPTION]


class _Encoder(nn.Module):
    """One of the encoders, for unit features."""

    def __init__(self, model: "PromptedCLIP", kind: Literal["image", "text"]) -> None:
        super().__init__()
        self.model = model
        self.kind = kind

    def forward(self, given: Tensor) -> Tensor:
        encode = self.model.encode_image if self.kind == "image" else self.model.encode_text
        return encode(given, normalize=True)


def _export(encoder: _Encoder, example: Tensor, path: Path) -> None:
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")  # they come from the exporter's own parts
        torch.onnx.export(
            encoder,
            (example,),
            str(path),
            input_names=["images" if encoder.kind == "image" else "tokens"],
            output_names=[f"{encoder.kind}_features"],
            dynamic_shapes=({0: torch.export.Dim("batch", min=1, max=_MOST_IN_A_BATCH)},),
            dynamo=True,
            verbose=False,
        )


def _compare(onnxruntime: Any, encoder: nn.Module, example: Tensor, path: Path) -> None:
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    given = torch.cat([example, example[:1]])  # another batch size than the exporter saw
    (found,) = session.run(None, {session.get_inputs()[0].name: given.numpy()})
    with torch.no_grad():
        difference = float((torch.from_numpy(found) - encoder(given)).abs().max())
    if not difference <= _DIFFERENCE:
        raise WeightsError(
            f"{path.name} gives features that differ by {difference:.3g} from the model's, expected at most "
            f"{_DIFFERENCE}; nothing was written. Please report it with the versions of torch and onnxruntime"
        )


def _description(model: "PromptedCLIP") -> dict[str, Any]:
    """The preprocessing of images and captions for other programs, for JSON."""
    return {
        "model": None if model.source is None else model.source.name,
        "image_size": list(model.image_size),
        "resize": "to image_size, aspect ratio not kept, with antialiasing",
        **image_preprocessing_of(model.clip),
        "pixels": "RGB, 0 to 1, minus mean, divided by std; (batch, 3, height, width)",
        "context_length": model.context_length,
        "dimensions": model.embed_dim,
    }
