"""What is measured of a trained model beside the usual scores.

How far its features are from the base's own domain and what was forgotten there, and Rank-1 split up: by person, for
the bootstrap, and by what the person is or the sentence says.
"""

from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from promptreid import PromptedCLIP
from promptreid.evaluation.evaluate import EncodedSplit
from promptreid.evaluation.metrics import compute_metrics
from promptreid.synthetic import load_scenes
from promptreid.synthetic.scenes import Caption, Scene
from shared import draw_web_pair

OWN_PAIRS, OWN_SEED, MOST = 1000, 2_000_000, 2000
Groups = dict[str, dict[str, dict[str, float]]]  # attribute → value → {"rank1": …, "queries": …}


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


def first_hits(encoded: EncodedSplit) -> list[bool]:
    """For each caption, whether the image found first shows the person."""
    found = compute_metrics(
        encoded.text_features, encoded.image_features, encoded.text_ids, encoded.image_ids, per_query=True
    ).queries
    if found is None:
        raise ValueError("compute_metrics returned no scores of single queries")
    return (found.first_rank == 1).tolist()


def rank1_by_person(hits: Iterable[bool], persons: Iterable[int]) -> dict[int, float]:
    """For each person, the share of the sentences about them that find them first.

    Example:
        >>> rank1_by_person([True, False, True], [7, 7, 9])
        {7: 0.5, 9: 1.0}
    """
    found: dict[int, list[bool]] = defaultdict(list)
    for person, hit in zip(persons, hits, strict=True):
        found[person].append(hit)
    return {person: sum(own) / len(own) for person, own in found.items()}


def groups_of(scene: Scene, caption: Caption) -> dict[str, str]:
    """The groups that a sentence and its image belong to.

    Captions in the web's form, as there are at a gap below 1, do not keep which word for gender they use.
    """
    groups = {"skin tone": scene.person.skin, "build": scene.person.build}
    if scene.style == "street":
        groups["word for gender"] = caption.said.get("gender", "none")
    return groups


def rank1_by_group(hits: Iterable[bool], groups: Iterable[Mapping[str, str]]) -> Groups:
    """Rank-1 and number of queries for every value of every attribute.

    Example:
        >>> rank1_by_group([True, False], [{"build": "slim"}, {"build": "slim"}])
        {'build': {'slim': {'rank1': 0.5, 'queries': 2}}}
    """
    found: dict[str, dict[str, list[bool]]] = defaultdict(lambda: defaultdict(list))
    for own, hit in zip(groups, hits, strict=True):
        for attribute, value in own.items():
            found[attribute][value].append(hit)
    return {
        attribute: {value: {"rank1": sum(own) / len(own), "queries": len(own)} for value, own in sorted(values.items())}
        for attribute, values in sorted(found.items())
    }


def caption_groups(encoded: EncodedSplit, root: Path) -> list[dict[str, str]]:
    """The groups of each caption of a split, in its order; `root` is what `write_generated` wrote."""
    images = {image.path: image for image in load_scenes(root)}
    groups: list[dict[str, str]] = []
    for record in encoded.split.records:
        image = images[record.path]
        groups += [groups_of(image.scene, caption) for caption in image.captions]
    return groups
