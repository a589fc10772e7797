"""One run of the study: an arm, on the data and from the starting values of a seed. Its result is one JSON file."""

import json
import platform
import shutil
import time
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import open_clip
import torch
from arms import ARMS, Arm
from measures import draw_own_domain, encode_own_domain, measure

import promptreid
from promptreid import PromptedCLIP, Trainer, evaluate, load_clip
from promptreid.data.cuhk_pedes import load_cuhk_pedes
from promptreid.data.dataset import CaptionedImages
from promptreid.data.generated import write_generated
from promptreid.data.records import ReIDDataset, ReIDSplit
from promptreid.evaluation.evaluate import EncodedSplit, encode_split, score
from promptreid.files import write_bytes_atomically
from promptreid.training.recipe import Recipe


@dataclass(frozen=True)
class Budget:
    """How much data and training a run gets; equal for all arms of a table."""

    identities: tuple[int, int, int]
    images_per_identity: int
    image_size: tuple[int, int]
    batch_size: int
    stage_one_epochs: int
    stage_two_epochs: int


@dataclass(frozen=True)
class Run:
    """Everything that a result depends on.

    Attributes:
        arm: A name of `ARMS`.
        seed: Of the data, the starting values, order and augmentation.
        budget: Data and epochs.
        rates: Peak learning rates of stage 1 and stage 2.
        step_cost: Time of a stage-1 step in steps of direct fine-tuning, for arms of equal wall time.
        gap: The generator's.
        share: Of the training identities that are kept.
        train_cameras: Those whose pictures are trained on, the others being tested on; all, for both, if empty.
    """

    arm: str
    seed: int
    budget: Budget
    rates: tuple[float, float]
    step_cost: float
    gap: float = 1.0
    share: float = 1.0
    train_cameras: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        """Its file's name, without ending."""
        rates = f"rates{self.rates[0]:g}-{self.rates[1]:g}"
        return f"{self.arm}-seed{self.seed}-{self.condition}-{rates}"

    @property
    def condition(self) -> str:
        """What is the same for every run that is compared with this one."""
        return f"gap{self.gap:g}-share{self.share:g}{'-transfer' if self.train_cameras else ''}"


def perform(run: Run, results: Path, scratch: Path, *, device: str = "cpu", test: bool = True) -> dict[str, Any]:
    """Do the run, go on with it if it was killed, or read its result if it was done.

    Args:
        run: What to do.
        results: Gets `<name>.json`, which is to be committed.
        scratch: Gets data and checkpoints, which are not.
        device: Where.
        test: Score the test split at the end; False while rates are tuned.
    """
    path = results / f"{run.name}{'' if test else '-tuning'}.json"
    settings = json.loads(json.dumps(asdict(run)))
    if path.is_file():
        result: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        if result["run"] != settings:
            raise FileExistsError(f"{path} is the result of another run: {result['run']}; move it away")
        return result
    data = make_data(run, scratch)
    arm, work = ARMS[run.arm], scratch / "work" / run.name
    pairs = draw_own_domain()
    torch.manual_seed(run.seed)
    clip = load_clip("promptreid-tiny", pretrained="generated", image_size=run.budget.image_size, device=device)
    model = PromptedCLIP(clip, arm.prompts)
    with model.disabled():
        home = encode_own_domain(model, pairs)
    started = time.perf_counter()
    history = train(run, arm, model, data, work, device)
    result = {"run": settings, "seconds": round(time.perf_counter() - started, 1), "history": history}
    result["validation"] = evaluate(model, _split(data.val), progress=False).as_dict()
    if test:
        encoded = encode_split(model, data.test, progress=False)
        result |= {"test": score(encoded).as_dict(), "rank1_by_person": rank1_by_person(encoded)}
        result["measures"] = measure(model, encoded, pairs, home)
    result["made_with"] = versions()
    results.mkdir(parents=True, exist_ok=True)
    write_bytes_atomically(path, (json.dumps(result, indent=1) + "\n").encode())
    shutil.rmtree(work, ignore_errors=True)
    return result


def make_data(run: Run, folder: Path) -> ReIDDataset:
    """Draw the run's data, or take what was drawn, and keep its share of the training identities."""
    budget = run.budget
    root = folder / "data" / f"seed{run.seed}-gap{run.gap:g}"
    write_generated(
        root,
        num_identities=budget.identities,
        images_per_identity=budget.images_per_identity,
        seed=run.seed,
        gap=run.gap,
    )
    return _part_of(load_cuhk_pedes(root), run)


def _part_of(data: ReIDDataset, run: Run) -> ReIDDataset:
    """The run's share of the training identities, and its cameras."""
    kept = set(list(data.train.labels)[: max(2, round(run.share * data.train.num_identities))])
    train = [record for record in data.train.records if record.person_id in kept]
    if not run.train_cameras:
        return replace(data, train=ReIDSplit("train", train))
    seen = [record for record in train if record.path.parent.name in run.train_cameras]
    test = [record for record in data.test.records if record.path.parent.name not in run.train_cameras]
    return replace(data, train=ReIDSplit("train", seen), test=ReIDSplit("test", test))


def train(run: Run, arm: Arm, model: PromptedCLIP, data: ReIDDataset, work: Path, device: str) -> list[dict[str, Any]]:
    """Run the arm's stages; the validation split chooses the epoch of each."""
    if arm.stages is None:
        return []
    budget, validation = run.budget, _split(data.val)
    recipe = Recipe(
        num_identities=data.train.num_identities,
        stage_one_epochs=budget.stage_one_epochs,
        stage_two_epochs=budget.stage_two_epochs,
        stage_one_learning_rate=run.rates[0],
        stage_two_learning_rate=run.rates[1],
    )
    pairs = CaptionedImages(data.train, transform=model.train_transform, tokenizer=model.tokenizer)
    history: list[dict[str, Any]] = []
    for number, stage in enumerate(arm.stages(model, arm.make_recipe(recipe, step_cost=run.step_cost))):
        trainer = Trainer(
            model,
            [stage],
            train_data=pairs,
            batch_size=min(budget.batch_size, len(pairs)),
            output_dir=work / f"{number}-{stage.name}",
            seed=run.seed,
            device=device,
            evaluate=lambda model: evaluate(model, validation, progress=False).text_to_image.as_dict(),
            evaluate_every_epoch=True,
            best_metric="mAP",
        )
        history += trainer.fit()
    return history


def rank1_by_person(encoded: EncodedSplit) -> dict[int, float]:
    """For each person, the share of the sentences about them that find them first."""
    found: dict[int, list[bool]] = defaultdict(list)
    best = encoded.image_ids[(encoded.text_features @ encoded.image_features.T).argmax(dim=1)]
    for person, hit in zip(encoded.text_ids.tolist(), (best == encoded.text_ids).tolist(), strict=True):
        found[person].append(hit)
    return {person: sum(hits) / len(hits) for person, hits in found.items()}


def versions() -> Mapping[str, str]:
    """What a result was made with; no names of machines or people."""
    return {
        "promptreid": promptreid.__version__,
        "torch": torch.__version__,
        "open_clip": open_clip.__version__,
        "python": platform.python_version(),
        "machine": f"{platform.machine()}, {torch.get_num_threads()} threads",
        "date": time.strftime("%Y-%m-%d"),
    }


def _split(split: ReIDSplit | None) -> ReIDSplit:
    if split is None:
        raise ValueError("the study chooses checkpoints on a validation split, and these data have none")
    return split
