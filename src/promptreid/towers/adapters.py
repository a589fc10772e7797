"""Layers that PEFT puts into a model, such as LoRA's: found without PEFT, and merged into ordinary weights."""

import warnings
from collections import Counter
from copy import deepcopy
from typing import Any

from torch import nn

_BASE = "base_layer"  # PEFT's name for the layer that its layers replace


def adapter_layers(module: nn.Module) -> dict[str, nn.Module]:
    """PEFT's layers in a module by name, without those inside another one.

    They are recognised by what they offer, so PEFT need not be installed if there are none.
    """
    found: dict[str, nn.Module] = {}
    for name, child in module.named_modules():
        if not any(name.startswith(f"{outer}.") for outer in found) and _is_adapter(child):
            found[name] = child
    return found


def adapter_around(model: nn.Module, parameter_name: str) -> nn.Module | None:
    """PEFT's layer that a parameter is of; None if there is none, or it is of what that layer stands in for."""
    found, module = None, model
    for piece in parameter_name.split(".")[:-1]:
        if _is_adapter(module):
            found = None if piece == _BASE else module
        module = module.get_submodule(piece)
    return found


def train_adapter(layer: nn.Module) -> None:
    """Put one of PEFT's layers into train mode, dropout included, and leave the layer that it stands in for."""
    layer.training = True
    for name, child in layer.named_children():
        if name != _BASE:
            child.train()


def adapter_settings(module: nn.Module) -> list[dict[str, Any]]:
    """The settings of PEFT's layers in a module, such as rank and scaling; each setting once, with its count."""
    settings: dict[str, dict[str, Any]] = {}
    counts: Counter[str] = Counter()
    for layer in adapter_layers(module).values():
        numbers = {name: dict(value) for name, value in vars(layer).items() if _is_table_of_numbers(value)}
        active = [str(name) for name in getattr(layer, "active_adapters", [])]
        one = {"class": type(layer).__qualname__, "active": active, **numbers}
        settings[repr(one)] = one
        counts[repr(one)] += 1
    return [{**one, "layers": counts[key]} for key, one in sorted(settings.items())]


def merge_adapters(module: nn.Module) -> nn.Module:
    """A model whose weights hold what PEFT's layers in `module` add to them.

    Returns:
        A copy without such layers, or `module` itself where it has none.

    Raises:
        ValueError: A layer is of a kind that cannot be merged; names it.
    """
    if not adapter_layers(module):
        return module
    merged = deepcopy(module)
    for name, layer in adapter_layers(merged).items():
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # PEFT's words about layers that are merged already
                plain = _merged_layer(layer)
        except (AttributeError, NotImplementedError, RuntimeError, TypeError, ValueError) as error:
            raise ValueError(
                f"PEFT's layer {name}, a {type(layer).__name__}, cannot be merged into the weight that it stands in "
                f"for: {error}. Take it out before saving: peft_model.unload() gives the model without it, or train "
                "with a method that merges, such as LoRA"
            ) from error
        parent, _, child = name.rpartition(".")
        setattr(merged.get_submodule(parent), child, plain)
    return merged


def _merged_layer(layer: Any) -> nn.Module:
    merge = not (getattr(layer, "disable_adapters", False) or getattr(layer, "merged", False))
    if hasattr(layer, "unload_and_optionally_merge_module"):
        return layer.unload_and_optionally_merge_module(merge=merge, safe_merge=False, adapter_names=None)
    if merge:
        layer.merge()
    return layer.get_base_layer()


def _is_adapter(module: nn.Module) -> bool:
    layer = any(name == _BASE for name, _ in module.named_children()) and hasattr(module, "get_base_layer")
    return layer or hasattr(module, "unload_and_optionally_merge_module")


def _is_table_of_numbers(value: Any) -> bool:
    return isinstance(value, dict) and bool(value) and all(isinstance(each, (int, float)) for each in value.values())  # pyright: ignore[reportUnknownVariableType]
