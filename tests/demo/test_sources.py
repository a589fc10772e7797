from collections.abc import Callable
from pathlib import Path

import pytest

from promptreid import Gallery, PromptedCLIP
from promptreid.demo.sources import (
    DRAWN_EXAMPLES,
    DRAWN_NAME,
    Opened,
    encode_crops,
    open_indexed,
    short_description,
    stays_inside,
)
from promptreid.errors import DatasetError
from promptreid.synthetic import load_scenes

Paint = Callable[..., Path]
RED = (190, 36, 40)


def test_encode_crops_takes_images_below_and_nothing_else(model: PromptedCLIP, tmp_path: Path, paint: Paint) -> None:
    first, second = paint(tmp_path / "a" / "1.PNG", RED), paint(tmp_path / "b" / "c" / "2.webp", RED)
    (tmp_path / "notes.txt").write_text("no image", encoding="utf-8")
    paint(tmp_path / ".trash" / "3.png", RED)  # hidden, as for `Gallery.build`
    opened = encode_crops(tmp_path, model, progress=False)
    assert opened.gallery.paths == (first, second)
    assert [known["folder"] for known in opened.gallery.metadata] == ["a", "b/c"]
    assert (opened.name, opened.root, opened.described) == (tmp_path.name, tmp_path, {})


def test_crops_that_may_be_photographs_are_not_for_the_shipped_model(
    model: PromptedCLIP, tmp_path: Path, paint: Paint
) -> None:
    paint(tmp_path / "imgs" / "1.png", RED)
    words = "The base of this model, promptreid-tiny, was trained on drawings only: photographs need another one."
    assert encode_crops(tmp_path / "imgs", model, progress=False).note == words
    gallery = Gallery.build(model, tmp_path / "imgs", progress=False)
    assert open_indexed(gallery).note == words
    (tmp_path / "generated.json").write_text("{}", encoding="utf-8")  # as beside drawn people
    assert encode_crops(tmp_path / "imgs", model, progress=False).note == open_indexed(gallery).note == ""


def test_encode_crops_leaves_links_out_of_the_folder_out_and_says_so(
    model: PromptedCLIP, tmp_path: Path, paint: Paint
) -> None:
    outside, folder = paint(tmp_path / "private" / "me.png", RED), tmp_path / "gallery"
    inside = paint(folder / "1.png", RED)
    (folder / "link.png").symlink_to(outside)
    (folder / "again.png").symlink_to(inside)
    with pytest.warns(UserWarning, match="1 links in .*gallery lead out of it"):
        opened = encode_crops(folder, model, progress=False)
    assert [path.name for path in opened.gallery.paths] == ["1.png", "again.png"]


def test_encode_crops_without_folder_or_image_is_refused(model: PromptedCLIP, tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match=r"there is no folder .*nowhere; give a folder of images"):
        encode_crops(tmp_path / "nowhere", model)
    (tmp_path / "notes.txt").write_text("no image", encoding="utf-8")
    with pytest.raises(
        DatasetError, match=r"has no images \(\.jpg, .*\) in it or below; give the folder that holds the crops"
    ):
        encode_crops(tmp_path, model)
    (tmp_path / "1.png").write_bytes(b"broken")
    with pytest.raises(DatasetError, match="none of the 1 images can be read"):
        encode_crops(tmp_path, model, progress=False)


def test_open_indexed_encodes_nothing_and_finds_the_folder_of_the_images(
    model: PromptedCLIP, tmp_path: Path, paint: Paint, monkeypatch: pytest.MonkeyPatch
) -> None:
    paths = [paint(tmp_path / "crops" / camera / "1.png", RED) for camera in ("a", "b")]
    Gallery.build(model, paths, progress=False).save(tmp_path / "index")
    monkeypatch.setattr(PromptedCLIP, "encode_image", None)  # whoever encodes an image fails
    opened = open_indexed(Gallery.load(tmp_path / "index", model))
    assert (opened.name, opened.root) == ("index", tmp_path / "crops")
    assert open_indexed(Gallery(model, [], opened.gallery.features[:0])).root is None  # pyright: ignore


def test_draw_people_are_known_with_what_describes_them(drawn: Opened) -> None:
    people = {known["person_id"] for known in drawn.gallery.metadata}
    assert (drawn.name, len(drawn.gallery), len(people)) == (DRAWN_NAME, 120, 30)
    assert frozenset().union(*drawn.described.values()) == people
    assert drawn.examples == DRAWN_EXAMPLES
    for example in DRAWN_EXAMPLES:
        assert drawn.described[example], example


def test_short_description_fits_everybody_who_looks_like_that(drawn: Opened) -> None:
    assert drawn.root is not None
    images = [image for image in load_scenes(drawn.root) if image.split == "test"]
    fitting = {
        image.person_id
        for image in images
        if (image.scene.person.gender, image.scene.person.upper_colour, image.scene.person.upper_kind)
        == ("man", "green", "jacket")
    }
    assert drawn.described["a man in a green jacket"] == fitting
    assert len(fitting) == 3
    orange = next(image for image in images if image.scene.person.upper_colour == "orange")
    assert " in an orange " in short_description(orange)


def test_stays_inside_follows_links(tmp_path: Path, paint: Paint) -> None:
    outside = paint(tmp_path / "private" / "me.png", RED)
    (tmp_path / "crops").mkdir()
    (tmp_path / "crops" / "link.png").symlink_to(outside)
    assert stays_inside(outside, tmp_path)
    assert not stays_inside(tmp_path / "crops" / "link.png", tmp_path / "crops")
    assert not stays_inside(tmp_path / "crops" / ".." / "private" / "me.png", tmp_path / "crops")
