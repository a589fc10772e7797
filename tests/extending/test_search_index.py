import pytest
import torch


@pytest.fixture
def index_example(run_example):
    return run_example("A search index")


SENTENCES = ["a woman in a red coat with a black backpack", "a man in a blue jacket", "a person with a white bag"]


def test_index_keeps_a_byte_a_dimension_and_ranks_as_the_exact_one_does(index_example):
    from promptreid import Gallery

    foreign = index_example.gallery
    exact = Gallery.build(foreign.model, "crops", progress=False)
    assert index_example.best == foreign.search(SENTENCES[0], k=5)
    for sentence in SENTENCES:
        found, wanted = (gallery.search(sentence, k=len(exact)) for gallery in (foreign, exact))
        scores = {hit.path: hit.score for hit in wanted}
        assert len(found) == len(wanted) == len(exact) > 5
        assert [hit.score for hit in found] == sorted((hit.score for hit in found), reverse=True)
        assert all(abs(scores[hit.path] - hit.score) < 0.01 for hit in found)
        assert found[0].score != wanted[0].score  # it is the foreign index that answered


def test_index_follows_the_gallery(index_example):
    gallery = index_example.gallery
    first, second = gallery.search(SENTENCES[0], k=2)
    gallery.remove([first.path])
    assert gallery.search(SENTENCES[0], k=1)[0].path == second.path
    gallery.add([first.path], progress=False)
    assert gallery.search(SENTENCES[0], k=1)[0].path == first.path


def test_index_filters_by_metadata(index_example):
    gallery = index_example.Gallery(
        None,
        ["a.jpg", "b.jpg", "c.jpg"],
        torch.eye(3),
        metadata=[{"camera": 1}, {"camera": 2}, {"camera": 2}],
        index=index_example.Int8Index(),
    )
    [hit] = gallery.search(torch.tensor([1.0, 0.0, 0.0]), k=1, where={"camera": 1})
    assert str(hit.path) == "a.jpg"
    assert {str(hit.path) for hit in gallery.search(torch.eye(3)[0], k=3, where={"camera": 2})} == {"b.jpg", "c.jpg"}


def test_gallery_is_loaded_with_the_index(index_example, tmp_path):
    gallery = index_example.gallery
    gallery.save(tmp_path / "gallery")
    loaded = index_example.Gallery.load(tmp_path / "gallery", gallery.model, index=index_example.Int8Index())
    assert [hit.score for hit in loaded.search(SENTENCES[1], k=3)] == [
        hit.score for hit in gallery.search(SENTENCES[1], k=3)
    ]
