"""What a prompted model does with folders, the Hub, and further sets of prompts."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, cast

import torch
from torch import Tensor, nn

from promptreid.hub.card import CardDetails
from promptreid.prompts import PromptConfig

if TYPE_CHECKING:
    from typing_extensions import Self

    from promptreid.encoders.clip import PromptedCLIP

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


class Sharing:
    """The methods of `PromptedCLIP` that save, publish, load and exchange prompts.

    Functions of `pretrained.py` and `publishing.py` do the work; they make models, so they are imported in here.
    """

    _prompt_sets: dict[str, PromptSet]
    _prompts_in_use: str

    def save_pretrained(
        self, directory: str | Path, *, encoders: Literal["auto", "always"] = "auto", overwrite: bool = False
    ) -> Path:
        """Save to a folder, as `save_prompts` does."""
        from promptreid.encoders.pretrained import save_prompts

        return save_prompts(_model(self), directory, encoders=encoders, overwrite=overwrite)

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
        from promptreid.encoders.pretrained import load_prompts

        return cast(
            "Self",
            load_prompts(
                repo_or_directory,
                model=model,
                revision=revision,
                token=token,
                cache_dir=cache_dir,
                local_files_only=local_files_only,
                trust_base=trust_base,
                device=device,
                dtype=dtype,
            ),
        )

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
        encoders: Literal["auto", "always"] = "auto",
    ) -> str:
        """Publish on the Hub, as `push_prompts` does."""
        from promptreid.encoders.publishing import push_prompts

        return push_prompts(
            _model(self),
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
            ValueError: There is a set of that name.
            CheckpointError: The prompts belong to other encoders, or are corrupt.
            HubError: The repository is not there, or cannot be reached.
        """
        from promptreid.encoders.matching import check_clip
        from promptreid.encoders.pretrained import Access, read_prompts

        if not name or name in self._prompt_sets:
            raise ValueError(f"prompts {name!r} are there already; the model holds {', '.join(self._prompt_sets)}")
        if isinstance(prompts, PromptConfig):
            self._prompt_sets[name] = PromptSet(prompts, {})
            return
        access = Access(revision, token, cache_dir, local_files_only)
        files = read_prompts(prompts, access, with_encoders=False)
        check_clip(files, _model(self).clip)
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
        model, chosen = _model(self), self._prompt_sets[name]
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


def _model(sharing: Sharing) -> "PromptedCLIP":
    return cast("PromptedCLIP", sharing)
