"""An open_clip model with prompts in both towers: what it computes, without files and the Hub."""

import sys
from collections.abc import Callable, Generator, Mapping
from contextlib import contextmanager
from functools import cached_property
from typing import Any

from torch import Tensor, nn

from promptreid.data.transforms import eval_transform, train_transform
from promptreid.errors import CheckpointError
from promptreid.model.text import PromptedTextEncoder
from promptreid.model.vision import PromptedVisionEncoder
from promptreid.prompts.config import PromptConfig
from promptreid.towers.features import feature_size_of, image_size_of, image_statistics_of
from promptreid.towers.fingerprint import fingerprint, weight_samples
from promptreid.towers.loading import ClipSource, source_of
from promptreid.towers.tokenizer import load_tokenizer
from promptreid.towers.tower import refuse_compiled


class DualEncoder(nn.Module):
    """What a `PromptedCLIP` computes with: an open_clip model and the prompts of its image and its text encoder.

    It knows nothing of files and the Hub, so that what saves, loads and publishes can be built on it; `PromptedCLIP`
    adds those as methods, and is what to make. Arguments, attributes and shapes are explained there.

    Args:
        clip: An open_clip model.
        config: Lengths, depths and initialisation of the prompts.
        source: Where the model came from; known already if it is from `load_clip`.
        sequence_first: Keep frozen attention fast (values change by rounding only).
        trim: Cut captions to the longest of a batch where that is exact.
        initialize: Start the prompts; `False` leaves them zero, for a loader that sets them.
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
        super().__init__()
        config = PromptConfig() if config is None else config
        if not isinstance(config, PromptConfig):  # pyright: ignore[reportUnnecessaryIsInstance]
            raise TypeError(f"config is {config!r}, expected a PromptConfig, such as PromptConfig(text_length=4)")
        refuse_compiled(clip)
        self.source: ClipSource | None = source_of(clip) if source is None else source
        self.base_fingerprint: tuple[float, ...] = fingerprint(clip)
        self.base_samples: dict[str, Tensor] | None = weight_samples(clip)
        self._setup: dict[str, bool] = {"sequence_first": sequence_first, "trim": trim}
        self._wrap(clip, config, initialize=initialize)
        self.clip = clip

    def attach(self, config: PromptConfig, *, initialize: bool = True) -> None:
        """Take the prompts out and put others in, which are set up as `config` says.

        Args:
            config: Lengths, depths and initialisation.
            initialize: Start them; `False` leaves them zero.

        Raises:
            ValueError: The configuration does not fit the towers; the open_clip model is bare then.
        """
        self.detach()
        self._wrap(self.clip, config, initialize=initialize)
        self.train(self.training)

    def _wrap(self, clip: nn.Module, config: PromptConfig, *, initialize: bool) -> None:
        self.config: PromptConfig = config
        self.vision: PromptedVisionEncoder = PromptedVisionEncoder(
            clip,
            config.vision_length,
            depth=config.vision_depth,
            position_embedding=config.position_embedding,
            initialization=config.vision_initialization if initialize else None,
            place=config.vision_place,
            sequence_first=self._setup["sequence_first"],
        )
        try:
            self.text: PromptedTextEncoder = PromptedTextEncoder(
                clip,
                config.text_length,
                depth=config.text_depth,
                position_embedding=config.position_embedding,
                initialization=config.text_initialization if initialize else None,
                slot=config.text_slot,
                sequence_first=self._setup["sequence_first"],
                trim=self._setup["trim"],
            )
        except Exception:
            self.vision.detach()
            raise

    @property
    def image_size(self) -> tuple[int, int]:
        """(height, width) in pixels."""
        return image_size_of(self.clip)

    @property
    def image_mean(self) -> tuple[float, ...]:
        """Mean per channel that images are normalised with."""
        return image_statistics_of(self.clip)[0]

    @property
    def image_std(self) -> tuple[float, ...]:
        """Standard deviation per channel that images are normalised with."""
        return image_statistics_of(self.clip)[1]

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
        return load_tokenizer(self.source)

    @property
    def train_transform(self) -> Callable[[Any], Tensor]:
        """Augmenting transform, PIL image to normalised (3, H, W)."""
        return train_transform(self.image_size, mean=self.image_mean, std=self.image_std)

    @property
    def eval_transform(self) -> Callable[[Any], Tensor]:
        """Transform for evaluation and search, PIL image to normalised (3, H, W); nothing is cropped away."""
        return eval_transform(self.image_size, mean=self.image_mean, std=self.image_std)

    def encode_image(self, images: Tensor, *, normalize: bool = False) -> Tensor:
        """Image features, (B, E)."""
        return self.vision(images, normalize=normalize)

    def encode_text(self, tokens: Tensor, *, normalize: bool = False) -> Tensor:
        """Text features, (B, E)."""
        return self.text(tokens, normalize=normalize)

    def forward(self, images: Tensor, tokens: Tensor) -> dict[str, Tensor]:
        """Encode image and caption pairs: `image_features`, `text_features`, `logit_scale`."""
        return {
            "image_features": self.encode_image(images),
            "text_features": self.encode_text(tokens),
            "logit_scale": self.clip.logit_scale.exp(),  # pyright: ignore[reportCallIssue, reportAttributeAccessIssue]
        }

    def prompt_parameters(self) -> list[nn.Parameter]:
        """The prompts of both towers."""
        return [*self.vision.prompts.parameters(), *self.text.prompts.parameters()]

    def encoder_parameters(self) -> list[nn.Parameter]:
        """Every parameter of the open_clip model."""
        return list(self.clip.parameters())

    def prompt_state_dict(self) -> dict[str, Tensor]:
        """The prompts by name, detached: what a prompt file holds."""
        return {name: value for name, value in self.state_dict().items() if not name.startswith("clip.")}

    def load_prompt_state_dict(self, state_dict: Mapping[str, Tensor]) -> None:
        """Set the prompts.

        Raises:
            CheckpointError: Names are missing or unexpected, or shapes differ; all of them are listed.
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
                f"these prompts do not fit this model: {'; '.join(sorted(faults))}. Shapes are (blocks, prompts, "
                "width): wrap the architecture they were trained for with the PromptConfig they were trained with"
            )
        self.load_state_dict(dict(state_dict), strict=False)

    @contextmanager
    def disabled(self) -> Generator[None, None, None]:
        """Run both towers bare inside the block, in the calling thread alone."""
        with self.vision.disabled(), self.text.disabled():
            yield

    def detach(self) -> nn.Module:
        """Take the prompts out of the open_clip model for good and return it as it was."""
        self.vision.detach()
        self.text.detach()
        return self.clip

    def print_trainable_parameters(self) -> None:
        """Write to standard output how many parameters train now, and what share of all that is."""
        trainable = sum(parameter.numel() for parameter in self.parameters() if parameter.requires_grad)
        total = sum(parameter.numel() for parameter in self.parameters())
        sys.stdout.write(f"trainable: {trainable:,} of {total:,} parameters ({trainable / total:.3%})\n")
