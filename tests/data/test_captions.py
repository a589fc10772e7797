"""Captions: token ids kept in a file, sides exchanged, tokens left out and replaced."""

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import open_clip
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from promptreid.data import captions
from promptreid.data.captions import (
    TokenDeletion,
    TokenMasking,
    caption_lengths,
    mirror_caption,
    tokenize_captions,
)
from promptreid.data.dataset import PackedPaths

CAPTIONS = [f"caption number {number} of a man" for number in range(10)]
Tokenizer = Callable[[list[str]], torch.Tensor]


def counted(tokenizer: Tokenizer, calls: list[int]) -> Tokenizer:
    def tokenize(captions: list[str]) -> torch.Tensor:
        calls.append(len(captions))
        return tokenizer(captions)

    return tokenize


def test_tokenize_captions_is_the_tokenizer_in_chunks(tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(captions, "CHUNK", 3)
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


@pytest.mark.parametrize("where", [0, 500, 999, "longest"])
def test_tokenize_captions_tokenizer_that_differs_in_one_word_does_not_share(
    tokenizer: Tokenizer, tmp_path: Path, where: int | str
) -> None:
    def other(captions: list[str]) -> torch.Tensor:
        return tokenizer([caption.replace("hi-vis", "yellow") for caption in captions])

    described = [f"a hi-vis vest, number {number}" if where != "longest" else "a vest" for number in range(1000)]
    if where == "longest":
        described[333] = "a man in a hi-vis vest"
    else:  # alone, or with all captions behind it
        described[:where] = ["a vest"] * where
    tokenize_captions(described, tokenizer, cache_dir=tmp_path)
    assert torch.equal(tokenize_captions(described, other, cache_dir=tmp_path).long(), other(described))


def test_tokenize_captions_probes_few_captions_and_warns_of_none(tokenizer: Tokenizer, tmp_path: Path) -> None:
    described, calls = ["a man " * (1 + number % 9) for number in range(1000)], []

    def warning(captions: list[str]) -> torch.Tensor:
        calls.append(len(captions))
        warnings.warn("a caption is cut", stacklevel=1)
        return tokenizer(captions)

    with pytest.warns(UserWarning, match="a caption is cut"):
        tokenize_captions(described, warning, cache_dir=tmp_path)
    calls.clear()
    tokenize_captions(described, warning, cache_dir=tmp_path)
    assert calls == [66]


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


def test_tokenize_captions_mutated_file_is_never_used(tokenizer: Tokenizer, tmp_path: Path) -> None:
    tokenize_captions(CAPTIONS, tokenizer, cache_dir=tmp_path)
    (path,) = tmp_path.iterdir()
    sound = path.read_bytes()
    for place in range(len(sound)):
        path.write_bytes(sound[:place] + bytes([sound[place] ^ 1]) + sound[place + 1 :])
        assert torch.equal(tokenize_captions(CAPTIONS, tokenizer, cache_dir=tmp_path).long(), tokenizer(CAPTIONS))


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


@pytest.mark.parametrize(
    ("caption", "mirrored"),
    [
        ("a bag in his left hand", "a bag in his right hand"),
        ("Right arm bent. LEFT leg up.", "Left arm bent. RIGHT leg up."),
        ("from left to right", "from right to left"),
        ("a left-handed man, on the righthand side", "a right-handed man, on the lefthand side"),
        ("looks leftwards, leftmost of two", "looks rightwards, rightmost of two"),
        ("the left, then", "the right, then"),
        ("in her left a red bag, in her right a phone", "in her right a red bag, in her left a phone"),
        ("On the left the man holds a bag", "On the right the man holds a bag"),
        ("bag on the left over the shoulder", "bag on the right over the shoulder"),
        ("a man to the right behind a car", "a man to the left behind a car"),
        ("on the far left behind a car", "on the far right behind a car"),
        ("to the man's left a bag, to the man’s right a dog", "to the man's right a bag, to the man’s left a dog"),
        ("In left a bag, in right a phone", "In right a bag, in left a phone"),
        ("She left the shop on the left.", "She left the shop on the right."),
        ("has left and right pockets", "has right and left pockets"),
        ("he has left hand in pocket", "he has right hand in pocket"),
        ("she right arm bent", "she left arm bent"),
        ("turned left, walks right", "turned right, walks left"),
        ("stands left of the car", "stands right of the car"),
        ("in its left the handle", "in its right the handle"),
        ("on the\nleft the man", "on the\nright the man"),
        ("Strap crosses from left to right over his chest", "Strap crosses from right to left over his chest"),
        ("strapped right over left", "strapped left over right"),
        ("from right to left over his shirt", "from left to right over his shirt"),
        ("slung left over his chest", "slung right over his chest"),
        ("facing left in front of a store", "facing right in front of a store"),
        ("looking left in the middle of the street", "looking right in the middle of the street"),
        ("turning right in front of a car", "turning left in front of a car"),
        ("bag on left under her arm", "bag on right under her arm"),
        ("With left in front of his body", "With right in front of his body"),
        ("open on right in front", "open on left in front"),
        ("to right there is a sign", "to left there is a sign"),
        ("On left there's a bag, on right there’s a dog", "On right there's a bag, on left there’s a dog"),
        ("On left there stands a woman, facing left here", "On right there stands a woman, facing right here"),
        ("walking left her hair loose", "walking right her hair loose"),
        ("a woman just left of the door", "a woman just right of the door"),
        ("The bag hangs just left, under his arm", "The bag hangs just right, under his arm"),
        ("The bag is just left.", "The bag is just right."),
    ],
)
def test_mirror_caption_exchanges_sides_and_back(caption: str, mirrored: str) -> None:
    assert mirror_caption(caption) == mirrored
    assert mirror_caption(mirrored) == caption


@pytest.mark.parametrize(
    "caption",
    [
        "a bright upright coat",
        "leftover cloth",
        "he is right behind a car",
        "right now",
        "she left the shop",
        "left open",
        "the door was left open",
        "he left the shop",
        "The man left his bag, he left quickly",
        "he's left the shop",
        "has just left",
        "a train that had left.",
        "right in front of a car",
        "right behind him",
        "right next to the door, right there",
        "with a bag on right behind him",
        "a girl just left",
        "right over there",
        "right over there is a dog, right here a bag",
        "a bag on right over there",
        "looking right there, pointing right under it",
        "walking right in front of a bus",
        "he walks right beside a woman",
        "walking right behind him",
        "he is all right",
        "The strap is just right for him",
        "the coats look just right for her, it's just right for her",
        "a left-over bag",
        "",
        "copyright",
    ],
)
def test_mirror_caption_leaves_what_names_no_side(caption: str) -> None:
    assert mirror_caption(caption) == caption


WORDS = (
    "left right Left RIGHT bag the a her man's he has just all in on to over behind now there under facing bright , . "
    "hand -handed -"
)


@given(st.lists(st.sampled_from(WORDS.split())))
def test_mirror_caption_twice_is_the_caption(words: list[str]) -> None:
    for separator in (" ", ""):
        caption = separator.join(words)
        assert mirror_caption(mirror_caption(caption)) == caption


CAPTION = "a man in a red coat with a blue bag"  # ten tokens of CLIP's


@pytest.fixture(scope="module")
def clip_tokenizer() -> Tokenizer:
    return open_clip.get_tokenizer("ViT-B-16")


@pytest.mark.parametrize("make", [TokenDeletion, TokenMasking])
def test_augmentation_never_changes_what_it_is_given(clip_tokenizer: Tokenizer, make: type) -> None:
    tokens = clip_tokenizer([CAPTION])[0]
    before = tokens.clone()
    augment = make(clip_tokenizer, probability=0.5)
    results = [augment(tokens) for _ in range(50)]
    assert torch.equal(tokens, before)
    assert all(result.data_ptr() != tokens.data_ptr() for result in results)
    assert any(not torch.equal(result, tokens) for result in results)


def test_token_deletion_keeps_order_start_end_and_length(clip_tokenizer: Tokenizer) -> None:
    tokens = clip_tokenizer([CAPTION])[0]
    words = tokens[1:11].tolist()
    augment = TokenDeletion(clip_tokenizer, probability=0.4)
    for _ in range(100):
        result = augment(tokens)
        assert (result.shape, result.dtype) == (tokens.shape, tokens.dtype)
        end = result.tolist().index(49407)
        assert result[0] == 49406
        assert result[end + 1 :].eq(0).all()
        remaining = iter(words)
        assert all(token in remaining for token in result[1:end].tolist())  # a subsequence
        assert end >= 2


def test_token_deletion_share_is_the_probability(clip_tokenizer: Tokenizer) -> None:
    tokens = clip_tokenizer([CAPTION])[0]
    augment = TokenDeletion(clip_tokenizer, probability=0.3)
    deleted = sum(12 - int((augment(tokens) != 0).sum()) for _ in range(500))
    # Binomial(5000, 0.3): 1500, standard deviation 32.
    assert 1350 < deleted < 1650


def test_token_deletion_one_word_always_stays(clip_tokenizer: Tokenizer) -> None:
    tokens = clip_tokenizer(["coat"])[0]
    augment = TokenDeletion(clip_tokenizer, probability=0.99)
    assert all(torch.equal(augment(tokens), tokens) for _ in range(20))


def test_token_deletion_of_a_full_context_pads_the_end(clip_tokenizer: Tokenizer) -> None:
    tokens = clip_tokenizer(["coat " * 100])[0]
    result = TokenDeletion(clip_tokenizer, probability=0.5)(tokens)
    assert int((result == 49407).sum()) == 1
    assert result[-1] == 0


def test_token_deletion_empty_caption_stays(clip_tokenizer: Tokenizer) -> None:
    tokens = clip_tokenizer([""])[0]
    assert torch.equal(TokenDeletion(clip_tokenizer, probability=0.9)(tokens), tokens)


def test_token_masking_replaces_words_alone(clip_tokenizer: Tokenizer) -> None:
    tokens = clip_tokenizer([CAPTION])[0]
    mask = int(clip_tokenizer(["something"])[0][1])
    augment = TokenMasking(clip_tokenizer, probability=0.3)
    masked = 0
    for _ in range(500):
        result = augment(tokens)
        changed = result != tokens
        assert result[changed].eq(mask).all()
        assert not changed[0]
        assert not changed[11:].any()
        masked += int(changed.sum())
    assert 1350 < masked < 1650


def test_augmentation_probability_zero_changes_nothing(clip_tokenizer: Tokenizer) -> None:
    tokens = clip_tokenizer([CAPTION])[0]
    for make in (TokenDeletion, TokenMasking):
        assert torch.equal(make(clip_tokenizer, probability=0.0)(tokens), tokens)


def test_augmentation_same_seed_gives_the_same(clip_tokenizer: Tokenizer) -> None:
    tokens, augment = clip_tokenizer([CAPTION])[0], TokenDeletion(clip_tokenizer, probability=0.5)
    torch.manual_seed(5)
    first = augment(tokens)
    torch.manual_seed(5)
    assert torch.equal(augment(tokens), first)


def test_augmentation_works_where_padding_is_the_end() -> None:
    def siglip_like(captions: list[str]) -> torch.Tensor:
        rows = [[10 + len(word) for word in caption.split()] for caption in captions]
        return torch.tensor([row + [1] * (8 - len(row)) for row in rows])

    result = TokenDeletion(siglip_like, probability=0.5)(siglip_like(["a man in red"])[0])
    kept = [token for token in result.tolist() if token != 1]
    assert result.tolist() == kept + [1] * (8 - len(kept))


@pytest.mark.parametrize("probability", [-0.1, 1.0, 2.0])
def test_augmentation_bad_probability_raises(clip_tokenizer: Tokenizer, probability: float) -> None:
    for make in (TokenDeletion, TokenMasking):
        with pytest.raises(ValueError, match=rf"probability is {probability}, expected at least 0 and less than 1"):
            make(clip_tokenizer, probability=probability)


def test_token_masking_mask_of_several_tokens_raises(clip_tokenizer: Tokenizer) -> None:
    with pytest.raises(ValueError, match=r"mask 'a word' is 2 tokens, expected one"):
        TokenMasking(clip_tokenizer, mask="a word")
