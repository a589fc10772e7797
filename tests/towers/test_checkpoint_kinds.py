"""Kinds of checkpoints that are added from outside."""

import pytest

from promptreid.towers.checkpoint_kinds import CheckpointKind


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"mark": "(", "name": str}, "mark of 'ours' is not a regular expression"),
        ({"mark": "a", "name": str, "lacks": ("token_embedding.weight",)}, "lacks token_embedding.weight, but base is"),
    ],
)
def test_kind_that_cannot_work_is_refused(settings, words):
    with pytest.raises(ValueError, match=words):
        CheckpointKind("ours", **settings)
