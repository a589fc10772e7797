"""The model card of a published repository: what it is, how good it is, how to use it, and how not to."""

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import fmean, stdev
from string import Template
from typing import Any, cast

from huggingface_hub import EvalResult, ModelCard, ModelCardData

from promptreid.errors import listed
from promptreid.hub.manifest import ENCODERS, PromptManifest
from promptreid.scores import METRICS, shown_score
from promptreid.towers.downloading import is_pinned

CARD = "README.md"
# A figure that a card may show, beside it in the folder. Of data that may not be passed on there is none.
FIGURE = "ranking.png"
# What a card in a folder says for the repository that it is not in yet.
UNPUBLISHED = "your-name/your-model"
_TEMPLATE = Path(__file__).with_name("card.md")
_BACKWARDS = ", image to text"  # after the names of the second direction's scores
_USUAL_TERMS = """\
The datasets of this field (CUHK-PEDES, ICFG-PEDES, RSTPReid) are distributed only for academic research, on request,
and their terms forbid passing them on. No image, caption or identity label of the training data is in this repository.
If you use these weights, please comply with the terms of the data they were trained on; get the data from its owners.
"""
_TASK = "text-to-image person re-identification"
# What tokens of the Hub and of the usual clouds look like.
_SECRET = re.compile(r"\b(hf_[A-Za-z0-9]{16,}|gh[pousr]_[A-Za-z0-9]{20,}|AKIA[A-Z0-9]{16}|sk-[A-Za-z0-9_-]{20,})")

# What the Hub takes: https://huggingface.co/docs/hub/model-cards#specifying-a-license
_LICENSE = re.compile(r"[a-z0-9][a-z0-9.+-]*")
_LICENSE_LINK = re.compile(r"LICENSE(\.md)?|https?://\S+")

Scores = Mapping[str, Any]


@dataclass(frozen=True, kw_only=True)
class CardDetails:
    """The facts of a model card that the model does not know; everything is optional.

    Attributes:
        dataset: Its name, such as `"CUHK-PEDES"`.
        split: The split that was scored.
        checkpoint_rule: How the checkpoint was chosen, such as `"epoch with the best validation mAP"`.
        seeds: The seeds that were run, one for each of the metrics.
        training: Settings by name.
        license: The Hub's identifier of a licence, such as `"cc-by-nc-4.0"`; `"other"` for one that it does not list.
        license_name: For `"other"`, your own identifier; `None` names the terms of the data.
        license_link: For `"other"`, the URL of its text, or `"LICENSE"` for a file that you put there; `None` for the
            card's own section on the terms of the data.
        terms: Markdown of the section on the terms of the data; `None` for those of the field's datasets.
        bare_metrics: Scores of the encoders without prompts, as plain open_clip loads them.
        sections: Your own sections, Markdown by heading, such as `{"Hardware": "One H100."}`; they follow the
            training settings.
        notes: Anything else, as Markdown, at the end.

    Raises:
        TypeError: A value is of another type.
        ValueError: The licence is not of the form that the Hub takes, or a heading is not one line.
    """

    dataset: str | None = None
    split: str = "test"
    checkpoint_rule: str | None = None
    seeds: Sequence[int] = ()
    training: Mapping[str, Any] = field(default_factory=dict[str, Any])
    license: str = "other"
    license_name: str | None = None
    license_link: str | None = None
    terms: str | None = None
    bare_metrics: Scores | None = None
    sections: Mapping[str, str] = field(default_factory=dict[str, str])
    notes: str | None = None

    def __post_init__(self) -> None:
        texts = ("dataset", "checkpoint_rule", "notes", "split", "license", "license_name", "license_link", "terms")
        for name in texts:
            value = getattr(self, name)
            if not isinstance(value, str) and (value is not None or name in ("split", "license")):
                raise TypeError(f"{name} is {value!r}, expected text")
        if not isinstance(self.training, Mapping):  # pyright: ignore[reportUnnecessaryIsInstance]
            raise TypeError(f"training is {self.training!r}, expected settings by name")
        self._check_sections()
        self._check_license()

    def _check_sections(self) -> None:
        if not isinstance(self.sections, Mapping) or not all(  # pyright: ignore[reportUnnecessaryIsInstance]
            isinstance(part, str)  # pyright: ignore[reportUnnecessaryIsInstance]
            for section in self.sections.items()
            for part in section
        ):
            raise TypeError(f"sections is {self.sections!r}, expected Markdown by heading")
        wrong = [heading for heading in self.sections if not heading.strip() or not heading.isprintable()]
        if wrong:
            raise ValueError(f"sections has the heading {wrong[0]!r}, expected one line of text")

    def _check_license(self) -> None:
        if not _LICENSE.fullmatch(self.license):
            raise ValueError(f"license is {self.license!r}, expected the Hub's identifier, such as 'mit' or 'other'")
        own = [name for name in ("license_name", "license_link") if getattr(self, name) is not None]
        if own and self.license != "other":
            raise ValueError(f'{" and ".join(own)} go with license="other"; leave them out for {self.license!r}')
        if self.license_name is not None and not _LICENSE.fullmatch(self.license_name):
            raise ValueError(f"license_name is {self.license_name!r}, expected lower case such as 'my-terms-1.0'")
        if self.license_link is not None and not _LICENSE_LINK.fullmatch(self.license_link):
            raise ValueError(f"license_link is {self.license_link!r}, expected a URL, 'LICENSE' or 'LICENSE.md'")


def make_card(
    manifest: PromptManifest,
    *,
    repo_id: str,
    base_model: str | None,
    metrics: Scores | Sequence[Scores] | None = None,
    details: CardDetails | None = None,
    plain_open_clip: bool = True,
    base_license: str | None = None,
) -> ModelCard:
    """Write the card of a repository.

    Args:
        manifest: What is published.
        repo_id: Where.
        base_model: The Hub repository of the base, if there is one.
        metrics: Scores by name as fractions, image to text nested under `"image_to_text"`; or one of these per seed.
        details: The rest.
        plain_open_clip: Whether plain open_clip loads the encoders, which it does not in every family of towers.
        base_license: The Hub's identifier of the base's licence, if it is known.

    Raises:
        ValueError: A score is not a fraction from 0 to 1, metrics and seeds differ in number, or the text holds an
            access token.
        TypeError: Metrics are of another type.
    """
    details = CardDetails() if details is None else details
    runs = _check_runs(metrics)
    if runs and details.seeds and len(details.seeds) != len(runs):
        raise ValueError(f"there are {len(runs)} metrics and {len(details.seeds)} seeds; give one for each seed")
    data = ModelCardData(
        model_name=repo_id.split("/")[-1],
        library_name="promptreid",
        base_model=base_model,
        pipeline_tag="feature-extraction",
        tags=["open_clip", "clip", "prompt-learning", "person-re-identification", "text-to-image-retrieval"],
        language="en",
        datasets=None if details.dataset is None else [_slug(details.dataset)],
        license=details.license,
        eval_results=_eval_results(runs, details) or None,
    )
    for name, value in _other_license(repo_id, details).items():
        data[name] = value
    if base_model is not None:
        data["base_model_relation"] = "finetune" if ENCODERS in manifest.sha256 else "adapter"
    body = _body(manifest, repo_id, runs, details, plain_open_clip, base_license)
    text = f"---\n{data.to_yaml()}\n---\n\n{body}".rstrip() + "\n"
    check_secrets(text)
    return ModelCard(text)


def signed(card: str) -> str:
    """A card with a last line that tells `is_untouched` whether it was changed by hand."""
    digest = hashlib.sha256(card.encode()).hexdigest()[:16]
    return f"{card}<!-- written by promptreid, {digest}; a card that was changed by hand is kept at the next push -->\n"


def is_untouched(card: str) -> bool:
    """Whether a card is as `signed` left it."""
    return card == signed(card[: card.rfind("<!-- ")])


def addressed(card: str, repo_id: str) -> str:
    """A card of a folder with the repository that it goes to in the place of `UNPUBLISHED`."""
    if UNPUBLISHED not in card:
        return card
    name = UNPUBLISHED.partition("/")[2]
    names = {UNPUBLISHED: repo_id, name: repo_id.partition("/")[2] or repo_id}
    renamed = re.sub(f"{UNPUBLISHED}|{name}", lambda found: names[found[0]], card)
    return signed(renamed[: renamed.rfind("<!-- ")]) if is_untouched(card) else renamed


def _is_fine_tuned(manifest: PromptManifest) -> bool:
    """Whether the encoders were trained together with the prompts, and not only published beside them."""
    return ENCODERS in manifest.sha256 and manifest.encoders_fingerprint != manifest.base_fingerprint


def _other_license(repo_id: str, details: CardDetails) -> dict[str, str]:
    """Name and link of a licence that the Hub does not list; it wants both."""
    if details.license != "other":
        return {}
    return {
        "license_name": details.license_name or "dataset-terms",
        "license_link": details.license_link or f"https://huggingface.co/{repo_id}#terms-of-the-data",
    }


def check_secrets(text: str, *, token: str | bool | None = None) -> None:
    """Refuse text that holds a token.

    Raises:
        ValueError: It does; the token is not repeated.
    """
    if _SECRET.search(text) or (isinstance(token, str) and len(token) >= 8 and token in text):
        raise ValueError("what would be published holds an access token; take it out of the settings or notes")


def _check_runs(metrics: Scores | Sequence[Scores] | None) -> list[Scores]:
    runs = [metrics] if isinstance(metrics, Mapping) else list(metrics or [])
    for run in runs:
        if not isinstance(run, Mapping):  # pyright: ignore[reportUnnecessaryIsInstance]
            raise TypeError(f"metrics holds {type(run).__name__}, expected scores by name, as evaluate(...).as_dict()")
        for name, value in _both_ways(run):
            number = isinstance(value, int | float) and not isinstance(value, bool)
            is_fraction = METRICS[_metric_name(name)].is_fraction
            if not number or (is_fraction and not 0 <= value <= 1):
                raise ValueError(
                    f"{name} is {value!r}, expected a {'fraction from 0 to 1' if is_fraction else 'number'}"
                )
    return runs


def _both_ways(run: Scores) -> list[tuple[str, Any]]:
    """Known scores of both directions, the second's named with a suffix."""
    other = run.get("image_to_text")
    back = cast("Scores", other) if isinstance(other, Mapping) else {}
    return [(name, run[name]) for name in METRICS if name in run] + [
        (name + _BACKWARDS, back[name]) for name in METRICS if name in back
    ]


def _metric_name(name: str) -> str:
    """The metric of a name that `_both_ways` gave."""
    return name.removesuffix(_BACKWARDS)


def _eval_results(runs: list[Scores], details: CardDetails) -> list[EvalResult]:
    if not runs or details.dataset is None:
        return []  # the Hub's form takes no score without a dataset
    return [
        EvalResult(
            task_type="text-to-image-retrieval",
            task_name=_TASK,
            dataset_type=_slug(details.dataset),
            dataset_name=details.dataset,
            dataset_split=details.split,
            metric_type=name.replace(", ", "_").replace(" ", "_").lower(),
            metric_name=METRICS[name].title if name in METRICS else name,
            metric_value=float(shown_score(_metric_name(name), mean)),
        )
        for name, mean, _ in _summary(runs)
    ]


def _slug(name: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-") or "unknown"


def _summary(runs: list[Scores]) -> list[tuple[str, float, float | None]]:
    """Name, mean and sample standard deviation of each score that every run has."""
    rows = [dict(_both_ways(run)) for run in runs]
    summary: list[tuple[str, float, float | None]] = []
    for name in rows[0] if rows else ():
        values = [float(row[name]) for row in rows if name in row]
        if len(values) < len(rows):
            continue
        summary.append((name, fmean(values), stdev(values) if len(values) > 1 else None))
    return summary


def _body(
    manifest: PromptManifest,
    repo_id: str,
    runs: list[Scores],
    details: CardDetails,
    plain_open_clip: bool,
    base_license: str | None,
) -> str:
    tuned = ENCODERS in manifest.sha256
    encoders = "fine-tuned encoders" if _is_fine_tuned(manifest) else "encoders"
    template = _TEMPLATE.read_text(encoding="utf-8").removesuffix("\n")
    for name, shown in (("plain open_clip", tuned and plain_open_clip), ("our loader", tuned and not plain_open_clip)):
        optional = re.compile(f"<!-- {name} -->\n(.*?)<!-- end -->\n", flags=re.DOTALL)
        template = optional.sub(r"\1" if shown else "", template)
    return Template(template).substitute(
        title=repo_id.split("/")[-1],
        repo_id=repo_id,
        task=_TASK,
        what=f"Prompts and {encoders}" if tuned else "Prompts",
        encoders=encoders,
        base=_base_line(manifest) + (f" (licence: {base_license})" if base_license else ""),
        size=manifest.image_size,
        image_size=f"{manifest.image_size[0]} × {manifest.image_size[1]} pixels (height × width)",
        prompts=_prompts_line(manifest),
        version=manifest.library_version,
        metrics=_metrics_section(runs, details),
        training=_training_section(details),
        sections="".join(f"\n## {heading}\n\n{text}\n" for heading, text in details.sections.items()),
        terms=details.terms or _USUAL_TERMS.rstrip("\n"),
        notes=f"\n{details.notes}\n" if details.notes else "",
    )


def _prompts_line(manifest: PromptManifest) -> str:
    towers = (("text", manifest.prompts.text_length), ("vision", manifest.prompts.vision_length))
    told = [
        f"kind `{_plain(manifest.kinds[tower])}`, pass `{tower}_prompts=` to load it,"
        if tower in manifest.kinds
        else f"{length}{' a block' if tower == 'text' else ''}"
        for tower, length in towers
    ]
    prompts = manifest.prompts
    more = {
        "coupled": ", projected from those of the text encoder",
        "prefix": "; they are keys and values of attention",
        "grouped": f" for each of {len(prompts.groups)} groups ({_plain(listed(prompts.groups))})",
    }.get(prompts.kind, "")
    return f"{told[0]} in the text encoder, {told[1]} in the image encoder{more}"


def _base_line(manifest: PromptManifest) -> str:
    repository = manifest.model_name.removeprefix("hf-hub:")
    if repository != manifest.model_name:
        return f"{_repository(repository)}, in open_clip's format"
    name = f"open_clip's `{_plain(manifest.model_name)}`"
    if manifest.pretrained is None:
        return f"{name}, own weights"
    if is_pinned(manifest.pretrained):
        return f"{name} with the weights of {_repository(manifest.pretrained)}"
    return f"{name} with weights `{_plain(manifest.pretrained)}`"


def _repository(name: str) -> str:
    name, _, commit = name.partition("@")
    return f"`{_plain(name)}` on the Hub{f' at commit `{_plain(commit)}`' * bool(commit)}"


def _metrics_section(runs: list[Scores], details: CardDetails) -> str:
    if not runs:
        return "No scores were reported."
    where = f"on the {_plain(details.split)} split of {_plain(details.dataset or 'an unnamed dataset')}"
    lines = [f"In percent, {where}.", "", "| score | mean | spread |", "|---|---|---|"]
    for name, mean, spread in _summary(runs):
        metric = _metric_name(name)
        label = METRICS[metric].title + name.removeprefix(metric)
        shown = "one run" if spread is None else shown_score(metric, spread)
        lines.append(f"| {label} | {shown_score(metric, mean)} | {shown} |")
    seeds = ", ".join(map(str, details.seeds)) or "not stated"
    lines += ["", f"Runs: {len(runs)}; seeds: {seeds}; spread is the standard deviation over runs."]
    lines.append(f"Checkpoint: {_plain(details.checkpoint_rule or 'not stated how it was chosen')}.")
    if details.bare_metrics is not None:
        bare = ", ".join(
            f"{name} {shown_score(_metric_name(name), value)}" for name, value in _both_ways(details.bare_metrics)
        )
        lines.append(f"The encoders without prompts, as plain open_clip loads them: {bare}.")
    return "\n".join(lines)


def _training_section(details: CardDetails) -> str:
    if not details.training:
        return "Settings were not reported."
    rows = [f"| {_plain(name)} | {_plain(_shown_setting(value))} |" for name, value in details.training.items()]
    return "\n".join(["| setting | value |", "|---|---|", *rows])


def _shown_setting(value: Any) -> str:
    """A setting as people read it.

    Example:
        >>> [_shown_setting(value) for value in (None, True, "linear", 1 / 12, 1e-05, (96, 48))]
        ['none', 'yes', 'linear', '0.08333', '1e-05', '96, 48']
    """
    if value is None or isinstance(value, bool):
        return {None: "none", True: "yes", False: "no"}[value]
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, list | tuple):
        return ", ".join(_shown_setting(each) for each in cast("Sequence[Any]", value)) or "none"
    return value if isinstance(value, str) else json.dumps(value, default=str)


def _plain(text: str) -> str:
    """Text that cannot break out of a table cell."""
    return re.sub(r"\s+", " ", text).replace("|", "\\|").replace("<", "&lt;")
