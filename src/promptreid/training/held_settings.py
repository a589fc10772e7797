"""The settings of modules as they were before training, which changes what some of them hold."""

from collections.abc import Callable, Generator, Iterable
from contextlib import contextmanager, suppress
from typing import Any, cast

from torch import nn

HELD = "_promptreid_held"  # an attribute of the module, so that its copies and what is saved of it have it too
_NOTHING = object()
_TRAINING: dict[int, dict[str, Any]] = {}  # what modules that are training were before, by `id`


@contextmanager
def settings_held(modules: Iterable[nn.Module], **views: Callable[[nn.Module], Any]) -> Generator[None, None, None]:
    """Let `as_set` take modules, inside the block and after it, as they were set before it.

    Training, or a checkpoint that is loaded, changes what a loss holds, such as the steps that it counts, and that is
    no setting. What is set after the block is one: it counts as it is, and the rest as it was before.

    Args:
        modules: The modules.
        **views: Functions that describe a module in JSON, and use `as_set` under the same name.
    """
    once = {id(module): module for module in modules}.values()  # two stages may share a loss
    held = [(module, {name: view(module) for name, view in views.items()}) for module in once]
    _TRAINING.update({id(module): before for module, before in held})
    try:
        yield
    finally:
        for module, _ in held:
            _TRAINING.pop(id(module), None)
            vars(module).pop(HELD, None)
        for module, before in held:
            with suppress(Exception):  # that of the block counts; the next view of the module meets this one again
                vars(module)[HELD] = before, {name: view(module) for name, view in views.items()}


@contextmanager
def unseen(*modules: nn.Module) -> Generator[None, None, None]:
    """Let modules, inside the block, say what they hold without what `settings_held` keeps in them."""
    kept = [(module, vars(module).pop(HELD)) for module in modules if HELD in vars(module)]
    try:
        yield
    finally:
        for module, held in kept:
            vars(module)[HELD] = held


def as_set(module: nn.Module, view: str, now: Any) -> Any:
    """What a view says of a module that says `now`, without what training changed."""
    if id(module) in _TRAINING:
        return _TRAINING[id(module)].get(view, now)
    before, left = vars(module).get(HELD, ({}, {}))
    return _edited(before[view], left[view], now) if view in before else now


def _edited(before: Any, left: Any, now: Any) -> Any:
    """What was before, with the changes that lead from what training left to what is now."""
    if now == left:
        return before
    three = before, left, now
    if all(isinstance(each, dict) for each in three) and len({str(each.get("class")) for each in three}) == 1:
        names = dict.fromkeys([*before, *now])
        found = {name: _edited(*(each.get(name, _NOTHING) for each in three)) for name in names}
        return {name: item for name, item in found.items() if item is not _NOTHING}
    if all(_is_of_objects(each) for each in three) and len(before) == len(left) == len(now):
        return [_edited(*items) for items in zip(*three, strict=True)]
    return now


def _is_of_objects(description: Any) -> bool:
    """Whether it is a list of objects with settings of their own; one of numbers, as a tensor, is one setting."""
    return isinstance(description, list) and all(isinstance(item, dict) for item in cast(list[Any], description))
