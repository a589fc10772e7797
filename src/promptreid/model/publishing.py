"""Publishes a prompted model on the Hub."""

import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from promptreid.errors import CheckpointError
from promptreid.files import write_bytes_atomically
from promptreid.hub.card import (
    CARD,
    FIGURE,
    UNPUBLISHED,
    CardDetails,
    addressed,
    check_secrets,
    is_untouched,
    make_card,
    signed,
)
from promptreid.hub.manifest import ENCODERS_CONFIG, PromptManifest
from promptreid.hub.prompt_files import MANIFEST, PromptFiles, find_file, read_prompt_files
from promptreid.hub.repository import Repository
from promptreid.hub.transfer import COUNTED, COUNTED_TEXT, PublishedURL, upload_files
from promptreid.model.base_lookup import check_shapes
from promptreid.model.saving import Encoders, save_prompts
from promptreid.towers.downloading import is_pinned
from promptreid.towers.empty_models import loads_in_plain_open_clip
from promptreid.towers.loading import ClipSource
from promptreid.towers.names import is_listed_model, is_listed_tag, license_of, listed_as, published_at
from promptreid.values import given_path

if TYPE_CHECKING:
    from promptreid.model.prompted_clip import PromptedCLIP

_MOST_CARD_BYTES = 2**20


def push_prompts(
    model: "PromptedCLIP | str | Path",
    repo_id: str,
    *,
    private: bool = True,
    revision: str | None = None,
    create_pr: bool = False,
    commit_message: str | None = None,
    token: str | bool | None = None,
    metrics: Mapping[str, Any] | Sequence[Mapping[str, Any]] | None = None,
    details: CardDetails | None = None,
    encoders: Encoders = "auto",
) -> PublishedURL:
    """Publish a model's prompts, and its encoders where they were fine-tuned, with a model card.

    One commit holds everything, so nobody ever downloads half of it. Only the files that `save_prompts` writes and
    the card are uploaded: never images, captions, identity labels or the identity head. Also `model.push_to_hub`.

    Args:
        model: The model, or a folder that `save_prompts` wrote; a `README.md` in it is taken as the card.
        repo_id: The repository, `"user/name"`; made if it is not there.
        private: Whether only its owner sees it; a public one is refused unless this is `False`.
        revision: Branch, made from main if it is not there; for a pull request, the branch it is for.
        create_pr: Open a pull request.
        commit_message: Title of the commit.
        token: Access token that may write; `None` for the one that is logged in. It is written nowhere.
        metrics: What `evaluate(...).as_dict()` returns, or a list of them, one per seed: the card states mean and
            spread.
        details: Dataset, split, how the checkpoint was chosen, settings and anything else for the card.
        encoders: `"auto"` publishes the weights if they differ from the base's, or if that is a folder of this machine
            (`local-dir:`); `"always"` in any case.

    Returns:
        URL of the commit, or of the pull request: text, with the attributes `is_private` and `is_new`.

    Raises:
        HubError: The Hub cannot be reached, or refuses; the repository is unchanged then.
        CheckpointError: The folder is damaged, or holds weights that are not the architecture's.
        FileNotFoundError: There is no such folder.
        ValueError: The repository is public and `private` is not `False`, or holds another model; nobody else could
            make the base, a score is not a fraction, a token is in the card, or the Hub finds its metadata wrong.
        TypeError: An argument is of another type.

    Example:
        >>> push_prompts(model, "user/cuhk-pedes-vit-b16", metrics=scores)  # doctest: +SKIP
    """
    if not isinstance(repo_id, str):  # pyright: ignore[reportUnnecessaryIsInstance]
        raise TypeError(f"repo_id is {type(repo_id).__name__}, expected text: push_prompts(model, 'user/name')")
    repository = Repository(repo_id, revision, token, for_upload=True)
    for name, value in (("private", private), ("create_pr", create_pr)):
        if not isinstance(value, bool):  # pyright: ignore[reportUnnecessaryIsInstance]
            raise TypeError(f"{name} is {value!r}, expected True or False")
    with tempfile.TemporaryDirectory() as scratch:
        if isinstance(model, str | Path):
            folder = given_path("model", model)
        else:
            # Nobody else has the folder that the base is from.
            source: ClipSource | None = getattr(model, "source", None)
            own = source is not None and source.name.startswith("local-dir:")
            folder = save_prompts(model, Path(scratch) / "prompts", encoders="always" if own else encoders)
        uploads = files_to_push(folder, repository.repo_id, metrics=metrics, details=details)
        manifest = read_prompt_files(folder).manifest
        message = commit_message or f"Prompts for {manifest.model_name}, by promptreid {manifest.library_version}"
        card, config = (cast("bytes", uploads[name]).decode() for name in (CARD, MANIFEST))
        check_secrets("\n".join((card, config, message)), token=token)
        return upload_files(
            repository,
            uploads,
            private=private,
            create_pr=create_pr,
            message=message,
            replace_card=(folder / CARD).exists(),
        )


def files_to_push(
    folder: str | Path,
    repo_id: str,
    *,
    metrics: Mapping[str, Any] | Sequence[Mapping[str, Any]] | None = None,
    details: CardDetails | None = None,
) -> dict[str, bytes | Path]:
    """The files that `push_prompts` would upload: content or path of each, by its name in the repository.

    Raises:
        FileNotFoundError: There is no such folder.
        CheckpointError: The folder is damaged.
        ValueError: Nobody else could make the base, or the folder has its own card and `metrics` or `details`
            are given.
    """
    folder = given_path("folder", folder)
    if not folder.is_dir():
        raise FileNotFoundError(f"there is no folder {folder}; give a model, or what save_prompts wrote")
    files = read_prompt_files(folder)
    manifest = _publishable(files, repo_id)
    card = _own_card(folder / CARD, metrics, details)
    card = addressed(card, repo_id) if card else _card(files, manifest, repo_id, metrics, details)
    check_secrets(card)
    uploads: dict[str, bytes | Path] = {
        CARD: card.encode(),
        MANIFEST: manifest.to_json().encode(),
        COUNTED: COUNTED_TEXT,
    }
    uploads |= {name: find_file(folder, name, digest) for name, digest in manifest.sha256.items()}
    figure = folder / FIGURE
    if f"({FIGURE})" in card and figure.is_file() and not figure.is_symlink():
        uploads[FIGURE] = figure
    return uploads


def write_card(
    folder: str | Path,
    *,
    metrics: Mapping[str, Any] | Sequence[Mapping[str, Any]] | None = None,
    details: CardDetails | None = None,
) -> Path:
    """Write the model card into a folder of prompts, as `push_prompts` will publish it; one changed by hand is kept.

    Args:
        folder: What `save_prompts` wrote.
        metrics: As for `push_prompts`.
        details: As for `push_prompts`.

    Returns:
        The card.

    Raises:
        CheckpointError: The folder is damaged.
        ValueError: A score is not a fraction, or the text holds an access token.
    """
    folder = given_path("folder", folder)
    files, path = read_prompt_files(folder), folder / CARD
    if not path.exists() or is_untouched(_own_card(path, None, None)):
        write_bytes_atomically(path, _card(files, files.manifest, UNPUBLISHED, metrics, details).encode())
    return path


def _publishable(files: PromptFiles, repo_id: str) -> PromptManifest:
    """The manifest as others may read it: a base of this machine is named as what is published.

    Raises:
        ValueError: Nobody else could make the base.
        CheckpointError: The weights are not those of the architecture.
    """
    manifest, encoders = files.manifest, files.encoders
    listed = manifest.model_name.startswith("hf-hub:") or (
        is_listed_model(manifest.model_name)
        and manifest.pretrained is not None
        and (is_listed_tag(manifest.model_name, manifest.pretrained) or is_pinned(manifest.pretrained))
    )
    if encoders is not None:
        try:
            check_shapes(encoders, manifest.model_name)
        except (TypeError, KeyError, AttributeError) as error:
            raise CheckpointError(
                f"{encoders.path.parent / ENCODERS_CONFIG} is not a configuration of {manifest.model_name} "
                f"({error!r}); save the prompts again"
            ) from error
        # The path of a file on this machine is nobody else's business, and the weights are published too.
        if manifest.model_name.startswith("local-dir:"):
            name = listed_as(encoders.open_clip_config["model_cfg"]) or f"hf-hub:{repo_id}"
            return replace(manifest, model_name=name, pretrained=None, weights_size=None)
        return manifest if listed else replace(manifest, pretrained=None, weights_size=None)
    if not listed:
        raise ValueError(
            f"open_clip lists no weights of {manifest.model_name} tagged {manifest.pretrained!r}, so nobody else could "
            'make the base of these prompts; save or push with encoders="always"'
        )
    return manifest


def _card(
    files: PromptFiles,
    manifest: PromptManifest,
    repo_id: str,
    metrics: Mapping[str, Any] | Sequence[Mapping[str, Any]] | None,
    details: CardDetails | None,
) -> str:
    plain = files.encoders is None or loads_in_plain_open_clip(
        files.encoders.open_clip_config["model_cfg"], files.encoders.shapes
    )
    base = _base_repository(manifest)
    card = make_card(
        manifest,
        repo_id=repo_id,
        base_model=None if base == repo_id else base,
        metrics=metrics,
        details=details,
        plain_open_clip=plain,
        base_license=license_of(manifest.pretrained or ""),
    )
    return signed(str(card))


def _base_repository(manifest: PromptManifest) -> str | None:
    """The Hub repository of the base, if it is known."""
    repository = manifest.model_name.removeprefix("hf-hub:")
    if repository != manifest.model_name:
        return repository.partition("@")[0]
    if manifest.pretrained is None:
        return None
    pinned = is_pinned(manifest.pretrained)
    return manifest.pretrained.partition("@")[0] if pinned else published_at(manifest.model_name, manifest.pretrained)


def _own_card(path: Path, metrics: object, details: object) -> str:
    """The card of a folder; nothing if it has none."""
    if not path.is_symlink() and not path.exists():
        return ""
    if metrics is not None or details is not None:
        raise ValueError(f"{path} is the card, so metrics and details would be lost; leave them out, or remove it")
    # A link in a folder that another user made may lead to any file of ours, which would be published.
    if path.is_symlink() or not path.is_file():
        raise ValueError(f"{path} is a link or not a file; replace it by a copy to publish it as the card")
    if path.stat().st_size > _MOST_CARD_BYTES:
        raise ValueError(f"{path} has {path.stat().st_size} bytes, expected at most {_MOST_CARD_BYTES} for a card")
    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not text in UTF-8 ({error}); save it as such, or remove it") from error
