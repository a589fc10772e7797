"""The cache of decoded pictures: right pixels, and never half a file in use."""

import copy
import json
import os
import pickle
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from promptreid.data import image_cache
from promptreid.data.image_cache import ImageCache, build_image_cache, cache_bytes, digest_files
from promptreid.data.images import open_image
from promptreid.data.transforms import fit_image
from promptreid.errors import DatasetError

SIZE = (24, 12)


@pytest.fixture
def paths(tmp_path: Path, draw_picture) -> list[Path]:
    return [draw_picture(tmp_path / "imgs" / f"{number}.png", seed=number, size=(40, 17)) for number in range(7)]


def build(paths: list[Path], folder: Path, **settings) -> ImageCache:
    return build_image_cache(paths, folder, **{"image_size": SIZE, "progress": False, **settings})


def pixel_files(folder: Path) -> list[Path]:
    return sorted(folder.glob("*.uint8"))


def test_build_image_cache_holds_what_decoding_gives(paths: list[Path], tmp_path: Path) -> None:
    cache = build(paths, tmp_path / "cache")
    assert len(cache) == 7
    for path in paths:
        assert path in cache
        assert torch.equal(cache[path], fit_image(open_image(path), SIZE))
    rows = cache.rows(paths[::-1])
    assert torch.equal(cache.pixels[int(rows[0])], cache[paths[-1]])
    assert cache.path.stat().st_size == cache_bytes(7, SIZE) == 7 * 3 * 24 * 12


def test_build_image_cache_what_it_gives_is_a_copy(paths: list[Path], tmp_path: Path) -> None:
    cache = build(paths, tmp_path / "cache")
    before = cache[paths[0]].clone()
    cache[paths[0]].zero_()
    assert torch.equal(cache[paths[0]], before)


def test_build_image_cache_second_time_decodes_nothing(
    paths: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = build(paths, tmp_path / "cache")
    monkeypatch.setattr(image_cache, "_decode", lambda *_: pytest.fail("decoded again"))
    monkeypatch.setattr(image_cache, "_digest", lambda *_: pytest.fail("read again"))
    again = build(paths[::-1], tmp_path / "cache")
    assert again.path == first.path
    assert torch.equal(again[paths[3]], first[paths[3]])


def test_build_image_cache_changed_image_is_decoded_again(paths: list[Path], tmp_path: Path, draw_picture) -> None:
    build(paths, tmp_path / "cache")
    draw_picture(paths[2], seed=99, size=(40, 17))
    cache = build(paths, tmp_path / "cache")
    assert torch.equal(cache[paths[2]], fit_image(open_image(paths[2]), SIZE))
    assert len(pixel_files(tmp_path / "cache")) == 2


def test_build_image_cache_changed_image_alone_is_decoded_again(
    paths: list[Path], tmp_path: Path, draw_picture, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = build(paths, tmp_path / "cache")
    draw_picture(paths[2], seed=99, size=(40, 17))
    read, decoded = [], []
    digest, decode = image_cache._digest, image_cache._decode
    monkeypatch.setattr(image_cache, "_digest", lambda path: read.append(path) or digest(path))
    monkeypatch.setattr(image_cache, "_decode", lambda path, size: decoded.append(path) or decode(path, size))
    cache = build(paths, tmp_path / "cache")
    assert read == decoded == [paths[2]]
    for path in paths:
        assert torch.equal(cache[path], fit_image(open_image(path), SIZE))
    assert torch.equal(cache[paths[0]], before[paths[0]])


def test_build_image_cache_of_an_earlier_version_is_used_and_not_copied_from(
    paths: list[Path], tmp_path: Path, draw_picture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Manifests of 0.1.0 do not list their images."""
    first = build(paths, tmp_path / "cache")
    manifest = json.loads(first.path.with_suffix(".json").read_text(encoding="utf-8"))
    manifest = {key: manifest[key] for key in ("format_version", "bytes", "bad")}
    first.path.with_suffix(".json").write_text(json.dumps(manifest), encoding="utf-8")
    with monkeypatch.context() as patch:
        patch.setattr(image_cache, "_decode", lambda *_: pytest.fail("decoded again"))
        assert build(paths, tmp_path / "cache").path == first.path
    draw_picture(paths[2], seed=99, size=(40, 17))
    cache = build(paths, tmp_path / "cache")
    assert torch.equal(cache[paths[1]], first[paths[1]])
    assert torch.equal(cache[paths[2]], fit_image(open_image(paths[2]), SIZE))


def test_build_image_cache_other_size_is_another_file(paths: list[Path], tmp_path: Path) -> None:
    build(paths, tmp_path / "cache")
    cache = build(paths, tmp_path / "cache", image_size=(12, 24))
    assert cache[paths[0]].shape == (3, 12, 24)
    assert len(pixel_files(tmp_path / "cache")) == 2


def test_build_image_cache_other_interpolation_is_another_file_and_shares_no_pixels(paths, tmp_path: Path) -> None:
    build(paths, tmp_path / "cache")
    cache = build(paths, tmp_path / "cache", interpolation="bilinear")
    assert torch.equal(cache[paths[0]], fit_image(open_image(paths[0]), SIZE, "bilinear"))
    again = build(paths[:3], tmp_path / "cache")
    assert torch.equal(again[paths[0]], fit_image(open_image(paths[0]), SIZE))
    with pytest.raises(ValueError, match="interpolation is 'nearest', expected one of bicubic, bilinear"):
        build(paths, tmp_path / "cache", interpolation="nearest")


def test_build_image_cache_equal_images_are_stored_once(paths: list[Path], tmp_path: Path) -> None:
    paths[5].write_bytes(paths[0].read_bytes())
    cache = build([*paths, paths[0]], tmp_path / "cache")
    assert cache.path.stat().st_size == cache_bytes(6, SIZE)
    assert torch.equal(cache[paths[5]], cache[paths[0]])


@pytest.mark.parametrize("damage", ["cut", "no manifest", "manifest is rubbish", "digests are rubbish", "empty"])
def test_build_image_cache_damaged_cache_is_built_again(paths: list[Path], tmp_path: Path, damage: str) -> None:
    cache = build(paths, tmp_path / "cache")
    manifest = cache.path.with_suffix(".json")
    if damage == "cut":
        cache.path.write_bytes(cache.path.read_bytes()[:-1])
    elif damage == "empty":
        cache.path.write_bytes(b"")
    elif damage == "no manifest":
        manifest.unlink()
    elif damage == "manifest is rubbish":
        manifest.write_text("[]", encoding="utf-8")
    else:
        (tmp_path / "cache" / "digests.json").write_text('{"a": 3}', encoding="utf-8")
    again = build(paths, tmp_path / "cache")
    assert torch.equal(again[paths[6]], fit_image(open_image(paths[6]), SIZE))


@pytest.mark.parametrize("name", ["pixels", "manifest", "index"])
def test_build_image_cache_mutated_files_are_never_used(paths: list[Path], tmp_path: Path, name: str) -> None:
    """60 mutations of every file that a cache consists of: bytes changed, swapped, cut out or repeated."""
    paths[3].write_bytes(b"rubbish")
    with pytest.warns(UserWarning, match="1 of 7 images"):
        sound = build(paths, tmp_path / "cache", on_bad="skip")
    path = {
        "pixels": sound.path,
        "manifest": sound.path.with_suffix(".json"),
        "index": tmp_path / "cache" / "digests.json",
    }[name]
    before = path.read_bytes()
    expected = {path: fit_image(open_image(path), SIZE) for path in paths if path != paths[3]}
    random = np.random.default_rng(0)
    for number in range(60):
        content = bytearray(before)
        a, b = sorted(random.integers(0, len(content), 2).tolist())
        content[a:b] = [b"", content[a:b] * 2, content[a:b][::-1], bytes(b - a)][number % 4] if number % 5 else b"\x00"
        content[a:a] = b"1" if bytes(content) == before else b""
        path.write_bytes(content)
        with pytest.warns(UserWarning, match="1 of 7 images"):
            cache = build(paths, tmp_path / "cache", on_bad="skip")
        assert all(torch.equal(cache[path], pixels) for path, pixels in expected.items())


def test_build_image_cache_index_that_gives_an_image_another_digest_is_forgotten(
    paths: list[Path], tmp_path: Path
) -> None:
    build(paths, tmp_path / "cache")
    index = tmp_path / "cache" / "digests.json"
    known = json.loads(index.read_text(encoding="utf-8"))
    first, second = (str(path.absolute()) for path in paths[:2])
    known[first][2], known[second][2] = known[second][2], known[first][2]
    index.write_text(json.dumps(known), encoding="utf-8")
    cache = build(paths, tmp_path / "cache")
    assert torch.equal(cache[paths[0]], fit_image(open_image(paths[0]), SIZE))


def test_build_image_cache_copied_elsewhere_is_used(
    paths: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sound = build(paths, tmp_path / "cache")
    os.utime(sound.path, ns=(1, 1))
    monkeypatch.setattr(image_cache, "_decode", lambda *_: pytest.fail("decoded again"))
    assert torch.equal(build(paths, tmp_path / "cache")[paths[2]], sound[paths[2]])


def test_build_image_cache_bad_images_strict_raises_with_the_list(paths: list[Path], tmp_path: Path) -> None:
    paths[1].write_bytes(b"rubbish")
    paths[4].unlink()
    with pytest.raises(DatasetError, match=r"2 of 7 images cannot be used; copy them .*1\.png .*4\.png cannot be read"):
        build(paths, tmp_path / "cache")


def test_build_image_cache_bad_images_skip_leaves_them_out(paths: list[Path], tmp_path: Path) -> None:
    paths[1].write_bytes(b"rubbish")
    paths[4].unlink()
    for _ in range(2):  # built, and read again
        with pytest.warns(UserWarning, match=r"2 of 7 images cannot be used and are left out: .*1\.png") as caught:
            cache = build(paths, tmp_path / "cache", on_bad="skip")
        assert caught[0].filename == __file__
        assert set(cache.bad) == {paths[1], paths[4]}
        assert paths[1] not in cache
        assert len(cache) == 5
    with pytest.raises(DatasetError, match="2 of 7 images cannot be used"):
        build(paths, tmp_path / "cache")
    with pytest.raises(KeyError, match=r"1 of 2 images are not in the cache .*such as .*1\.png; build it for these"):
        cache.rows(paths[:2])


def test_build_image_cache_image_that_could_not_be_decoded_is_tried_again(
    paths: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The content stays the same: the disk failed for a moment, or a decoder was missing."""
    paths[1].write_bytes(b"rubbish")
    decode = image_cache._decode

    def flaky(path: Path, wanted: Any) -> Any:
        return "Input/output error" if path in paths[3:5] else decode(path, wanted)

    with monkeypatch.context() as patch:
        patch.setattr(image_cache, "_decode", flaky)
        with pytest.raises(DatasetError, match=r"3 of 7 images cannot be used.* Input/output error"):
            build(paths, tmp_path / "cache")
    with pytest.warns(UserWarning, match=r"1 of 7 images cannot be used and are left out: .*1\.png"):
        cache = build(paths, tmp_path / "cache", on_bad="skip")
    assert set(cache.bad) == {paths[1]}
    for path in (*paths[:1], *paths[2:]):
        assert torch.equal(cache[path], fit_image(open_image(path), SIZE))
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "cache").iterdir()}
    with pytest.warns(UserWarning, match="1 of 7 images"):  # and nothing is written where nothing is new
        build(paths, tmp_path / "cache", on_bad="skip")
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "cache").iterdir()} == before


@pytest.mark.parametrize(
    ("name", "error"), [("locked", PermissionError), ("flush", OSError), ("_write_object", OSError)]
)
def test_build_image_cache_that_cannot_be_written_is_used_as_it_is(
    paths: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, error: type[OSError]
) -> None:
    decode = image_cache._decode
    with monkeypatch.context() as patch:
        patch.setattr(image_cache, "_decode", lambda path, wanted: "bad" if path == paths[3] else decode(path, wanted))
        with pytest.warns(UserWarning, match="1 of 7 images"):
            build(paths, tmp_path / "cache", on_bad="skip")

    def refuse(*_: Any, **__: Any) -> Any:
        raise error("no")

    with monkeypatch.context() as patch:
        patch.setattr(image_cache, name, refuse)
        for _ in range(2):
            with pytest.warns(UserWarning, match=r"1 of 7 images .*3\.png"):
                cache = build(paths, tmp_path / "cache", on_bad="skip")
        patch.setattr(image_cache, "_decode", lambda *_: "bad")
        patch.setattr(image_cache, "_digest", refuse)  # as slow as the pixels are many, so not whenever it is opened
        with pytest.warns(UserWarning, match="1 of 7 images"):
            build(paths, tmp_path / "cache", on_bad="skip")
    assert torch.equal(cache[paths[0]], fit_image(open_image(paths[0]), SIZE))
    monkeypatch.setattr(image_cache, "_build", refuse)  # the cache is still whole
    assert torch.equal(build(paths, tmp_path / "cache")[paths[3]], fit_image(open_image(paths[3]), SIZE))


def test_build_image_cache_disk_too_small_raises_before_it_writes(
    paths: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = type("Usage", (), {"free": 1000})()
    monkeypatch.setattr(image_cache.shutil, "disk_usage", lambda _: usage)
    with pytest.raises(DatasetError, match=r"7 images at 24x12 takes 0\.00 GB, but only 0\.00 GB are free in"):
        build(paths, tmp_path / "cache")
    assert pixel_files(tmp_path / "cache") == []


def test_build_image_cache_says_what_it_needs_first(
    paths: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    build(paths, tmp_path / "cache", progress=True)
    assert "decoding 7 images once: 0.00 GB in" in capsys.readouterr().out
    build(paths, tmp_path / "cache", progress=True)
    assert "decoding" not in capsys.readouterr().out


def test_build_image_cache_interrupted_leaves_no_file(
    paths: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(image_cache, "_decode", interrupt)
    with pytest.raises(KeyboardInterrupt):
        build(paths, tmp_path / "cache")
    assert {path.suffix for path in (tmp_path / "cache").iterdir()} == {".json", ".lock"}  # digests and the lock


SLOW_BUILD = """
import sys, time
from pathlib import Path
from typing import Any
from promptreid.data import image_cache
decode, folder = image_cache._decode, Path(sys.argv[1])
def slow(path, size):
    with (folder / "decoded.txt").open("a") as stream:
        stream.write(path.name + chr(10))
    time.sleep(float(sys.argv[2]))
    return decode(path, size)
image_cache._decode = slow
paths = sorted((folder / "imgs").iterdir())
cache = image_cache.build_image_cache(
    paths, folder / "cache", image_size=(24, 12), num_threads=1, progress=False
)
print(sum(int(cache[path].sum()) for path in paths))
"""


def wait_for(path: Path) -> None:
    for _ in range(1200):
        if path.exists():
            return
        time.sleep(0.05)
    pytest.fail(f"{path} did not appear")


@pytest.mark.posix
def test_build_image_cache_killed_builder_leaves_nothing_in_use(fork: Any, paths: list[Path], tmp_path: Path) -> None:
    process = fork(SLOW_BUILD, tmp_path, 0.5)
    wait_for(tmp_path / "decoded.txt")
    process.kill()
    process.communicate()
    scratch = [path.name for path in (tmp_path / "cache").iterdir() if path.name.startswith(".images-")]
    assert len(scratch) == 1
    assert pixel_files(tmp_path / "cache") == []
    cache = build(paths, tmp_path / "cache")
    assert torch.equal(cache[paths[0]], fit_image(open_image(paths[0]), SIZE))
    assert scratch[0] not in os.listdir(tmp_path / "cache")  # the leftover is cleared away


@pytest.mark.posix
def test_build_image_cache_clears_what_a_killed_build_of_other_images_left(
    fork: Any, paths: list[Path], tmp_path: Path
) -> None:
    process = fork(SLOW_BUILD, tmp_path, 0.5)
    wait_for(tmp_path / "decoded.txt")
    process.kill()
    process.communicate()
    (scratch,) = (path for path in (tmp_path / "cache").iterdir() if path.name.startswith(".images-"))
    build(paths[:3], tmp_path / "cache")
    assert not scratch.exists()


def test_build_image_cache_two_builders_at_once_build_one_file(fork: Any, paths: list[Path], tmp_path: Path) -> None:
    processes = [fork(SLOW_BUILD, tmp_path, 0.2) for _ in range(2)]
    totals = {process.communicate()[0] for process in processes}
    assert totals == {f"{sum(int(fit_image(open_image(path), SIZE).sum()) for path in paths)}\n"}
    decoded = (tmp_path / "decoded.txt").read_text(encoding="utf-8").split()
    assert sorted(decoded) == [path.name for path in paths]  # the one that waited decoded nothing
    assert len(pixel_files(tmp_path / "cache")) == 1


def test_image_cache_pickled_sends_no_pixels(paths: list[Path], tmp_path: Path) -> None:
    cache = build(paths, tmp_path / "cache", image_size=(300, 200))
    cache[paths[0]]
    assert len(pickle.dumps(cache.pixels)) < 1000
    again = pickle.loads(pickle.dumps(cache))
    assert torch.equal(again[paths[1]], cache[paths[1]])
    assert torch.equal(copy.deepcopy(cache)[paths[2]], cache[paths[2]])


def test_build_image_cache_nothing_to_build_raises(tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match="there are no images to build a cache of"):
        build([], tmp_path)


def test_build_image_cache_bad_arguments_raise(paths: list[Path], tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="on_bad is 'no', expected 'strict' or 'skip'"):
        build(paths, tmp_path, on_bad="no")
    with pytest.raises(ValueError, match="image_size is"):
        build(paths, tmp_path, image_size=(0, 3))


def test_digests_are_kept_by_size_and_time(paths: list[Path], tmp_path: Path) -> None:
    folder = tmp_path / "cache"
    folder.mkdir()
    first = digest_files(paths, folder, progress=False)
    assert len(set(first)) == 7
    os.utime(paths[0], ns=(1, 1))  # only the time changed: read again, the same digest
    assert digest_files(paths, folder, progress=False) == first
    assert json.loads((folder / "digests.json").read_text(encoding="utf-8"))[str(paths[0].absolute())][1] == 1
    paths[1].write_bytes(b"other")
    assert digest_files(paths, folder, progress=False)[1] != first[1]
