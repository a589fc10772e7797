"""Turns captions into token ids, and says so when one does not fit."""

import unicodedata
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import open_clip
from open_clip.tokenizer import HFTokenizer
from torch import Tensor, nn

from promptreid.errors import HubError, explain_missing_transformers
from promptreid.towers.loading import repository_folder, stated_config, stated_context_length
from promptreid.towers.names import check_name, is_repository
from promptreid.towers.weights import read_config

_PEEK_FACTOR = 2


class CaptionTokenizer:
    """An open_clip tokenizer that warns once of captions that are too long, and once of those in another script.

    A caption that is too long is cut and its end token kept, as open_clip does; prompts take none of its positions.

    Args:
        tokenize: open_clip's tokenizer.
        context_length: L, tokens of a caption; `None` for the tokenizer's own.

    Example:
        >>> tokenizer = tokenizer_of("promptreid-tiny")
        >>> tokenizer(["a man in a blue coat", "a woman"]).shape
        torch.Size([2, 77])
    """

    def __init__(self, tokenize: Callable[..., Tensor], *, context_length: int | None = None) -> None:
        self.tokenize = tokenize
        self.context_length: int = context_length or getattr(tokenize, "context_length", None) or 77
        self._warned = False
        self._is_english = isinstance(tokenize, open_clip.SimpleTokenizer)

    def __call__(self, captions: str | Sequence[str], *, context_length: int | None = None) -> Tensor:
        """Token ids of one caption or several.

        Args:
            captions: The captions.
            context_length: L instead of the model's, to count the tokens of long captions.

        Shape:
            - returns: (B, L) int64

        Raises:
            TypeError: `captions` is not text.
        """
        captions = [captions] if isinstance(captions, str) else list(captions)
        wrong = [caption for caption in captions if not isinstance(caption, str)]  # pyright: ignore[reportUnnecessaryIsInstance]
        if wrong:
            raise TypeError(f"captions hold {wrong[0]!r}, expected text: one string or a list of strings")
        if self._is_english and not all(caption.isascii() for caption in captions):
            self._warn_of_scripts(captions)
        tokens = self.tokenize(captions, context_length=context_length or self.context_length)
        if not self._warned and context_length is None:
            self._warn_of_cuts(captions, tokens)
        return tokens

    def _warn_of_scripts(self, captions: list[str]) -> None:
        other = [caption for caption in captions if sum(map(_is_of_another_script, caption)) * 2 > len(caption)]
        if other:
            self._is_english = False
            warnings.warn(
                f"{len(other)} of {len(captions)} captions are not in Latin letters, for example {other[0][:60]!r}. "
                "This model has CLIP's tokenizer, which was made for English, as were most models with it. Translate "
                "the captions, or use a multilingual model such as xlm-roberta-base-ViT-B-32. This warning is shown "
                "once",
                stacklevel=3,
            )

    def _warn_of_cuts(self, captions: list[str], tokens: Tensor) -> None:
        # Only a caption that fills its row can have been cut; such rows are few, so looking twice costs little.
        full = [index for index in range(len(captions)) if int(tokens[index, -1]) != int(tokens[index, -2])]
        if not full:
            return
        longer = self.tokenize([captions[index] for index in full], context_length=_PEEK_FACTOR * self.context_length)
        past = longer[:, self.context_length :]
        cut = int((past != longer[:, -1:]).any(dim=1).sum())
        if cut:
            self._warned = True
            warnings.warn(
                f"{cut} of {len(captions)} captions are longer than the {self.context_length} tokens that this model "
                f"reads and were cut, for example {captions[full[0]][:60]!r}; the end token is kept. This warning is "
                "shown once",
                stacklevel=3,
            )


def _is_of_another_script(letter: str) -> bool:
    return letter.isalpha() and not unicodedata.name(letter, "LATIN").startswith("LATIN")


def tokenizer_for(clip: nn.Module, name: str) -> CaptionTokenizer:
    """The tokenizer of a model, by the configuration that it was made from.

    Args:
        clip: The open_clip model.
        name: What it was made from, as for `tokenizer_of`.
    """
    return tokenizer_of(name, context_length=stated_context_length(clip), model_cfg=stated_config(clip))


def tokenizer_of(
    name: str, *, context_length: int | None = None, model_cfg: Mapping[str, Any] | None = None
) -> CaptionTokenizer:
    """The tokenizer of an open_clip model of that name, without the model; some are downloaded on first use.

    Args:
        name: open_clip's name of the architecture, a repository or a folder.
        context_length: L, tokens of a caption; `None` for the architecture's.
        model_cfg: The configuration of a repository or a folder; `None` reads it, from the default cache.

    Raises:
        ValueError: There is no such model.
        MissingExtraError: It is one of Hugging Face's, and transformers is not installed.
    """
    check_name(name)
    with explain_missing_transformers(f"the tokenizer of {name}"):
        tokenize = _of_repository(name, model_cfg) if is_repository(name) else open_clip.get_tokenizer(name)
    return CaptionTokenizer(tokenize, context_length=context_length)


def _of_repository(name: str, model_cfg: Mapping[str, Any] | None) -> Any:
    """As `open_clip.get_tokenizer`, which would pass on every setting of the repository."""
    config = model_cfg or read_config(repository_folder(name))["model_cfg"]
    text: dict[str, Any] = config["text_cfg"]
    options: dict[str, Any] = {"context_length": text.get("context_length", 77), **(text.get("tokenizer_kwargs") or {})}
    if not text.get("hf_tokenizer_name"):
        return open_clip.SimpleTokenizer(**options)
    folder = name.removeprefix("local-dir:")
    own = folder != name and (Path(folder) / "tokenizer_config.json").is_file()
    where: str = folder if own else text["hf_tokenizer_name"]
    try:
        return HFTokenizer(where, tokenizer_mode=text.get("tokenizer_mode"), trust_remote_code=False, **options)
    except OSError as error:
        raise HubError(
            f"the tokenizer {where} of {name} cannot be downloaded ({error}); check its name and the network"
        ) from error
