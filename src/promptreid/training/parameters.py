"""The parts of a model that a stage trains, and how deep in their tower parameters are."""

from collections.abc import Callable, Iterable, Iterator
from typing import Any, Literal

import torch
from torch import Tensor, nn

from promptreid.model.encoder import PromptCarrier
from promptreid.model.prompted_clip import PromptedCLIP
from promptreid.towers.features import parameters_without_features
from promptreid.towers.modes import evaluating
from promptreid.towers.probing import probe_images, probe_tokens


class LayerDepths:
    """How far the parameters of both towers are from their tower's end, counted in blocks.

    Parameters that no feature is computed from, such as the logit scale, have no depth.

    Args:
        model: The model; it is run once on made-up inputs and left as it was.

    Raises:
        ValueError: A tower does not consist of Transformer blocks.
    """

    def __init__(self, model: PromptedCLIP) -> None:
        self._distances: dict[nn.Parameter, int] = {}
        inputs = (probe_images(model.clip)[:1], probe_tokens(model.text.tower)[:1])
        frozen = [parameter for parameter in model.clip.parameters() if not parameter.requires_grad]
        model.clip.requires_grad_(True)
        try:
            with torch.enable_grad(), evaluating(model.clip), model.disabled():
                self._add(model.vision, model.encode_image, inputs[0])
                self._add(model.text, model.encode_text, inputs[1])
        finally:
            for parameter in frozen:
                parameter.requires_grad_(False)

    def distance_from_end(self, parameter: nn.Parameter) -> int | None:
        """0 after the last block, 1 in the last block, and so on; None if the parameter has no depth."""
        return self._distances.get(parameter)

    def _add(self, carrier: PromptCarrier, encode: Callable[[Tensor], Tensor], values: Tensor) -> None:
        blocks: tuple[nn.Module, ...] = getattr(carrier.tower, "blocks", ())
        if not blocks:
            raise ValueError(
                f"{carrier.kind} is not a sequence of Transformer blocks, so its parameters have no depth; leave out "
                "layer_decay and the part projections"
            )
        seen: list[Tensor] = []

        def note(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            seen.append(args[0] if args else next(iter(kwargs.values())))

        handle = blocks[0].register_forward_pre_hook(note, with_kwargs=True)
        try:
            features = encode(values)
        finally:
            handle.remove()
        self._distances |= dict.fromkeys(_parameters_behind(features), 0)
        for index, block in enumerate(blocks):
            self._distances |= dict.fromkeys(block.parameters(), len(blocks) - index)
        self._distances |= dict.fromkeys(_parameters_behind(seen[0]), len(blocks) + 1)


def _parameters_behind(values: Tensor) -> list[nn.Parameter]:
    """The parameters that `values` was computed from."""
    found: dict[nn.Parameter, None] = {}
    seen: set[Any] = set()
    stack: list[Any] = [values.grad_fn]
    while stack:
        node = stack.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        if hasattr(node, "variable"):  # AccumulateGrad, a leaf of the graph
            found[node.variable] = None
        stack += [function for function, _ in node.next_functions]
    return list(found)


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
    prompts = {"image_prompts": model.vision.prompts, "text_prompts": model.text.prompts}
    return [module for name, module in prompts.items() if part in ("prompts", name)]


def parts_parameters(model: PromptedCLIP, parts: Iterable[Part]) -> list[nn.Parameter]:
    """The parameters of several parts, each once."""
    return list(dict.fromkeys(parameter for part in parts for parameter in part_parameters(model, part)))


def _norms(module: nn.Module) -> Iterator[nn.Module]:
    # By name, because open_clip and timm have classes of their own that share no base.
    for child in module.modules():
        if "norm" in type(child).__name__.lower() and list(child.parameters(recurse=False)):
            yield child
