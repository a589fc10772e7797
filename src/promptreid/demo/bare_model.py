"""The model before it was adapted, which encodes the gallery too once a visitor asks for it."""

import threading
from collections.abc import Collection, Generator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from promptreid.demo.sources import ListedGallery, SearchedGallery
from promptreid.model.base_lookup import make_base
from promptreid.model.prompted_clip import PromptedCLIP
from promptreid.prompts.config import PromptConfig
from promptreid.retrieval.gallery import Gallery
from promptreid.retrieval.table import Hit
from promptreid.towers.fingerprint import fingerprint, same_fingerprint

ADAPTED, BARE = "Adapted model", "Bare model"
_MOST_IMAGES = 2000  # that a click may encode


class BareModel:
    """A model as it was before it was adapted.

    If only prompts were trained, it is the same model without its prompts; if the encoders were fine-tuned too, the
    base is loaded beside it when it is first needed. The images are encoded then, once, and kept only in memory.

    Args:
        model: The adapted model.
        gallery: Its gallery.
    """

    def __init__(self, model: PromptedCLIP, gallery: SearchedGallery) -> None:
        self._model = model
        self._gallery = gallery
        self._listed = gallery if isinstance(gallery, ListedGallery) else None  # Python 3.10 asks for every attribute
        self._is_inside = same_fingerprint(fingerprint(model.clip), model.base_fingerprint)
        self._base: PromptedCLIP | None = None
        self._encoded: Gallery | None = None
        self._turn = threading.RLock()

    @property
    def is_known(self) -> bool:
        """Whether there is such a model: the base has a name, or is inside, and differs from the adapted one."""
        if self._is_inside:
            return self._model.config.text_length + self._model.config.vision_length > 0
        return self._model.source is not None and self._model.source.pretrained is not None

    @property
    def is_offered(self) -> bool:
        """Whether the gallery is also small enough to be encoded for a visitor who waits, and lists its images."""
        return self.is_known and self._listed is not None and len(self._gallery) <= _MOST_IMAGES

    @contextmanager
    def running(self) -> Generator[PromptedCLIP, None, None]:
        """The bare model, only in the calling thread."""
        if self._is_inside:
            with self._model.disabled():
                yield self._model
        else:
            yield self._loaded()

    def search(self, query: Any, k: int, *, where: Any = None) -> list[Hit]:
        """As the gallery's `search`.

        Raises:
            DatasetError: No image can be read any more.
        """
        gallery = self._whole()
        with self.running():
            return gallery.search(query, k, where=where)

    def remove(self, paths: Collection[Path]) -> None:
        """Remove images that were removed from the gallery."""
        with self._turn:
            if self._encoded is not None:
                for path in paths:
                    with suppress(KeyError):  # it could not be read
                        self._encoded.remove([path])

    def __len__(self) -> int:
        return len(self._gallery if self._encoded is None else self._encoded)

    def _loaded(self) -> PromptedCLIP:
        with self._turn:
            source = self._model.source
            if self._base is None and source is not None:
                device = next(self._model.parameters()).device
                base = make_base(source, image_size=self._model.image_size, device=device)
                self._base = PromptedCLIP(base, PromptConfig(text_length=0, vision_length=0)).eval()
            return self._base or self._model

    def _whole(self) -> Gallery:
        """The images as this model encodes them; a second caller waits for the first."""
        with self._turn, self.running() as model:
            if self._encoded is None:
                if self._listed is None:
                    raise ValueError("this gallery does not list its images; the bare model cannot search it")
                paths, metadata = list(self._listed.paths), list(self._listed.metadata)
                self._encoded = Gallery.build(model, paths, metadata=metadata, progress=False)
            return self._encoded
