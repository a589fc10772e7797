import pickle
import warnings

import pytest

from promptreid import PromptedCLIP, load_clip


@pytest.fixture
def tokenizer():
    return PromptedCLIP(load_clip("promptreid-tiny", image_size=(96, 48))).tokenizer


def test_captions_that_fit_are_open_clips_own_and_say_nothing(tokenizer):
    import open_clip

    captions = ["a man", "word " * 75]  # 75 words, start and end: exactly 77
    assert tokenizer(captions).equal(open_clip.get_tokenizer("ViT-B-16")(captions))
    assert tokenizer("a man").shape == (1, 77)


@pytest.mark.parametrize("words", [76, 100, 400])
def test_caption_that_is_too_long_is_cut_with_its_end_kept_and_said_once(tokenizer, words):
    captions = ["a man", "word " * words, "word " * 75]
    with pytest.warns(UserWarning, match=r"1 of 3 captions are longer than the 77 tokens .* for example 'word word"):
        tokens = tokenizer(captions)
    assert int(tokens[1, -1]) == 49407
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        tokenizer(captions)


def test_captions_given_more_room_are_not_cut_and_say_nothing(tokenizer):
    tokens = tokenizer("word " * 100, context_length=120)
    assert tokens.shape == (1, 120)
    assert int((tokens != 0).sum()) == 102


def test_captions_that_are_no_text_are_refused(tokenizer):
    with pytest.raises(TypeError, match="captions hold 3, expected text"):
        tokenizer(["a man", 3])


def test_tokenizer_goes_to_worker_processes(tokenizer):
    assert pickle.loads(pickle.dumps(tokenizer))("a man").equal(tokenizer("a man"))


@pytest.mark.parametrize("caption", ["一个穿红色外套的女人", "женщина в красном пальто", "امرأة بمعطف أحمر"])
def test_caption_in_another_script_is_said_once_with_what_to_do(tokenizer, caption):
    with pytest.warns(
        UserWarning, match=f"1 of 2 captions are not in Latin letters, for example '{caption[:5]}.*xlm-roberta"
    ):
        tokenizer(["a man", caption])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        tokenizer(caption)


@pytest.mark.parametrize(
    "caption", ["une femme à l'écharpe bleue, déjà vue", "a man with a 北京 shirt", "a man – 50 %", "🦖"]
)
def test_latin_letters_single_words_and_signs_say_nothing(tokenizer, caption):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        tokenizer(caption)


def test_multilingual_tokenizer_says_nothing_of_scripts():
    import torch

    from promptreid.towers.tokenizer import CaptionTokenizer

    tokenizer = CaptionTokenizer(lambda captions, context_length: torch.zeros(len(captions), 8, dtype=torch.int64))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        tokenizer("一个穿红色外套的女人")
