"""promptreid: prompt-tunable open_clip models for text-to-image person re-identification."""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from promptreid.lazy import lazy_names
from promptreid.version import __version__

if TYPE_CHECKING:
    from promptreid.adaptation import adapt
    from promptreid.evaluation.evaluate import evaluate
    from promptreid.losses.contrastive import ContrastiveLoss
    from promptreid.losses.cross_modal_id import CrossModalIDLoss
    from promptreid.model.prompted_clip import PromptedCLIP, load_prompts
    from promptreid.model.publishing import push_prompts
    from promptreid.model.saving import save_prompts
    from promptreid.model.text import PromptedTextEncoder
    from promptreid.model.vision import PromptedVisionEncoder
    from promptreid.prompts.config import PromptConfig
    from promptreid.retrieval.gallery import Gallery
    from promptreid.towers.loading import load_clip
    from promptreid.training.recipe import Recipe, TwoStageSchedule
    from promptreid.training.stage import Stage
    from promptreid.training.trainer import Trainer

__all__ = [
    "ContrastiveLoss",
    "CrossModalIDLoss",
    "Gallery",
    "PromptConfig",
    "PromptedCLIP",
    "PromptedTextEncoder",
    "PromptedVisionEncoder",
    "Recipe",
    "Stage",
    "Trainer",
    "TwoStageSchedule",
    "__version__",
    "adapt",
    "evaluate",
    "load_clip",
    "load_prompts",
    "push_prompts",
    "save_prompts",
]

__getattr__: Callable[[str], Any] = lazy_names(
    __name__,
    {
        "ContrastiveLoss": "promptreid.losses.contrastive",
        "CrossModalIDLoss": "promptreid.losses.cross_modal_id",
        "Gallery": "promptreid.retrieval.gallery",
        "PromptConfig": "promptreid.prompts.config",
        "PromptedCLIP": "promptreid.model.prompted_clip",
        "PromptedTextEncoder": "promptreid.model.text",
        "PromptedVisionEncoder": "promptreid.model.vision",
        "Recipe": "promptreid.training.recipe",
        "Stage": "promptreid.training.stage",
        "Trainer": "promptreid.training.trainer",
        "TwoStageSchedule": "promptreid.training.recipe",
        "adapt": "promptreid.adaptation",
        "evaluate": "promptreid.evaluation.evaluate",
        "load_clip": "promptreid.towers.loading",
        "load_prompts": "promptreid.model.prompted_clip",
        "push_prompts": "promptreid.model.publishing",
        "save_prompts": "promptreid.model.saving",
    },
)


def __dir__() -> list[str]:
    return __all__
