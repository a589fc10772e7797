"""The parts of a model that can be named in a stage."""

from collections.abc import Iterable, Iterator
from typing import Literal

from torch import nn

from promptreid.backbones.features import parameters_without_features
from promptreid.encoders.clip import PromptedCLIP
from promptreid.training.layer_depths import LayerDepths

Part = Literal["prompts", "image_prompts", "text_prompts", "encoders", "norms", "projections"]


def part_parameters(model: PromptedCLIP, part: Part) -> list[nn.Parameter]:
    """The parameters of a part, each once.

    `"norms"` are the weights and biases of all normalisation layers of both encoders, `"projections"` everything
    after the last block that is not one.

    Raises:
        ValueError: Projections of a tower that has no blocks are asked for.
    """
    parameters = [parameter for module in part_modules(model, part) for parameter in module.parameters(recurse=True)]
    if part == "projections":
        norms = set(part_parameters(model, "norms"))
        depths = LayerDepths(model)
        last = [parameter for parameter in model.clip.parameters() if depths.distance_from_end(parameter) == 0]
        parameters = [parameter for parameter in last if parameter not in norms]
    # Left trainable they would never get a gradient, which DistributedDataParallel refuses.
    unused = set(parameters_without_features(model.clip))
    return [parameter for parameter in dict.fromkeys(parameters) if parameter.numel() > 0 and parameter not in unused]


def part_modules(model: PromptedCLIP, part: Part) -> list[nn.Module]:
    """The modules that go to train mode with a part; projections hold nothing that has a mode."""
    if part == "encoders":
        return [model.clip]
    if part == "norms":
        return list(_norms(model.clip))
    prompts: list[nn.Module] = []
    if part in ("prompts", "image_prompts"):
        prompts.append(model.vision.prompts)
    if part in ("prompts", "text_prompts"):
        prompts.append(model.text.prompts)
    return prompts


def parts_parameters(model: PromptedCLIP, parts: Iterable[Part]) -> list[nn.Parameter]:
    """The parameters of several parts, each once."""
    return list(dict.fromkeys(parameter for part in parts for parameter in part_parameters(model, part)))


def _norms(module: nn.Module) -> Iterator[nn.Module]:
    # By name, because open_clip and timm have classes of their own that share no base.
    for child in module.modules():
        if "norm" in type(child).__name__.lower() and list(child.parameters(recurse=False)):
            yield child
