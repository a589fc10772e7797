"""Files that are taken for weights: each is refused by one line that names it, before its code or its size matters."""

import gzip
import json
import os
import pickle
import re
import struct
import zipfile
from unittest.mock import patch

import pytest
import torch
from safetensors.torch import save, save_file

from promptreid.errors import WeightsError
from promptreid.towers.weight_files import open_weights
from promptreid.towers.weights import read_checkpoint

WEIGHTS = {"visual.conv1.weight": torch.arange(12.0).reshape(3, 4), "ln_final.bias": torch.ones(5)}


class Net(torch.nn.Module):
    """Another model, as TorchScript and as a pickle of its class."""

    def __init__(self):
        super().__init__()
        self.conv1 = torch.nn.Conv2d(3, 4, 3)
        self.fc = torch.nn.Linear(4, 2)

    def forward(self, images):
        return self.fc(self.conv1(images).mean((2, 3)))


class Evil:
    """Makes a file when it is unpickled by what obeys it."""

    def __init__(self, mark):
        self.mark = mark

    def __reduce__(self):
        return (os.mkdir, (str(self.mark),))


def header(values, *, length=None):
    """A file of safetensors with this header, and with another length than its own."""
    text = values if isinstance(values, bytes) else json.dumps(values).encode()
    return struct.pack("<Q", len(text) if length is None else length) + text


def refusal(path, read=open_weights):
    with pytest.raises(WeightsError) as caught:
        read(path)
    said = str(caught.value)
    assert "\n" not in said
    assert path.name in said
    return said


def same(found, expected=WEIGHTS):
    return found.shapes.keys() == expected.keys() and all(
        torch.equal(found.read(name), value) for name, value in expected.items()
    )


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:4d\nsize 9\n", "pointer of Git LFS.*git lfs pull"),
        (b"<!DOCTYPE html><html>Sign in</html>", "is a web page; download the file"),
        (b"<html><body>404", "is a web page"),
        (b"", "is not a weight file, or is damaged"),
        (b"notes of mine", "is not a weight file, or is damaged"),
        (gzip.compress(b"weights", mtime=0), "is not a weight file, or is damaged"),
        (b"\x08\x07\x12\x07pytorch", "is not a weight file, or is damaged"),  # as an ONNX file begins
        (header(b"{", length=2**63), "is not a weight file, or is damaged"),
        (header(b"{", length=10**11), "is not a weight file, or is damaged"),
        (header(b"{" + b" " * 99, length=2 * 10**8), "is not a weight file, or is damaged"),
        (header(b'{"a":' * 100_000), "is not a weight file, or is damaged"),
        (
            header({"visual.a": {"dtype": "F32", "shape": [2**40, 2**10], "data_offsets": [0, 2**52]}}) + b"1234",
            "is not a weight file, or is damaged",
        ),
        (save(WEIGHTS)[:-4], "is not a weight file, or is damaged"),
        (save(WEIGHTS) + b"1234", "is not a weight file, or is damaged"),
    ],
)
def test_what_is_no_weight_file_is_refused_by_what_it_is(tmp_path, content, said):
    path = tmp_path / "model.pt"
    path.write_bytes(content)
    assert re.search(said, refusal(path))


def test_archive_cut_anywhere_is_refused_and_one_with_more_behind_it_is_read(tmp_path):
    torch.save(WEIGHTS, tmp_path / "whole.pt")
    content, path = (tmp_path / "whole.pt").read_bytes(), tmp_path / "cut.pt"
    for kept in [1, 4, 8, 64, *range(100, len(content), 97), len(content) - 1]:
        path.write_bytes(content[:kept])
        assert "is not a weight file, or is damaged" in refusal(path)
    path.write_bytes(content + b"x" * 500)
    assert same(open_weights(path))


def test_tensors_that_share_a_storage_take_no_more_memory_than_their_own(tmp_path):
    flat = torch.arange(1000.0)
    content = {f"row{index}": flat[20 * index : 20 * index + 20].view(4, 5) for index in range(40)}
    content |= {"turned": flat[:20].view(4, 5).T, "every third": flat[::3], "whole": flat, "spread": flat[:1].expand(9)}
    torch.save(content | {"alone": torch.ones(100)[:2]}, tmp_path / "flat.pt")
    found = open_weights(tmp_path / "flat.pt")
    with patch.object(zipfile.ZipFile, "read", autospec=True, side_effect=zipfile.ZipFile.read) as read:
        tensors = {name: found.read(name) for name in content}
        assert read.call_count == 1
    assert all(torch.equal(tensors[name], content[name]) for name in content)
    for name, tensor in {**tensors, "alone": found.read("alone")}.items():
        assert name == "spread" or tensor.untyped_storage().nbytes() == 4 * tensor.numel(), name
    tensors["whole"].zero_()
    assert torch.equal(tensors["row0"], content["row0"])


def test_byte_flipped_in_an_archive_is_found_when_its_tensor_is_read(tmp_path):
    torch.save(WEIGHTS, tmp_path / "a.pt")
    content = bytearray((tmp_path / "a.pt").read_bytes())
    at = content.index(WEIGHTS["visual.conv1.weight"].numpy().tobytes())
    content[at + 5] ^= 255
    (tmp_path / "a.pt").write_bytes(content)
    file = open_weights(tmp_path / "a.pt")
    assert "is not a weight file, or is damaged" in refusal(
        tmp_path / "a.pt", lambda _: file.read("visual.conv1.weight")
    )


@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning")  # torch's, of TorchScript's end
def test_torchscript_and_pickles_of_another_model_say_what_they_hold(tmp_path):
    torch.jit.script(Net()).save(tmp_path / "scripted.pt")
    said = refusal(tmp_path / "scripted.pt", read_checkpoint)
    assert "scripted.pt (TorchScript; parts that could run code were not read" in said
    assert "holds no image encoder of a known kind: only conv1.bias, conv1.weight" in said
    torch.save(Net(), tmp_path / "module.pt")
    said = refusal(tmp_path / "module.pt", read_checkpoint)
    assert "parts that could run code were not read" in said
    with zipfile.ZipFile(tmp_path / "around.zip", "w") as archive:
        archive.write(tmp_path / "module.pt", "module.pt")
    assert "['module.pt']; if it holds them, unpack it first" in refusal(tmp_path / "around.zip")


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")  # torch's, of files that it did not write
@pytest.mark.parametrize("name", ["pytorch_model.bin", "best.pth"])
def test_code_in_a_pickle_of_any_age_is_never_run(tmp_path, name):
    path, ran = tmp_path / name, tmp_path / "ran"
    for content in ({**WEIGHTS, "evil": Evil(ran)}, {**WEIGHTS, "in": [{"a": Evil(ran)}]}):
        torch.save(content, path)
        assert same(open_weights(path))
        torch.save(content, path, _use_new_zipfile_serialization=False)
        assert "reading it could run code; have its author publish it as safetensors" in refusal(path)
    path.write_bytes(pickle.dumps({**WEIGHTS, "evil": Evil(ran)}))
    assert refused_unread(refusal(path))
    torch.save(Evil(ran), path)
    assert open_weights(path).shapes == {}
    assert not ran.exists()


def refused_unread(said):
    return "could run code" in said or "is not a weight file, or is damaged" in said


def shards(folder):
    """Two files of weights and their index; returns the index."""
    folder.mkdir()
    owners = {name: f"model-{number}-of-2.safetensors" for number, name in enumerate(WEIGHTS, start=1)}
    for name, file in owners.items():
        save_file({name: WEIGHTS[name]}, folder / file)
    index = folder / "model.safetensors.index.json"
    index.write_text(json.dumps({"metadata": {"total_size": 1}, "weight_map": owners}))
    return index


def test_shards_are_read_by_their_index_and_a_fault_in_one_is_named(tmp_path):
    index = shards(tmp_path / "shards")
    assert same(open_weights(index))
    part = index.parent / "model-2-of-2.safetensors"
    content = part.read_bytes()
    for cut in (content[: len(content) // 2], b""):
        part.write_bytes(cut)
        with pytest.raises(WeightsError, match=r"model-2-of-2\.safetensors is not a weight file, or is damaged"):
            open_weights(index)
    part.unlink()
    for make in (lambda: None, lambda: os.mkfifo(part), lambda: part.symlink_to(part.name), part.mkdir):
        make()
        with pytest.raises(WeightsError, match=r"lists 2 files, and model-2-of-2\.safetensors is not beside it"):
            open_weights(index)
        if part.is_dir():
            part.rmdir()
        else:
            part.unlink(missing_ok=True)


@pytest.mark.parametrize("listed", [["model.safetensors.index.json"], ["other.index.json"]])
def test_index_that_lists_an_index_is_refused(tmp_path, listed):
    index = shards(tmp_path / "shards")
    (index.parent / "other.index.json").write_text(index.read_text())
    index.write_text(json.dumps({"weight_map": dict.fromkeys(WEIGHTS, listed[0])}))
    assert "is not an index of weights in several files" in refusal(index)


def test_links_and_names_in_any_script_are_followed(tmp_path):
    folder = tmp_path / "Gewichte für 人 😀 %20"
    folder.mkdir()
    torch.save(WEIGHTS, folder / "best ж.pt")
    save_file(WEIGHTS, folder / "open_clip_model.safetensors")
    (tmp_path / "link").symlink_to(folder)
    (tmp_path / "file.pt").symlink_to(folder / "best ж.pt")
    for path in (folder / "best ж.pt", tmp_path / "file.pt", tmp_path / "link" / "best ж.pt"):
        assert same(open_weights(path))
    assert read_checkpoint(tmp_path / "link").file.shapes.keys() == WEIGHTS.keys()
