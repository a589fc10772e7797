"""An index from outside the package: everything a gallery does goes through it."""

import math

import pytest
import torch
from safetensors.torch import load_file, save_file

from promptreid import Gallery
from promptreid.errors import CheckpointError
from promptreid.retrieval.filters import matcher


class ListIndex:
    """A plain-Python index."""

    def __init__(self):
        self.rows = {}
        self.searches = 0

    def add(self, images, features):
        assert features.dtype in (torch.float32, torch.float16)
        for number, known, feature in zip(images.ids.tolist(), images.metadata, features.tolist(), strict=True):
            assert number not in self.rows
            self.rows[number] = (known, feature)

    def remove(self, ids):
        for number in ids:
            del self.rows[number]

    def search(self, queries, k, *, where=None):
        self.searches += 1
        matches = matcher(where or {})
        return [
            sorted(
                (
                    (number, sum(a * b for a, b in zip(query, feature, strict=True)))
                    for number, (known, feature) in self.rows.items()
                    if matches(known)
                ),
                key=lambda found: -found[1],
            )[:k]
            for query in queries.tolist()
        ]


def found(hits):
    return [(hit.id, hit.path, hit.index, dict(hit.metadata), pytest.approx(hit.score, abs=1e-5)) for hit in hits]


@pytest.fixture
def pair(model, folder, tmp_path):
    """The same gallery with the exact index and with the foreign one."""
    exact = Gallery.build(model, folder, directory=tmp_path / "exact", progress=False)
    return exact, Gallery.build(model, folder, directory=tmp_path / "own", index=ListIndex(), progress=False)


def test_index_gets_features_of_another_precision_as_float32():
    own = ListIndex()
    gallery = Gallery(None, ["a"], torch.eye(1, 4, dtype=torch.float64), index=own)
    gallery.add_features(torch.eye(4, dtype=torch.bfloat16)[1:], ["b", "c", "d"])
    assert len(own.rows) == 4


def assert_same(exact, own):
    cameras = sorted({known["folder"] for known in exact.metadata})
    query = exact.features[len(exact) // 2]
    for where in (None, {"folder": cameras[0]}, {"folder": cameras}, lambda known: known["folder"] == cameras[-1]):
        assert found(own.search(query, 7, where=where)) == found(exact.search(query, 7, where=where))
    several = own.search(["a man in a red coat", "a woman with a bag"], 5)
    expected = exact.search(["a man in a red coat", "a woman with a bag"], 5)
    assert [found(hits) for hits in several] == [found(hits) for hits in expected]


def test_gallery_with_a_foreign_index_is_searched_by_it(pair):
    exact, own = pair
    assert_same(exact, own)
    assert own._store.snapshot()[1].searches == 5
    best = own.search("a man", 1)[0].score
    assert len(own.search("a man", 24, threshold=best)) == 1


def test_gallery_tells_a_foreign_index_of_every_change(pair, folder):
    exact, own = pair
    (folder / "new").mkdir()
    image = next(folder.rglob("*.jpg"))
    (folder / "new" / "one.jpg").write_bytes(image.read_bytes())
    changed, gone = sorted(folder.rglob("*.jpg"))[3:5]
    changed.write_bytes(image.read_bytes())
    gone.unlink()
    for gallery in pair:
        changes = gallery.update(folder, prune=True, progress=False)
        assert (changes.added, changes.changed, changes.removed) == (1, 1, 1)
        assert gallery.remove([0, 7]) == 2
    assert_same(exact, own)
    assert sorted(own._store.snapshot()[1].rows) == sorted(exact.ids.tolist())


def test_gallery_is_loaded_into_a_foreign_index(pair, model):
    exact, own = pair
    assert_same(exact, Gallery.load(own.directory, model, index=ListIndex()))
    assert_same(exact, Gallery.load(own.directory, model))
    features = torch.nn.functional.normalize(exact.features, dim=-1)
    assert_same(exact, Gallery(model, exact.paths, features, metadata=exact.metadata, index=ListIndex()))


def test_image_that_an_index_finds_after_its_removal_is_left_out(pair):
    _, own = pair
    index = own._store.snapshot()[1]
    row = index.rows[4]
    own.remove([4])
    index.rows[4] = row  # as if the search had begun before the removal
    assert 4 not in [hit.id for hit in own.search("a man", 23)]


def test_gallery_with_a_foreign_index_refuses_features_and_scores_that_are_not_finite(pair, monkeypatch, tmp_path):
    _, own = pair
    monkeypatch.setattr(ListIndex, "search", lambda *_, **__: [[(0, 0.5), (1, math.nan)]])
    with pytest.raises(CheckpointError, match="the index scores image 1 NaN or infinity"):
        own.search("a man", 2)
    (file,) = (tmp_path / "own").glob("features-*.safetensors")
    tensors = load_file(file)
    tensors["features"][3, 0] = math.nan
    save_file(tensors, file)
    with pytest.raises(CheckpointError, match="features of the gallery hold NaN or infinity"):
        Gallery.load(tmp_path / "own", index=ListIndex())
