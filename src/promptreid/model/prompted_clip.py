"""The prompted model: an open_clip model with prompts in both towers, which encodes, saves, loads and publishes."""

import sys
from collections.abc import Callable, Generator, Mapping
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import torch
from torch import Tensor, nn

from promptreid.data.transforms import TrainTransform, eval_transform, train_transform
from promptreid.errors import CheckpointError
from promptreid.hub.manifest import ENCODERS
from promptreid.hub.prompt_files import PromptFiles, is_finite, read_prompts
from promptreid.hub.repository import Access, Repository
from promptreid.model.base_lookup import Origin, check_clip, make_clip
from promptreid.model.encoder import Factories, PromptFactory, check_factories, check_kinds
from promptreid.model.encoding import encode
from promptreid.model.publishing import push_prompts
from promptreid.model.saving import save_prompts
from promptreid.model.text import PromptedTextEncoder
from promptreid.model.vision import ImageGroups, PromptedVisionEncoder
from promptreid.model.wrapping import Setup, sample_base, wrap
from promptreid.prompts.config import PromptConfig
from promptreid.towers.fingerprint import WeightDigests
from promptreid.towers.loading import ClipSource, digests_of, source_of
from promptreid.towers.tokenizer import tokenizer_for
from promptreid.towers.tower import feature_size_of, image_preprocessing_of, image_size_of

if TYPE_CHECKING:
    from typing_extensions import Self, Unpack

FIRST_SET = "default"
# How prompts that a model holds are set up, and their values by name: none for those in use or not started yet.
PromptSet = tuple[PromptConfig, dict[str, Tensor]]


class PromptedCLIP(nn.Module):
    """An open_clip model with learnable prompts in its image and its text encoder.

    It owns the open_clip model (keys `clip.*`, exactly open_clip's own behind the prefix) and the prompts
    (`vision.prompts.*`, `text.prompts.*`), so every parameter appears once. The open_clip model's
    `encode_image`, `encode_text` and `forward` still work and are prompted.

    Args:
        clip: An open_clip model, from `load_clip` or `open_clip.create_model`.
        config: Kind, lengths, depths and initialisation of the prompts.
        source: Where the model came from; known already if it is from `load_clip`.
        sequence_first: Keep frozen attention fast (values change by rounding only).
        trim: Where that is exact, cut captions to the longest of a batch, and compute the last block of each tower for
            only the pooled token.
        initialize: Start the prompts; `False` leaves them zero, for a loader that sets them.
        vision_prompts: Makes your own kind of prompts for the image tower, its argument; `None` for a built-in
            kind, as `config` says.
        text_prompts: The same for the text tower.
        base_fingerprint: Samples of the base's weights where they are known already, as to a loader.

    Attributes:
        clip: The open_clip model.
        vision: The image encoder, a `PromptedVisionEncoder`.
        text: The text encoder, a `PromptedTextEncoder`.
        config: The configuration of the prompts in use.
        base_fingerprint: Samples of the base's weights, that is of the open_clip model's when it was first wrapped.
        commit: The commit of the Hub repository that the prompts, or else the open_clip model, were loaded from; `None`
            for a folder or an open_clip name.
        base_digests: Checksums of the base's weights as its source gives them; `None` if the encoders are fine-tuned
            ones, or nobody could make them again.

    Shape:
        - images: (B, 3, H, W) floating point; tokens: (B, L) int64
        - image_features, text_features: (B, E), not normalised unless asked

    Raises:
        UnsupportedTowerError: A tower is of a kind that prompts cannot be put into.
        AttachmentError: The model already carries prompts, or was compiled.
        ValueError: The model is on the meta device, the configuration does not fit the towers, or its prompts have more
            numbers than a file of them may have: 2**23 = 8,388,608, or 2**27 = 134,217,728 of coupled and grouped ones.
            Your own kinds have no limit.
        TypeError: `config` is no `PromptConfig`.

    Example:
        >>> import torch
        >>> from promptreid import PromptConfig, PromptedCLIP, load_clip
        >>> clip = load_clip("promptreid-tiny", pretrained="generated_v3", image_size=(96, 48))
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
        vision_prompts: PromptFactory | None = None,
        text_prompts: PromptFactory | None = None,
        base_fingerprint: tuple[float, ...] | None = None,
    ) -> None:
        super().__init__()
        config = PromptConfig() if config is None else config
        if not isinstance(config, PromptConfig):  # pyright: ignore[reportUnnecessaryIsInstance]
            raise TypeError(
                f"config is {type(config).__name__}, expected a PromptConfig: "
                "PromptedCLIP(clip, PromptConfig(text_length=4))"
            )
        self.source: ClipSource | None = source_of(clip) if source is None else source
        self._setup: Setup = {"sequence_first": sequence_first, "trim": trim}
        self._factories: Factories = {"vision": vision_prompts, "text": text_prompts}
        self.base_fingerprint: tuple[float, ...] = sample_base(clip) if base_fingerprint is None else base_fingerprint
        self._wrap(clip, config, initialize=initialize)
        self.clip = clip
        self.commit: str | None = self.source and self.source.commit
        self.base_digests: WeightDigests | None = digests_of(clip, self.source)
        self._prompts_in_use = FIRST_SET
        self._prompt_sets: dict[str, PromptSet] = {FIRST_SET: (self.config, {})}

    def attach(self, config: PromptConfig, *, initialize: bool = True) -> None:
        """Replace the prompts by others, which are set up as `config` says.

        Args:
            config: Kind, lengths, depths and initialisation.
            initialize: Start them; `False` leaves them zero.

        Raises:
            ValueError: As of `PromptedCLIP`; the prompts before stay as they are.
        """
        replaced = self.vision, self.text
        attached = [encoder for encoder in replaced if encoder.prompts.attached]
        self.detach()
        try:
            self._wrap(self.clip, config, initialize=initialize)
        except Exception:
            for encoder in attached:
                encoder.attach()
            raise
        # Only these: the open_clip model may be in another mode, in which its statistics and its dropout rest.
        for encoder, before in zip((self.vision, self.text), replaced, strict=True):
            encoder.train(before.training)

    def _wrap(self, clip: nn.Module, config: PromptConfig, *, initialize: bool) -> None:
        vision, text = wrap(clip, config, self._factories, self._setup, initialize=initialize)
        self.config: PromptConfig = config
        self.vision: PromptedVisionEncoder = vision
        self.text: PromptedTextEncoder = text

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
        vision_prompts: PromptFactory | None = None,
        text_prompts: PromptFactory | None = None,
    ) -> "Self":
        """Load a model that `save_prompts` or `push_prompts` wrote; its scores equal the saver's.

        Prompts belong to the weights, the activation and the image size they were trained with, and a `model` that
        differs in any of them is refused. To use them at another image size all the same, at other scores, set them
        yourself: `PromptedCLIP(clip, saved.config).load_prompt_state_dict(saved.prompt_state_dict())`.

        `promptreid.load_prompts` is this method.

        Args:
            repo_or_directory: A folder, or else the id of a repository on the Hub.
            model: A bare open_clip model to put the prompts into; `None` makes the right one, from the folder's own
                weights if it has them, else from the base's pretrained tag.
            revision: Branch, tag or commit of the repository; `None` for main.
            token: Access token for it; `None` for the one that is logged in.
            cache_dir: huggingface_hub's cache, and the folder for a base that is downloaded; `None` for their
                defaults.
            local_files_only: Take the repository only from the cache.
            trust_base: Make the base even if open_clip does not list its architecture or weights: a file on your
                disk, say. A stranger could then make open_clip load anything.
            device: Where the model is put; `None` leaves it on the CPU, or where `model` is.
            dtype: Precision of the encoders; prompts stay float32, as in training.
            vision_prompts: Makes the image tower's prompts, if your own kind of prompts was saved.
            text_prompts: The same for the text tower.

        Returns:
            The prompted model, in eval mode.

        Raises:
            CheckpointError: A file is missing or corrupt, the base is not one that open_clip lists, or the prompts do
                not belong to `model`; says what differs. Or they are of a kind that is not built in and was not
                passed.
            HubError: The repository, its revision or a file is not there or may not be seen, or the Hub cannot be
                reached.
            AttachmentError: `model` carries prompts already.
            FileNotFoundError: There is no such folder, and it is not a repository's id either.
            TypeError: `model` is not an open_clip model, or `dtype` is not floating point.
            ValueError: `revision` was given for a folder.
        """
        if dtype is not None and not (isinstance(dtype, torch.dtype) and dtype.is_floating_point):  # pyright: ignore[reportUnnecessaryIsInstance]
            raise TypeError(f"dtype is {dtype!r}, expected a floating-point torch.dtype such as torch.bfloat16")
        if isinstance(model, PromptedCLIP):
            raise TypeError("model is a PromptedCLIP already; pass the open_clip model that model.detach() returns")
        repository = Repository(repo_or_directory, revision, token, cache_dir, local_files_only)
        files = read_prompts(repository, with_encoders=model is None)
        factories: Factories = {"vision": vision_prompts, "text": text_prompts}
        check_factories(files.manifest, factories)
        clip = make_clip(files, trust_base=trust_base, cache_dir=cache_dir) if model is None else model
        prompted = cls._restore(clip, files, factories, "made" if model is None else "given")
        if dtype is not None:
            prompted.clip.to(dtype)
        prompted = prompted if device is None else prompted.to(device)
        return prompted.eval()

    @classmethod
    def _restore(cls, clip: nn.Module, files: PromptFiles, factories: Factories, origin: Origin) -> "Self":
        """Put saved prompts into the open_clip model that they belong to."""
        manifest, base = files.manifest, check_clip(files, clip, origin)
        tuned = ENCODERS in manifest.sha256
        try:
            prompted = cls(
                clip,
                manifest.prompts,
                source=manifest.source,
                initialize=False,
                vision_prompts=factories["vision"],
                text_prompts=factories["text"],
                base_fingerprint=manifest.base_fingerprint if tuned else base,
            )
        except ValueError as error:
            raise CheckpointError(f"these prompts cannot be put into {manifest.model_name}: {error}") from error
        try:
            check_kinds(manifest, prompted.prompt_kinds)
            prompted.load_prompt_state_dict(files.tensors)
        except CheckpointError:
            prompted.detach()
            raise
        prompted.commit = files.commit
        if tuned:
            prompted.base_digests = None
        return prompted

    # The same functions as methods, so that each list of arguments is written once.
    encode = encode
    save_pretrained = save_prompts
    push_to_hub = push_prompts

    @property
    def image_size(self) -> tuple[int, int]:
        """(height, width) in pixels."""
        return image_size_of(self.clip)

    @property
    def context_length(self) -> int:
        """L, tokens a caption has room for."""
        return self.text.context_length

    @property
    def embed_dim(self) -> int:
        """E, size of the features that both encoders share."""
        return feature_size_of(self.clip)

    @cached_property
    def tokenizer(self) -> Callable[..., Tensor]:
        """Turns a caption or a list of captions into token ids, (B, L) int64.

        Raises:
            ValueError: It is not known which architecture this is.
        """
        if self.source is None:
            raise ValueError(
                "this open_clip model was not made by promptreid.load_clip, so its tokenizer is not known; use "
                "open_clip.get_tokenizer(name), or pass source=ClipSource(name, pretrained, image_size) to PromptedCLIP"
            )
        return tokenizer_for(self.clip, self.source.name)

    @property
    def train_transform(self) -> TrainTransform:
        """Augmenting transform, PIL image to normalised (3, H, W)."""
        return train_transform(self.image_size, **image_preprocessing_of(self.clip))

    @property
    def eval_transform(self) -> Callable[[Any], Tensor]:
        """Transform for evaluation and search, PIL image to normalised (3, H, W); nothing is cropped away."""
        return eval_transform(self.image_size, **image_preprocessing_of(self.clip))

    @property
    def groups(self) -> tuple[str, ...]:
        """Names of the groups that grouped prompts have prompts for; empty for other kinds."""
        return self.config.groups

    def encode_image(self, images: Tensor, *, normalize: bool = False, groups: ImageGroups = None) -> Tensor:
        """Image features, (B, E).

        Args:
            images: The batch.
            normalize: Give features of unit length.
            groups: With grouped prompts, of each image the name of its group, or (B,) int64 positions in `groups`. A
                group that prompts were not trained for, -1, and every image without `groups`, mean the mean prompts.
        """
        return self.vision(images, normalize=normalize, groups=groups)

    def encode_text(self, tokens: Tensor, *, normalize: bool = False) -> Tensor:
        """Text features, (B, E)."""
        return self.text(tokens, normalize=normalize)

    def forward(self, images: Tensor, tokens: Tensor, groups: ImageGroups = None) -> dict[str, Tensor]:
        """Encode image and caption pairs: `image_features`, `text_features`, `logit_scale`."""
        return {
            "image_features": self.encode_image(images, groups=groups),
            "text_features": self.encode_text(tokens),
            "logit_scale": self.clip.logit_scale.exp(),  # pyright: ignore[reportCallIssue, reportAttributeAccessIssue]
        }

    def prompt_parameters(self) -> list[nn.Parameter]:
        """Every parameter of the prompts; independent ones of the built-in kinds have one a tower."""
        return [*self.vision.prompts.parameters(), *self.text.prompts.parameters()]

    def encoder_parameters(self) -> list[nn.Parameter]:
        """Every parameter of the open_clip model."""
        return list(self.clip.parameters())

    @property
    def prompt_kinds(self) -> dict[str, str]:
        """Qualified name of the kind of prompts, for each tower (`"vision"`, `"text"`) that has your own kind."""
        made = {"vision": type(self.vision.prompts), "text": type(self.text.prompts)}
        return {
            tower: f"{made[tower].__module__}.{made[tower].__qualname__}"
            for tower, factory in self._factories.items()
            if factory is not None
        }

    def prompt_state_dict(self) -> dict[str, Tensor]:
        """The prompts by name, detached: what a prompt file holds."""
        return {name: value for name, value in self.state_dict().items() if not name.startswith("clip.")}

    def load_prompt_state_dict(self, state_dict: Mapping[str, Tensor]) -> None:
        """Set the prompts.

        Raises:
            CheckpointError: Names are missing or unexpected, shapes differ, or values are not finite; all are listed.
        """
        own = self.prompt_state_dict()
        faults = [f"missing {name}" for name in own.keys() - state_dict.keys()]
        faults += [f"unexpected {name}" for name in state_dict.keys() - own.keys()]
        faults += [
            f"{name} has shape {tuple(state_dict[name].shape)}, expected {tuple(own[name].shape)}"
            for name in own.keys() & state_dict.keys()
            if state_dict[name].shape != own[name].shape
        ]
        if faults:
            raise CheckpointError(
                f"these prompts do not fit this model: {'; '.join(sorted(faults))}. Wrap the "
                "architecture that they were trained for with the PromptConfig that they were trained with"
            )
        if harmed := sorted(name for name, value in state_dict.items() if not is_finite({name: value})):
            raise CheckpointError(f"{', '.join(harmed)} hold NaN or infinity; the training that they are from diverged")
        self.load_state_dict(dict(state_dict), strict=False)

    @contextmanager
    def disabled(self) -> Generator[None, None, None]:
        """Run both towers bare inside the block, only in the calling thread.

        Do not train in it with gradient checkpointing: the backward pass runs blocks again, and with their prompts.
        """
        with self.vision.disabled(), self.text.disabled():
            yield

    def detach(self) -> nn.Module:
        """Take the prompts out of the open_clip model and return it as it was.

        `attach` makes others; `model.vision.attach()` and `model.text.attach()` put the same back.
        """
        self.vision.detach()
        self.text.detach()
        return self.clip

    def print_trainable_parameters(self) -> None:
        """Write to standard output how many parameters train now, and what share of all that is."""
        trainable = sum(parameter.numel() for parameter in self.parameters() if parameter.requires_grad)
        total = sum(parameter.numel() for parameter in self.parameters())
        sys.stdout.write(f"trainable: {trainable:,} of {total:,} parameters ({trainable / total:.3%})\n")

    @property
    def prompt_sets(self) -> tuple[str, ...]:
        """Names of the sets of prompts that the model holds, the first one's `"default"`."""
        return tuple(self._prompt_sets)

    @property
    def prompts_in_use(self) -> str:
        """Name of the set that `encode_image` and `encode_text` use, and that is saved and trained."""
        return self._prompts_in_use

    def add_prompts(self, name: str, prompts: str | Path | PromptConfig, **access: "Unpack[Access]") -> None:
        """Hold another set of prompts for the same encoders, which are not copied; `use` switches to it.

        Args:
            name: What to call it.
            prompts: A folder or a Hub repository of prompts that were trained with these encoders, or the
                configuration of new ones, which start when they are first used.
            **access: `revision`, `token`, `cache_dir` and `local_files_only` of a repository, as for `load_prompts`.

        Raises:
            ValueError: The name is empty, or a set has it already.
            CheckpointError: The prompts belong to other encoders, are of another kind, or are corrupt.
            HubError: The repository is not there, or cannot be reached.
        """
        if not isinstance(name, str) or not name:  # pyright: ignore[reportUnnecessaryIsInstance]
            raise ValueError(f"name is {name!r}, expected some text to call the prompts by")
        if name in self._prompt_sets:
            raise ValueError(f"prompts {name!r} are there already; the model holds {', '.join(self._prompt_sets)}")
        if isinstance(prompts, PromptConfig):
            self._prompt_sets[name] = (prompts, {})
            return
        files = read_prompts(Repository(prompts, **access), with_encoders=False)
        check_clip(files, self.clip, "held")
        check_kinds(files.manifest, self.prompt_kinds)
        self._prompt_sets[name] = (files.manifest.prompts, dict(files.tensors))

    def use(self, name: str) -> None:
        """Switch to another set of prompts; what was learned in the one before is kept.

        The prompts are other parameters afterwards, so make new optimisers. Threads that infer at the same time may see
        the text prompts of one set with the image prompts of the other.

        Args:
            name: One of `prompt_sets`.

        Raises:
            KeyError: There is no set of that name.
            ValueError: The set's configuration is refused, as by `PromptedCLIP`; the one before stays in use.
        """
        if name not in self._prompt_sets:
            raise KeyError(f"there are no prompts {name!r}; the model holds {', '.join(self._prompt_sets)}")
        if name == self._prompts_in_use:
            return
        kept = (self.config, {key: value.clone() for key, value in self.prompt_state_dict().items()})
        before = self.vision
        trained = {key: parameter.requires_grad for key, parameter in self.named_parameters()}
        try:
            self._switch(*self._prompt_sets[name])
        except Exception:
            if self.vision is not before:
                self._switch(*kept)
            raise
        finally:
            for key, parameter in self.named_parameters():
                parameter.requires_grad_(trained.get(key, True))
        self._prompt_sets[self._prompts_in_use] = kept
        self._prompts_in_use = name

    def _switch(self, config: PromptConfig, tensors: dict[str, Tensor]) -> None:
        self.attach(config, initialize=not tensors)
        if tensors:
            self.load_prompt_state_dict(tensors)


load_prompts: Final = PromptedCLIP.from_pretrained
