"""What a table of Rank-1 does not show: how far features are from home, and what was forgotten there."""

import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from promptreid import PromptedCLIP
from promptreid.evaluation.evaluate import EncodedSplit
from promptreid.evaluation.metrics import compute_metrics

sys.path.append(str(Path(__file__).parents[2] / "tools"))
from web_world import draw_web_pair

OWN_PAIRS, OWN_SEED, MOST = 1000, 2_000_000, 2000


@dataclass(frozen=True)
class OwnDomain:
    """Pairs of the base's own domain that its pretraining never saw."""

    images: list[Image.Image]
    captions: list[str]

    @property
    def ids(self) -> Tensor:
        """Pairs with the same caption count as the same thing."""
        numbers = {caption: number for number, caption in enumerate(dict.fromkeys(self.captions))}
        return torch.tensor([numbers[caption] for caption in self.captions])


def draw_own_domain(count: int = OWN_PAIRS) -> OwnDomain:
    """The same pairs every time."""
    pairs = [draw_web_pair(np.random.default_rng([OWN_SEED, number])) for number in range(count)]
    return OwnDomain([image for image, _ in pairs], [caption for _, caption in pairs])


def encode_own_domain(
    model: PromptedCLIP, pairs: OwnDomain, *, batch_size: int = 100, normalize: bool = True
) -> tuple[Tensor, Tensor]:
    """Image and text features, (pairs, E) float32, of unit length unless told otherwise."""
    device = next(model.parameters()).device
    images = torch.stack([model.eval_transform(image.convert("RGB")) for image in pairs.images])
    tokens = model.tokenizer(pairs.captions)

    def encode(function: Callable[..., Tensor], items: Tensor) -> Tensor:
        return torch.cat(
            [function(batch.to(device), normalize=normalize).float().cpu() for batch in items.split(batch_size)]
        )

    model.eval()
    with torch.inference_mode():
        return encode(model.encode_image, images), encode(model.encode_text, tokens)


def measure(
    model: PromptedCLIP, encoded: EncodedSplit, pairs: OwnDomain, home: tuple[Tensor, Tensor]
) -> dict[str, float]:
    """Rank-1 on the base's own domain, squared MMD to it for each modality, and the modality gap.

    Args:
        model: After training.
        encoded: The target's test split, by this model.
        pairs: The base's own domain.
        home: Its features by the bare model.
    """
    images, texts = encode_own_domain(model, pairs)
    return {
        "own_domain_rank1": compute_metrics(texts, images, pairs.ids, pairs.ids).rank[1],
        "image_mmd": squared_mmd(encoded.image_features, home[0]),
        "text_mmd": squared_mmd(encoded.text_features, home[1]),
        "modality_gap": modality_gap(encoded.image_features, encoded.text_features),
    }


def squared_mmd(features: Tensor, reference: Tensor) -> float:
    """Unbiased squared maximum mean discrepancy with a Gaussian kernel.

    The kernel's width is the median distance within the reference, so it is the same whatever `features` are.

    Source:
        Gretton et al. 2012, A Kernel Two-Sample Test, JMLR 13, equation 3.
    """
    x, y = (values[:: max(1, len(values) // MOST)][:MOST].double() for values in (features, reference))
    within = torch.pdist(y)
    scale = 2 * float(within.median()) ** 2

    def mean_kernel(distances: Tensor) -> float:
        return float((-distances.square() / scale).exp().mean())

    return mean_kernel(torch.pdist(x)) + mean_kernel(within) - 2 * mean_kernel(torch.cdist(x, y))


def modality_gap(image_features: Tensor, text_features: Tensor) -> float:
    """Distance between the mean image and the mean text feature (Liang et al. 2022, arXiv 2203.02053)."""
    return float((image_features.mean(dim=0) - text_features.mean(dim=0)).norm())
