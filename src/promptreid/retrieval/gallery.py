"""Search a folder of pedestrian crops by a sentence or a picture."""

import json
import warnings
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
from PIL import Image
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor
from tqdm import tqdm

from promptreid.data.dataset import open_image
from promptreid.encoders.clip import PromptedCLIP
from promptreid.errors import CheckpointError, DatasetError
from promptreid.files import write_bytes_atomically, write_tensors_atomically
from promptreid.retrieval.identity import check_identity, model_identity

IMAGE_ENDINGS = (".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff")
_FEATURES, _INDEX = "gallery.safetensors", "gallery.json"
_FORMAT_VERSION = 1

Query = str | Path | Image.Image


@dataclass(frozen=True)
class Hit:
    """One picture found.

    Attributes:
        path: The picture.
        score: Cosine similarity to the query, in [-1, 1].
        index: Its place in the gallery.
    """

    path: Path
    score: float
    index: int


class Gallery:
    """Features of pictures, to be searched exactly.

    Args:
        model: Encodes queries; the one that encoded the pictures.
        paths: The pictures.
        features: Their features, of unit length.

    Shape:
        - features: (G, E) float32

    Raises:
        ValueError: Empty, not finite, or not one feature a picture.

    Example:
        >>> gallery = Gallery.build(model, "crops/")  # doctest: +SKIP
        >>> gallery.search("a woman in a red coat with a black backpack", k=5)  # doctest: +SKIP
    """

    def __init__(self, model: PromptedCLIP, paths: Sequence[Path], features: Tensor) -> None:
        if not paths or features.ndim != 2 or len(features) != len(paths):
            raise ValueError(
                f"{len(paths)} paths and features of shape {tuple(features.shape)}, expected (pictures, dim) and at "
                "least one picture"
            )
        if not bool(features.isfinite().all()):
            raise ValueError("features hold NaN or infinity; did the model diverge?")
        self.model = model
        self.paths: tuple[Path, ...] = tuple(paths)
        self.features = features

    def __len__(self) -> int:
        return len(self.paths)

    @classmethod
    def build(
        cls,
        model: PromptedCLIP,
        images: str | Path | Iterable[str | Path],
        *,
        batch_size: int = 64,
        progress: bool = True,
    ) -> "Gallery":
        """Encode a folder of pictures, with its sub-folders, or a list of files.

        Pictures that cannot be read are left out, counted and named in one warning.

        Args:
            model: The model.
            images: A folder or paths.
            batch_size: Pictures at a time.
            progress: Show a progress bar.

        Raises:
            DatasetError: There is no picture, or none that can be read.
        """
        paths = _list_images(images)
        features: list[Tensor] = []
        kept: list[Path] = []
        unreadable: list[Path] = []
        transform, device = model.eval_transform, next(model.parameters()).device
        training = model.training
        model.eval()
        starts = range(0, len(paths), batch_size)
        try:
            for start in tqdm(
                starts, desc="encoding gallery", unit="batch", disable=not progress, leave=False, delay=1
            ):
                batch: list[Tensor] = []
                for path in paths[start : start + batch_size]:
                    try:
                        batch.append(transform(open_image(path)))
                        kept.append(path)
                    except DatasetError:
                        unreadable.append(path)
                if batch:
                    with torch.inference_mode():
                        encoded = model.encode_image(torch.stack(batch).to(device), normalize=True)
                    features.append(encoded.float().cpu())
        finally:
            model.train(training)
        _report_unreadable(unreadable, len(paths))
        return cls(model, kept, torch.cat(features))

    def search(self, query: Query | Tensor, k: int = 10) -> list[Hit]:
        """Find the pictures most similar to a query.

        Args:
            query: A sentence, a picture (a `Path` or a PIL image), or features (E,).
            k: How many.

        Returns:
            The best first; of equal scores the earlier picture in the gallery comes first.

        Raises:
            ValueError: `k` is not from 1 to the gallery's size, or the sentence is empty.
            TypeError: The query is of another kind.
        """
        if not 1 <= k <= len(self):
            raise ValueError(f"k is {k}, but the gallery has {len(self)} pictures; give 1 to {len(self)}")
        scores = self.features @ self._encode(query)
        order = scores.sort(descending=True, stable=True).indices[:k].tolist()
        return [Hit(self.paths[index], float(scores[index]), index) for index in order]

    def save(self, directory: str | Path) -> Path:
        """Write the features to a folder, readable by its owner alone; they are biometric data.

        Returns:
            The folder.
        """
        folder = Path(directory)
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        write_tensors_atomically(folder / _FEATURES, {"features": self.features}, mode=0o600)
        index = {
            "format_version": _FORMAT_VERSION,
            "model": model_identity(self.model),
            "paths": [str(path) for path in self.paths],
        }
        write_bytes_atomically(folder / _INDEX, json.dumps(index).encode(), mode=0o600)
        return folder

    @classmethod
    def load(cls, directory: str | Path, model: PromptedCLIP) -> "Gallery":
        """Read what `save` wrote.

        Args:
            directory: The folder.
            model: The model that encoded the pictures.

        Raises:
            CheckpointError: Files are missing, corrupt, of another format version, or of another model.
        """
        folder = Path(directory)
        try:
            index = json.loads((folder / _INDEX).read_text(encoding="utf-8"))
            features = load_file(folder / _FEATURES)["features"]
            version, identity, names = (index[key] for key in ("format_version", "model", "paths"))
            paths = [Path(name) for name in cast("list[str]", names)]
        except (OSError, ValueError, KeyError, TypeError, SafetensorError) as error:
            raise CheckpointError(f"{folder} holds no readable gallery ({error}); build it again") from error
        if version != _FORMAT_VERSION:
            raise CheckpointError(f"{folder} has format version {version}, expected {_FORMAT_VERSION}; build it again")
        check_identity(identity, model, source=str(folder))
        return cls(model, paths, features)

    def _encode(self, query: Query | Tensor) -> Tensor:
        if isinstance(query, Tensor):
            if query.shape != self.features.shape[1:]:
                raise ValueError(
                    f"query features have shape {tuple(query.shape)}, expected ({self.features.shape[1]},)"
                )
            return torch.nn.functional.normalize(query.float().cpu(), dim=-1)
        device = next(self.model.parameters()).device
        training = self.model.training
        self.model.eval()
        try:
            with torch.inference_mode():
                return self._encode_input(query, device).float().cpu()[0]
        finally:
            self.model.train(training)

    def _encode_input(self, query: Any, device: torch.device) -> Tensor:
        if isinstance(query, str):
            if not query.strip():
                raise ValueError("the query is empty; describe the person, such as 'a man in a blue jacket'")
            return self.model.encode_text(self.model.tokenizer([query]).to(device), normalize=True)
        if isinstance(query, Path):
            query = open_image(query)
        if isinstance(query, Image.Image):
            image = self.model.eval_transform(query.convert("RGB"))
            return self.model.encode_image(image.unsqueeze(0).to(device), normalize=True)
        raise TypeError(f"query is {type(query).__name__}, expected a sentence, a Path, a PIL image or features")


def _list_images(images: str | Path | Iterable[str | Path]) -> list[Path]:
    if not isinstance(images, str | Path):
        paths = [Path(image) for image in images]
        if not paths:
            raise DatasetError("the list of images is empty; give at least one path")
        return paths
    folder = Path(images)
    if not folder.is_dir():
        raise DatasetError(f"there is no folder {folder}; give a folder of pictures or a list of files")
    paths = sorted(path for path in folder.rglob("*") if path.suffix.lower() in IMAGE_ENDINGS and path.is_file())
    if not paths:
        raise DatasetError(f"{folder} has no pictures ({', '.join(IMAGE_ENDINGS)}) in it or below")
    return paths


def _report_unreadable(unreadable: list[Path], total: int) -> None:
    if not unreadable:
        return
    first = ", ".join(str(path) for path in unreadable[:10])
    if len(unreadable) == total:
        raise DatasetError(f"none of the {total} pictures can be read; first: {first}")
    warnings.warn(f"{len(unreadable)} of {total} pictures cannot be read and are left out: {first}", stacklevel=3)
