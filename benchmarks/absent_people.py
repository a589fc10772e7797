"""How reliable "nobody matches" is: thresholds with and without labels, on drawn people who are present or absent.

    python benchmarks/absent_people.py        # benchmarks/results/absent_people.json; five minutes

The persons of a test split are halved at random. One half's images are the gallery; a caption of that half is a search
for a person in the gallery, one of the other half a search for an absent person. It is a false alarm if the latter
reaches the threshold. Thresholds come from 400 made-up sentences (`Gallery.calibrate()`) and from a labelled validation
split of as many persons (`Gallery.calibrate(split)`). Other statistics than the best score are compared by the same
rule: its margin over the other scores of its sentence (`deviations`, and `tail`, in mean excesses over the 95th
percentile), and scores that each image's mean and deviation over the made-up sentences have normalised (`normalised`).

Two models: the shipped one, and its base fine-tuned on other drawn people for a few minutes. Drawings: no figure says
anything about photographs.
"""

import statistics
import tempfile
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from _bench import RESULTS, made_with, make_parser, report
from promptreid import PromptConfig, PromptedCLIP, load_clip, load_prompts
from promptreid.adaptation import adapt
from promptreid.data import load_dataset
from promptreid.data.records import ReIDDataset
from promptreid.evaluation.calibration import calibrate_threshold, calibrate_without_labels
from promptreid.evaluation.evaluate import score
from promptreid.evaluation.splits import EncodedSplit, encode_split
from promptreid.retrieval.gallery_state import STRANGERS
from promptreid.synthetic import write_generated
from promptreid.synthetic.sentences import describe_people
from promptreid.towers.tiny import TINY_TAG, tiny_prompts
from promptreid.training.recipe import Recipe

PERSONS, IMAGES_EACH, RATE = 200, 2, 0.05  # of the test split, of which half are in the gallery
SEEDS, HALVES = (101, 102, 103), 4
TRAINED_ON, EPOCHS, TRAINING_SEED = 120, 4, 100
Statistic = Callable[[Tensor, Tensor], Tensor]


def best_score(scores: Tensor, made_up: Tensor) -> Tensor:
    """The best score itself."""
    return scores.amax(dim=1)


def deviations(scores: Tensor, made_up: Tensor) -> Tensor:
    """How many standard deviations it is above the mean of its own sentence."""
    return (scores.amax(dim=1) - scores.mean(dim=1)) / scores.std(dim=1)


def tail(scores: Tensor, made_up: Tensor) -> Tensor:
    """How far it is above the 95th percentile of its own sentence, in mean excesses: the exponential tail's scale."""
    best, rest = scores.amax(dim=1), scores.topk(max(5, scores.shape[1] // 20), dim=1).values
    return (best - rest[:, -1]) / (rest[:, 1:] - rest[:, -1:]).mean(dim=1)


def normalised(scores: Tensor, made_up: Tensor) -> Tensor:
    """The best of the scores after each image's mean and deviation over the made-up sentences are taken out."""
    return ((scores - made_up.mean(dim=0)) / made_up.std(dim=0)).amax(dim=1)


STATISTICS: dict[str, Statistic] = {one.__name__: one for one in (best_score, deviations, tail, normalised)}


def main() -> None:
    """Measure both models, print, and write."""
    settings = make_parser(__doc__, output=RESULTS / "absent_people.json").parse_args()
    torch.manual_seed(TRAINING_SEED)
    with tempfile.TemporaryDirectory() as folder:
        data = [_draw(f"{folder}/{seed}", seed) for seed in SEEDS]
        models = {"shipped": load_prompts(tiny_prompts()), "fine_tuned": _fine_tuned(folder)}
        found = {name: measure(model, data) for name, model in models.items()}
    result = {
        "settings": {
            "persons": PERSONS, "images_each": IMAGES_EACH, "gallery_images": PERSONS * IMAGES_EACH // 2,
            "sentences": STRANGERS, "false_alarm_rate": RATE, "seeds": SEEDS, "halves": HALVES,
            "trained_on": TRAINED_ON, "epochs": EPOCHS, "training_seed": TRAINING_SEED,
        },
        **found,
        **made_with(),
    }  # fmt: skip
    report(result, settings.output)


def _draw(folder: str, seed: int) -> ReIDDataset:
    persons = (1, PERSONS // 2, PERSONS)  # validation has as many as the gallery
    return load_dataset(
        write_generated(folder, num_identities=persons, images_per_identity=IMAGES_EACH, seed=seed, progress=False)
    )


def _fine_tuned(folder: str) -> PromptedCLIP:
    """The bare base after a few epochs on other people."""
    root = write_generated(f"{folder}/train", num_identities=(TRAINED_ON, 1, 1), seed=TRAINING_SEED, progress=False)
    clip = load_clip("promptreid-tiny", pretrained=TINY_TAG, image_size=(96, 48))
    model = PromptedCLIP(clip, PromptConfig(text_length=0, vision_length=0))
    recipe = Recipe(stage_one_epochs=0, stage_two_epochs=EPOCHS, stage_two_learning_rate=1e-3)
    options: dict[str, Any] = {"batch_size": 64, "seed": TRAINING_SEED, "best_metric": None, "evaluate_test": "never"}
    adapt(model, load_dataset(root), recipe, output_dir=f"{folder}/run", save=False, progress=False, **options)
    return model


def measure(model: PromptedCLIP, data: list[ReIDDataset]) -> dict[str, Any]:
    """Means over all seeds and halves, and the range of what is promised."""
    made_up = model.encode(describe_people(STRANGERS), progress=False)
    rank1: list[float] = []
    rounds: list[dict[str, dict[str, float]]] = []
    for one in data:
        test, val = encode_split(model, one.test, progress=False), encode_split(model, one.val, progress=False)
        labelled = calibrate_threshold(
            val.text_features, val.image_features, val.text_ids, val.image_ids, false_alarm_rate=RATE
        )
        rank1.append(score(test).text_to_image.rank1)
        rounds += [_measure_half(test, made_up, labelled.threshold, half) for half in range(HALVES)]
    return {"rank1_of_test": round(statistics.mean(rank1), 4), **_summary(rounds)}


def _measure_half(test: EncodedSplit, made_up: Tensor, labelled: float, seed: int) -> dict[str, dict[str, float]]:
    """Rates of one gallery, by way of choosing: how often somebody absent is found, and somebody there."""
    persons = test.image_ids.unique()
    order = torch.randperm(len(persons), generator=torch.Generator().manual_seed(seed))
    chosen = persons[order[: len(persons) // 2]]
    gallery = test.image_features[torch.isin(test.image_ids, chosen)]
    there = torch.isin(test.text_ids, chosen)
    scores, of_made_up = test.text_features @ gallery.T, made_up @ gallery.T
    rounds: dict[str, dict[str, float]] = {}
    for name, statistic in STATISTICS.items():
        values = statistic(scores, of_made_up)
        threshold = calibrate_without_labels(
            statistic(of_made_up, of_made_up).tolist(), gallery_size=len(gallery), false_alarm_rate=RATE
        ).threshold
        rounds[name] = _rates(values[there], values[~there], threshold)
    best = best_score(scores, of_made_up)
    rounds["with_labels"] = _rates(best[there], best[~there], labelled)
    return rounds


def _rates(there: Tensor, absent: Tensor, threshold: float) -> dict[str, float]:
    """Rates at a threshold, and how often a search for somebody there beats one for somebody absent."""
    wins = (there[:, None] > absent).double() + 0.5 * (there[:, None] == absent).double()
    return {
        "false_alarms": float((absent >= threshold).double().mean()),
        "hits": float((there >= threshold).double().mean()),
        "area_under_roc": float(wins.mean()),
    }


def _summary(rounds: list[Mapping[str, Mapping[str, float]]]) -> dict[str, Any]:
    """By way of choosing: the mean of each rate, and the lowest and highest."""
    return {
        way: {
            rate: [round(function([one[way][rate] for one in rounds]), 4) for function in (statistics.mean, min, max)]
            for rate in rounds[0][way]
        }
        for way in rounds[0]
    }


if __name__ == "__main__":
    main()
