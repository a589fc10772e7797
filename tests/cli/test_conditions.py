"""Conditions on metadata, as they are written in a shell."""

import pytest
import torch

from promptreid import Gallery
from promptreid.cli.conditions import as_where
from promptreid.retrieval.filters import Prefix


def test_patterns_stand_for_the_values_that_images_have():
    metadata = [{"folder": "cam_1"}, {"folder": "cam_2"}, {"folder": "door"}, {"day": 3}]
    gallery = Gallery(None, ["a", "b", "c", "d"], torch.eye(4), metadata=metadata)
    assert (
        as_where([("folder", "cam*")], None) == as_where([("folder", "cam*")], gallery) == {"folder": [Prefix("cam")]}
    )
    assert as_where([("folder", "*m_?")], gallery) == {"folder": ["cam_1", "cam_2"]}
    assert as_where([("folder", "x*y")], gallery) == {"folder": ["x*y"]}
    assert as_where([("folder", "door"), ("day", "3")], gallery) == {"folder": ["door"], "day": ["3", 3]}
    assert as_where([("day", "9" * 5000)], gallery) == {"day": ["9" * 5000]}


def test_value_that_reads_as_a_pattern_stands_only_for_itself_where_an_image_has_it():
    metadata = [{"folder": "cam[1]"}, {"folder": "cam1"}, {"folder": "what?"}, {"folder": "what1"}]
    gallery = Gallery(None, ["a", "b", "c", "d"], torch.eye(4), metadata=metadata)
    assert as_where([("folder", "cam[1]")], gallery) == {"folder": ["cam[1]"]}
    assert as_where([("folder", "what?")], gallery) == {"folder": ["what?"]}
    assert as_where([("folder", "cam[2]")], gallery) == {"folder": ["cam[2]"]}


def test_beginning_that_reads_as_a_pattern_is_one_where_an_image_has_it():
    metadata = [{"folder": "cam[1]/sub"}, {"folder": "cam1/sub"}, {"folder": "cam2/sub"}]
    gallery = Gallery(None, ["a", "b", "c"], torch.eye(3), metadata=metadata)
    where = [("folder", "cam[1]/*")]
    assert as_where(where, gallery) == as_where(where, None) == {"folder": [Prefix("cam[1]/")]}
    assert as_where([("folder", "cam[2]/*")], gallery) == {"folder": ["cam2/sub"]}


@pytest.mark.parametrize("number", ["1" + "0" * 20, pytest.param("9" * 400, id="no float")])
def test_numbers_of_any_size_are_compared_as_numbers(number):
    metadata = [{"day": 3}, {"day": 2, "id": int(number)}, {"id": 4}]
    gallery = Gallery(None, ["a", "b", "c"], torch.eye(3), metadata=metadata)

    def found(key, value):
        return [str(hit.path) for hit in gallery.search(torch.eye(3)[0], 3, where=as_where([(key, value)], gallery))]

    assert found("id", number) == found("id", f"5..{number}") == ["b"]
    assert sorted(found("day", f"..{number}")) == ["a", "b"]
    with pytest.raises(ValueError, match="no image of the gallery has day"):
        found("day", f"{number}..")
