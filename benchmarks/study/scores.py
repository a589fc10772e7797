"""Rank-1 split up: by person, for the bootstrap, and by what the person is or the sentence says."""

from collections import defaultdict
from collections.abc import Iterable, Mapping
from pathlib import Path

from promptreid.evaluation.evaluate import EncodedSplit
from promptreid.evaluation.metrics import compute_metrics
from promptreid.synthetic import load_scenes
from promptreid.synthetic.scenes import Caption, Scene

Groups = dict[str, dict[str, dict[str, float]]]  # attribute → value → {"rank1": …, "queries": …}


def first_hits(encoded: EncodedSplit) -> list[bool]:
    """For each caption, whether the picture found first shows the person."""
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
    """What a sentence and its picture count to.

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
    pictures = {picture.path: picture for picture in load_scenes(root)}
    groups: list[dict[str, str]] = []
    for record in encoded.split.records:
        picture = pictures[record.path]
        groups += [groups_of(picture.scene, caption) for caption in picture.captions]
    return groups
