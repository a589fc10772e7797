"""The prompted model as people use it: it encodes, saves, loads, publishes, and holds several sets of prompts."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from promptreid.hub.card import CardDetails
from promptreid.model.dual_encoder import DualEncoder
from promptreid.model.matching import check_clip
from promptreid.model.publishing import push_prompts
from promptreid.model.reading import Access, load_as, read_prompts
from promptreid.model.saving import Encoders, save_prompts
from promptreid.prompts.config import PromptConfig
from promptreid.towers.loading import ClipSource

if TYPE_CHECKING:
    from typing_extensions import Self

FIRST_SET = "default"


@dataclass
class PromptSet:
    """Prompts that a model holds beside those it uses.

    Attributes:
        config: How they are set up.
        tensors: Their values by name; empty for those in use, which are in the model itself.
    """

    config: PromptConfig
    tensors: dict[str, Tensor]


class PromptedCLIP(DualEncoder):
    """An open_clip model with learnable prompts in its image and its text encoder.

    It owns the open_clip model (keys `clip.*`, exactly open_clip's own behind the prefix) and the prompts
    (`vision.prompts.tokens`, `text.prompts.tokens`), so every parameter appears once. The open_clip model's
    `encode_image`, `encode_text` and `forward` go on working and are prompted.

    Args:
        clip: An open_clip model, from `load_clip` or `open_clip.create_model`.
        config: Lengths, depths and initialisation of the prompts.
        source: Where the model came from; known already if it is from `load_clip`.
        sequence_first: Keep frozen attention fast (values change by rounding only).
        trim: Cut captions to the longest of a batch where that is exact.
        initialize: Start the prompts; `False` leaves them zero, for a loader that sets them.

    Attributes:
        clip: The open_clip model.
        vision: The image encoder, a `PromptedVisionEncoder`.
        text: The text encoder, a `PromptedTextEncoder`.
        config: The configuration of the prompts in use.
        base_fingerprint: Samples of the base's weights, that is of the open_clip model's when it was first wrapped.
        base_samples: Some weights of each tensor as they were then; `None` if the encoders are fine-tuned ones.

    Shape:
        - images: (B, 3, H, W) floating point; tokens: (B, L) int64
        - image_features, text_features: (B, E), not normalised unless asked

    Raises:
        UnsupportedTowerError: A tower is of a kind that prompts cannot be put into.
        AttachmentError: The model already carries prompts, or was compiled.
        ValueError: The configuration does not fit the towers.

    Example:
        >>> import torch
        >>> from promptreid import PromptConfig, PromptedCLIP, load_clip
        >>> clip = load_clip("promptreid-tiny", pretrained="generated", image_size=(96, 48))
        >>> model = PromptedCLIP(clip, PromptConfig(text_length=4, vision_length=4))
        >>> model.encode_text(model.tokenizer(["a woman in a red coat"])).shape
        torch.Size([1, 128])
    """

    def __init__(
        self,
        clip: nn.Module,
        config: PromptConfig | None = None,
        *,
        source: ClipSource | None = None,
        sequence_first: bool = True,
        trim: bool = True,
        initialize: bool = True,
    ) -> None:
        super().__init__(clip, config, source=source, sequence_first=sequence_first, trim=trim, initialize=initialize)
        self._prompts_in_use = FIRST_SET
        self._prompt_sets = {FIRST_SET: PromptSet(self.config, {})}

    def save_pretrained(self, directory: str | Path, *, encoders: Encoders = "auto", overwrite: bool = False) -> Path:
        """Save to a folder, as `save_prompts` does."""
        return save_prompts(self, directory, encoders=encoders, overwrite=overwrite)

    @classmethod
    def from_pretrained(
        cls,
        repo_or_directory: str | Path,
        *,
        model: nn.Module | None = None,
        revision: str | None = None,
        token: str | bool | None = None,
        cache_dir: str | Path | None = None,
        local_files_only: bool = False,
        trust_base: bool = False,
        device: str | torch.device | None = None,
        dtype: torch.dtype | None = None,
    ) -> "Self":
        """Load from a folder or the Hub, as `load_prompts` does."""
        access = Access(revision, token, cache_dir, local_files_only)
        return load_as(cls, repo_or_directory, access, model=model, trust_base=trust_base, device=device, dtype=dtype)

    def push_to_hub(
        self,
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
    ) -> str:
        """Publish on the Hub, as `push_prompts` does."""
        return push_prompts(
            self,
            repo_id,
            private=private,
            revision=revision,
            create_pr=create_pr,
            commit_message=commit_message,
            token=token,
            metrics=metrics,
            details=details,
            encoders=encoders,
        )

    @property
    def prompt_sets(self) -> tuple[str, ...]:
        """Names of the sets of prompts that the model holds, the first one's `"default"`."""
        return tuple(self._prompt_sets)

    @property
    def prompts_in_use(self) -> str:
        """Name of the set that `encode_image` and `encode_text` use, and that is saved and trained."""
        return self._prompts_in_use

    def add_prompts(
        self,
        name: str,
        prompts: str | Path | PromptConfig,
        *,
        revision: str | None = None,
        token: str | bool | None = None,
        cache_dir: str | Path | None = None,
        local_files_only: bool = False,
    ) -> None:
        """Hold another set of prompts for the same encoders, which are not copied; `use` switches to it.

        Args:
            name: What to call it.
            prompts: A folder or a Hub repository of prompts that were trained with these encoders, or the
                configuration of new ones, which start when they are first used.
            revision: Branch, tag or commit of a repository.
            token: Access token for it.
            cache_dir: huggingface_hub's cache.
            local_files_only: Take a repository from the cache alone.

        Raises:
            ValueError: There is a set of that name, or it is none.
            CheckpointError: The prompts belong to other encoders, or are corrupt.
            HubError: The repository is not there, or cannot be reached.
        """
        if not isinstance(name, str) or not name:  # pyright: ignore[reportUnnecessaryIsInstance]
            raise ValueError(f"name is {name!r}, expected some text to call the prompts by")
        if name in self._prompt_sets:
            raise ValueError(f"prompts {name!r} are there already; the model holds {', '.join(self._prompt_sets)}")
        if isinstance(prompts, PromptConfig):
            self._prompt_sets[name] = PromptSet(prompts, {})
            return
        access = Access(revision, token, cache_dir, local_files_only)
        files = read_prompts(prompts, access, with_encoders=False)
        check_clip(files, self.clip)
        self._prompt_sets[name] = PromptSet(files.manifest.prompts, dict(files.tensors))

    def use(self, name: str) -> None:
        """Switch to another set of prompts; what was learned in the one before is kept.

        The prompts are other parameters afterwards, so make optimisers anew. Threads that infer meanwhile may see the
        text prompts of one set with the image prompts of the other.

        Args:
            name: One of `prompt_sets`.

        Raises:
            KeyError: There is no set of that name.
            ValueError: The set's configuration does not fit the towers; the one before stays in use.
        """
        if name not in self._prompt_sets:
            raise KeyError(f"there are no prompts {name!r}; the model holds {', '.join(self._prompt_sets)}")
        if name == self._prompts_in_use:
            return
        model, chosen = self, self._prompt_sets[name]
        kept = PromptSet(model.config, {key: value.clone() for key, value in model.prompt_state_dict().items()})
        trained = [parameter.requires_grad for parameter in model.prompt_parameters()]
        try:
            model.attach(chosen.config, initialize=not chosen.tensors)
            if chosen.tensors:
                model.load_prompt_state_dict(chosen.tensors)
        except Exception:
            model.attach(kept.config, initialize=False)
            model.load_prompt_state_dict(kept.tensors)
            raise
        finally:
            for parameter, wanted in zip(model.prompt_parameters(), trained, strict=True):
                parameter.requires_grad_(wanted)
        self._prompt_sets[self._prompts_in_use] = kept
        self._prompts_in_use = name
