"""The few exceptions of our own; everything else raises Python's built-in ones."""


class PromptReidError(Exception):
    """Base of every error that promptreid itself defines."""


class UnsupportedTowerError(PromptReidError, TypeError):
    """An open_clip tower of a kind that prompts cannot be put into."""


class AttachmentError(PromptReidError, RuntimeError):
    """Prompts cannot be attached to, or taken off, this model in its present state."""


class DatasetError(PromptReidError, ValueError):
    """A data set's files are missing, malformed or contradict each other."""


class CheckpointError(PromptReidError, ValueError):
    """A file of prompts, weights or training state is corrupt, foreign or does not fit."""


class CorruptFileError(CheckpointError):
    """A file is not what its checksum says; getting it again may help."""


class HubError(PromptReidError, OSError):
    """The Hub cannot be reached, refuses, or does not have what was asked for."""


class MissingExtraError(PromptReidError, ImportError):
    """An optional dependency is not installed; the message says which extra brings it."""
