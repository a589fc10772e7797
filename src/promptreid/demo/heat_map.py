"""Shows which part of a crop answers a phrase."""

from PIL import Image
from torch import Tensor

from promptreid.demo.comparison import Version
from promptreid.evaluation.pictures.occlusion import occlusion_map


def phrase_heat(version: Version, image: Image.Image, phrase: str) -> Tensor:
    """The `occlusion_map` of an image, made by one version of the model."""
    with version.running() as model:
        return occlusion_map(model, model.eval_transform(image.convert("RGB")), phrase)
