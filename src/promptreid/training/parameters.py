"""The parts of a model that a stage trains, and how deep in their tower parameters are."""

from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Literal, TypeAlias, get_args

import torch
from torch import Tensor, nn

from promptreid.model.encoder import PromptCarrier
from promptreid.model.prompted_clip import PromptedCLIP
from promptreid.towers.adapters import adapter_around, adapter_layers, train_adapter
from promptreid.towers.initial_states import probe_images, probe_tokens
from promptreid.towers.modes import evaluating
from promptreid.towers.tower import parameters_without_features


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
        images, tokens = _probes(model)
        with _taking_gradients(model, model.clip.parameters()), model.disabled():
            self._add(model.vision, model.encode_image, images)
            self._add(model.text, model.encode_text, tokens)

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


def _probes(model: PromptedCLIP) -> tuple[Tensor, Tensor]:
    """One made-up image and one made-up caption."""
    return probe_images(model.clip)[:1], probe_tokens(model.text.tower)[:1]


@contextmanager
def _taking_gradients(model: PromptedCLIP, parameters: Iterable[nn.Parameter]) -> Generator[None, None, None]:
    """Let parameters take gradients inside the block, even frozen ones, with the model in eval mode."""
    frozen = [parameter for parameter in parameters if not parameter.requires_grad]
    for parameter in frozen:
        parameter.requires_grad_(True)
    try:
        with torch.enable_grad(), evaluating(model):
            yield
    finally:
        for parameter in frozen:
            parameter.requires_grad_(False)


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

# Parts and names that `model.named_parameters()` gives, or a function that says of each parameter whether it trains.
Trains: TypeAlias = Sequence[str] | Callable[[str, nn.Parameter], bool]


def trained_names(model: PromptedCLIP, trains: Trains) -> tuple[str, ...]:
    """Parts and names of parameters that `trains` means; those that a function chooses are listed by name.

    Parameters that no feature is computed from, such as the logit scale, are left out of what a function chooses.

    Raises:
        ValueError: An entry is neither a part nor a parameter's name, a function chooses nothing, or adapters and the
            encoders around them would train together.
    """
    parameters = dict(model.named_parameters())
    if callable(trains):
        unused = set(parameters_without_features(model.clip))
        chosen = tuple(name for name, each in parameters.items() if each not in unused and trains(name, each))
        if not chosen:
            raise ValueError(
                f"trains chooses none of the model's {len(parameters)} parameters, whose names are like "
                f"{next(iter(parameters))}; model.named_parameters() lists them"
            )
        return chosen
    unknown = [trains] if isinstance(trains, str) else sorted(set(trains) - {*get_args(Part), *parameters})
    if unknown:
        raise ValueError(
            f"trains {unknown}, expected some of {list(get_args(Part))} in a list, or names that "
            f"model.named_parameters() gives, such as {next(iter(parameters))}"
        )
    if "encoders" in trains and (layers := adapter_layers(model.clip)):
        raise ValueError(
            f"trains the encoders, but PEFT's layers are in them, such as clip.{next(iter(layers))}, and change the "
            'weights in every pass. Train only the adapters, for LoRA by trains=lambda name, _: "lora_" in name, or '
            "take them out first by the PEFT model's merge_and_unload()"
        )
    return tuple(trains)


def trained_parameters(model: PromptedCLIP, names: Iterable[str]) -> list[nn.Parameter]:
    """The parameters of parts and those that are named, each once.

    Raises:
        ValueError: No feature is computed from a parameter that is named.
    """
    names = tuple(names)
    wanted = set(names) - {*get_args(Part)}
    named = {name: each for name, each in model.named_parameters() if name in wanted}
    _check_reached(model, named)
    parts = (part_parameters(model, name) if name in get_args(Part) else [named[name]] for name in names)  # pyright: ignore[reportArgumentType]
    return list(dict.fromkeys(parameter for part in parts for parameter in part))


def set_modes(model: PromptedCLIP, names: Iterable[str]) -> None:
    """Put the modules of parts and of named parameters into train mode, dropout of PEFT's layers included."""
    for name in names:
        if name in get_args(Part):
            for module in part_modules(model, name):  # pyright: ignore[reportArgumentType]
                module.train()
            continue
        # Only its own mode: its parts may be frozen.
        model.get_submodule(name.rpartition(".")[0]).training = True
        if (layer := adapter_around(model, name)) is not None:
            train_adapter(layer)


def trained_batch_norms(model: PromptedCLIP, names: Iterable[str]) -> list[str]:
    """Names of the BatchNorm layers that use the statistics of each batch while parts and named parameters train."""
    kinds = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm)
    with evaluating(model):
        set_modes(model, names)
        layers = [(name, layer) for name, layer in model.named_modules() if isinstance(layer, kinds)]
        return [name for name, layer in layers if layer.training or layer.running_mean is None]


def _check_reached(model: PromptedCLIP, named: dict[str, nn.Parameter]) -> None:
    """Refuse parameters that would never get a gradient, such as those of adapters in layers that are not called.

    `nn.MultiheadAttention` takes the weight of its `out_proj` and never calls it, and PEFT only in that layer would
    silently learn nothing.
    """
    if not named:
        return
    images, tokens = _probes(model)
    with _taking_gradients(model, named.values()):
        features = [model.encode_image(images), model.encode_text(tokens)]
    reached = {parameter for each in features for parameter in _parameters_behind(each)}
    if missed := [name for name, parameter in named.items() if parameter not in reached]:
        more = f" and {len(missed) - 3} more" if len(missed) > 3 else ""
        raise ValueError(
            f"trains {', '.join(missed[:3])}{more}, but no feature is computed from there, so it would learn nothing. "
            "Leave it out; of adapters, target another layer, such as attn instead of the out_proj in it"
        )


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


def _norms(module: nn.Module) -> Iterator[nn.Module]:
    # By name, because open_clip and timm have their own classes, which share no base.
    for child in module.modules():
        if "norm" in type(child).__name__.lower() and list(child.parameters(recurse=False)):
            yield child


def parameter_groups(rates: Iterable[tuple[nn.Parameter, float]], *, weight_decay: float) -> list[dict[str, Any]]:
    """Put parameters into as few groups as their rates and weight decays allow.

    Weight decay is left out for biases, norms and everything else of at most one dimension.

    Args:
        rates: Every parameter with its peak rate.
        weight_decay: Weight decay of the others.

    Returns:
        Groups with `"params"`, `"lr"` and `"weight_decay"`, rates in the order in which they first appear, those
        with weight decay first.
    """
    chosen: dict[float, dict[bool, list[nn.Parameter]]] = {}
    for parameter, rate in rates:
        chosen.setdefault(rate, {True: [], False: []})[parameter.ndim > 1].append(parameter)
    return [
        {"params": parameters, "lr": rate, "weight_decay": weight_decay if decays else 0.0}
        for rate, by_decay in chosen.items()
        for decays, parameters in by_decay.items()
        if parameters
    ]
