"""promptreid: prompt-tunable open_clip models for text-to-image person re-identification."""

from promptreid.backbones.loading import load_clip
from promptreid.encoders.clip import PromptedCLIP
from promptreid.encoders.pretrained import load_prompts
from promptreid.encoders.publishing import push_prompts
from promptreid.encoders.saving import save_prompts
from promptreid.encoders.text import PromptedTextEncoder
from promptreid.encoders.vision import PromptedVisionEncoder
from promptreid.evaluation.evaluate import evaluate
from promptreid.losses.contrastive import ContrastiveLoss
from promptreid.losses.cross_modal_id import CrossModalIDLoss
from promptreid.prompts import PromptConfig
from promptreid.retrieval.gallery import Gallery
from promptreid.training.schedule import TwoStageSchedule
from promptreid.training.stages import Stage
from promptreid.training.trainer import Trainer
from promptreid.version import __version__

__all__ = [
    "ContrastiveLoss",
    "CrossModalIDLoss",
    "Gallery",
    "PromptConfig",
    "PromptedCLIP",
    "PromptedTextEncoder",
    "PromptedVisionEncoder",
    "Stage",
    "Trainer",
    "TwoStageSchedule",
    "__version__",
    "evaluate",
    "load_clip",
    "load_prompts",
    "push_prompts",
    "save_prompts",
]
