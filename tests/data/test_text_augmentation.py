"""Deletion and masking of tokens, which never touch the caption that is stored."""

from collections.abc import Callable

import open_clip
import pytest
import torch

from promptreid.data.captions import TokenDeletion, TokenMasking

Tokenizer = Callable[[list[str]], torch.Tensor]
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
