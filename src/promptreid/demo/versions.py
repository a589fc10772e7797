"""The two models that the page compares: with prompts, and the bare one."""

from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass

from promptreid.model.prompted_clip import PromptedCLIP
from promptreid.prompts.config import PromptConfig
from promptreid.towers.fingerprint import fingerprint, same_fingerprint
from promptreid.towers.loading import load_clip

ADAPTED, BARE = "Adapted model", "Bare model"


@dataclass(frozen=True)
class Version:
    """One of the models compared.

    Attributes:
        label: What the page calls it.
        model: The model.
        prompted: Whether its prompts go in.
    """

    label: str
    model: PromptedCLIP
    prompted: bool

    @contextmanager
    def running(self) -> Generator[PromptedCLIP, None, None]:
        """The model as this version of it runs, in the calling thread alone."""
        if self.prompted:
            yield self.model
        else:
            with self.model.disabled():
                yield self.model


def compare(model: PromptedCLIP) -> tuple[Version, ...]:
    """The model and what it was before it was adapted.

    If only prompts were trained, the bare model is the same model with its prompts out; if the encoders were
    fine-tuned too, the base is loaded beside it.

    Args:
        model: The adapted model.

    Returns:
        The adapted version and the bare one; the bare one is missing if the base had random weights or is not known.
    """
    model.eval()
    adapted = Version(ADAPTED, model, prompted=True)
    if same_fingerprint(fingerprint(model.clip), model.base_fingerprint):
        return adapted, Version(BARE, model, prompted=False)
    source = model.source
    if source is None or source.pretrained is None:
        return (adapted,)
    device = next(model.parameters()).device
    base = load_clip(source.name, pretrained=source.pretrained, image_size=model.image_size, device=device)
    return adapted, Version(
        BARE, PromptedCLIP(base, PromptConfig(text_length=0, vision_length=0)).eval(), prompted=False
    )
