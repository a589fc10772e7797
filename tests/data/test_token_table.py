"""Captions tokenised once, and read again from a file."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from promptreid.data import captions as token_table
from promptreid.data.captions import caption_lengths, tokenize_captions
from promptreid.data.dataset import PackedPaths

CAPTIONS = [f"caption number {number} of a man" for number in range(10)]
Tokenizer = Callable[[list[str]], torch.Tensor]


def counted(tokenizer: Tokenizer, calls: list[int]) -> Tokenizer:
    def tokenize(captions: list[str]) -> torch.Tensor:
        calls.append(len(captions))
        return tokenizer(captions)

    return tokenize


def test_tokenize_captions_is_the_tokenizer_in_chunks(tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(token_table, "CHUNK", 3)
    tokens = tokenize_captions(CAPTIONS, tokenizer, progress=False)
    assert tokens.dtype == torch.int32
    assert torch.equal(tokens.long(), tokenizer(CAPTIONS))


def test_tokenize_captions_second_time_reads_the_file(tokenizer: Tokenizer, tmp_path: Path) -> None:
    calls: list[int] = []
    first = tokenize_captions(CAPTIONS, counted(tokenizer, calls), cache_dir=tmp_path / "new" / "cache")
    assert 10 in calls
    calls.clear()
    second = tokenize_captions(CAPTIONS, counted(tokenizer, calls), cache_dir=tmp_path / "new" / "cache")
    assert torch.equal(first, second)
    assert 10 not in calls  # only the probes that tell tokenizers apart


def test_tokenize_captions_other_captions_or_tokenizer_do_not_share(tokenizer: Tokenizer, tmp_path: Path) -> None:
    def other(captions: list[str]) -> torch.Tensor:
        return tokenizer([caption.upper() + " x" for caption in captions])

    tokenize_captions(CAPTIONS, tokenizer, cache_dir=tmp_path)
    assert torch.equal(tokenize_captions(CAPTIONS, other, cache_dir=tmp_path).long(), other(CAPTIONS))
    changed = ["caption", *CAPTIONS[1:]]
    assert torch.equal(tokenize_captions(changed, tokenizer, cache_dir=tmp_path).long(), tokenizer(changed))
    assert len(list(tmp_path.iterdir())) == 3


def test_tokenize_captions_boundaries_of_captions_count(tokenizer: Tokenizer, tmp_path: Path) -> None:
    tokenize_captions(["a b", "c"], tokenizer, cache_dir=tmp_path)
    tokens = tokenize_captions(["a", "b c"], tokenizer, cache_dir=tmp_path)
    assert torch.equal(tokens.long(), tokenizer(["a", "b c"]))


@pytest.mark.parametrize("content", [b"", b"rubbish", b"\x08\0\0\0\0\0\0\0{}      "])
def test_tokenize_captions_damaged_file_is_written_again(tokenizer: Tokenizer, tmp_path: Path, content: bytes) -> None:
    tokenize_captions(CAPTIONS, tokenizer, cache_dir=tmp_path)
    (path,) = tmp_path.iterdir()
    sound = path.read_bytes()
    path.write_bytes(content)
    assert torch.equal(tokenize_captions(CAPTIONS, tokenizer, cache_dir=tmp_path).long(), tokenizer(CAPTIONS))
    assert path.read_bytes() == sound


def test_tokenize_captions_none_gives_an_empty_table(tokenizer: Tokenizer, tmp_path: Path) -> None:
    assert tokenize_captions([], tokenizer, cache_dir=tmp_path).shape == (0, 12)


@pytest.mark.parametrize(
    "bad", [lambda captions: captions, lambda captions: torch.zeros(5), lambda captions: torch.zeros(len(captions), 3)]
)
def test_tokenize_captions_tokenizer_that_is_none_raises(bad: Any) -> None:
    with pytest.raises(ValueError, match=r"the tokenizer gave .* captions, expected integers \(captions, L\)"):
        tokenize_captions(CAPTIONS, bad)


def test_caption_lengths_counts_beyond_the_context(tokenizer: Tokenizer) -> None:
    import open_clip

    captions = ["coat " * words for words in (1, 74, 75, 76, 400)]
    lengths, context = caption_lengths(captions, open_clip.get_tokenizer("ViT-B-16"))
    assert (lengths, context) == ([3, 76, 77, 78, 402], 77)
    assert caption_lengths(["one two", "word " * 50], tokenizer) == ([4, 13], 12)
    assert caption_lengths([], tokenizer) == ([], 12)


def test_packed_paths_give_back_odd_names() -> None:
    paths = ["a.jpg", "", "ünïcode/行人.png", "with\nnewline", "x" * 300, "\udcff.jpg"]
    packed = PackedPaths([Path(path) if path else path for path in paths])
    assert [packed[index] for index in range(len(packed))] == paths


def test_packed_paths_none_is_empty() -> None:
    assert len(PackedPaths([])) == 0
