"""Scores a model on a split, both ways."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from promptreid.data.records import ReIDSplit
from promptreid.defaults import BATCH_SIZE
from promptreid.errors import spoken
from promptreid.evaluation.metrics import RetrievalMetrics, compute_metrics
from promptreid.evaluation.pictures.ranking import draw_ranking, rank_captions
from promptreid.evaluation.splits import EncodedSplit, encode_split, is_main_process
from promptreid.files import write_sealed_json
from promptreid.model.prompted_clip import PromptedCLIP
from promptreid.scores import shared_metrics, shown_score
from promptreid.values import given_path
from promptreid.version import __version__

__all__ = ["EncodedSplit", "Evaluation", "encode_split", "evaluate", "score", "score_table", "write_evaluation"]


@dataclass(frozen=True)
class Evaluation:
    """Scores of a model on a split.

    Attributes:
        text_to_image: Captions search images.
        image_to_text: Images search captions.
    """

    text_to_image: RetrievalMetrics
    image_to_text: RetrievalMetrics

    def as_dict(self) -> dict[str, Any]:
        """Text to image by name, and the same nested under `image_to_text`; fractions."""
        return {**self.text_to_image.as_dict(), "image_to_text": self.image_to_text.as_dict()}


def evaluate(
    model: PromptedCLIP,
    split: ReIDSplit,
    *,
    batch_size: int = BATCH_SIZE,
    num_workers: int = 0,
    progress: bool = True,
    output_dir: str | Path | None = None,
) -> Evaluation:
    """Score a model on a split, text to image and image to text.

    Each image and caption is encoded once; under `torchrun` or `accelerate launch` each process encodes its share.

    Args:
        model: The model.
        split: The images and captions, usually `dataset.test`.
        batch_size: Items at a time, in each process.
        num_workers: Processes that load images.
        progress: Show progress bars.
        output_dir: Gets `metrics.json` and `ranking.png` (which needs the extra `viz`); `None` writes nothing.

    Returns:
        Rank-1/5/10, mAP and mINP of both directions, as fractions.

    Raises:
        DatasetError: An image cannot be read.
        TypeError: `model` or `split` is something else, as when a whole dataset is given.
        ValueError: Features are not finite, or `batch_size` is below 1.
        MissingExtraError: `output_dir` is given and matplotlib is not installed.
    """
    encoded = encode_split(model, split, batch_size=batch_size, num_workers=num_workers, progress=progress)
    scores = score(encoded)
    if output_dir is not None and is_main_process():
        write_evaluation(output_dir, encoded, scores)
    return scores


def score(encoded: EncodedSplit, *, per_query: bool = False) -> Evaluation:
    """Score features; `per_query` keeps each query's own scores for error analysis."""
    images, texts = encoded.image_features, encoded.text_features
    return Evaluation(
        compute_metrics(texts, images, encoded.text_ids, encoded.image_ids, per_query=per_query),
        compute_metrics(images, texts, encoded.image_ids, encoded.text_ids, per_query=per_query),
    )


def score_table(rows: Mapping[str, Mapping[str, Any]]) -> str:
    """Scores in percent as text, one row per name and direction.

    Args:
        rows: `Evaluation.as_dict()` by name, which is printed with spaces for underscores.
    """
    widths = {name: max(8, len(name) + 2) for name in shared_metrics(*rows.values())}
    width = max(len(name) for name in rows) + 3
    lines = [" " * (width + 14) + "".join(f"{name:>{widths[name]}}" for name in widths)]
    for direction in ("text to image", "image to text"):
        for name, scores in rows.items():
            own = scores if direction == "text to image" else scores["image_to_text"]
            cells = "".join(f"{shown_score(key, own[key]):>{widths[key]}}" for key in widths)
            lines.append(f"{spoken(name):<{width}}{direction:<14}{cells}")
    return "\n".join(lines)


def write_evaluation(output_dir: str | Path, encoded: EncodedSplit, scores: Evaluation, *, examples: int = 4) -> Path:
    """Write `metrics.json`, and `ranking.png` with what some captions found.

    Args:
        output_dir: The folder; made if it does not exist.
        encoded: The features.
        scores: Their scores.
        examples: Captions in the figure, spread evenly over the split.

    Returns:
        The folder.

    Raises:
        MissingExtraError: matplotlib is not installed; `metrics.json` is written all the same.
    """
    folder = given_path("output_dir", output_dir)
    folder.mkdir(parents=True, exist_ok=True)
    content = {
        "split": encoded.split.name,
        "images": len(encoded.image_ids),
        "captions": len(encoded.text_ids),
        "text_to_image": _counted(scores.text_to_image),
        "image_to_text": _counted(scores.image_to_text),
        "promptreid": __version__,
    }
    write_sealed_json(folder / "metrics.json", content)
    step = max(1, len(encoded.captions) // examples)
    chosen = range(0, len(encoded.captions), step)[:examples]
    draw_ranking(folder / "ranking.png", rank_captions(encoded, chosen), title=f"The ten best, {encoded.split.name}")
    return folder


def _counted(metrics: RetrievalMetrics) -> dict[str, Any]:
    counts = asdict(metrics)
    return {**metrics.as_dict(), **{name: counts[name] for name in ("num_queries", "num_without_positive")}}
