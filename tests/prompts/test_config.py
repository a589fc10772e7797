import pytest
import torch

from promptreid import PromptConfig, PromptedTextEncoder, PromptedVisionEncoder


@pytest.mark.parametrize(
    ("arguments", "error", "words"),
    [
        ({"text_length": -1}, ValueError, "text_length is -1, expected at least 0"),
        ({"vision_length": -3}, ValueError, "vision_length is -3"),
        ({"text_length": 2.0}, TypeError, "text_length is 2.0, expected a whole number of at least 0"),
        ({"vision_length": True}, TypeError, "vision_length is True"),
        ({"text_depth": 0}, ValueError, "text_depth is 0, expected at least 1"),
        ({"vision_depth": "deep"}, TypeError, "vision_depth is 'deep'"),
        ({"text_initialization": "zeros"}, ValueError, "text_initialization is 'zeros', expected"),
    ],
)
def test_prompt_config_bad_value_is_refused(arguments, error, words):
    with pytest.raises(error, match=words):
        PromptConfig(**arguments)


@pytest.mark.parametrize(
    "arguments",
    [
        {"text_length": "x" * 9000},
        {"vision_length": 10**4000},
        {"position_embedding": "x" * 9000},
        {"text_slot": "x" * 9000},
        {"groups": "x" * 9000},
        {"groups": [["x" * 9000]]},
        {"groups": ["x" * 9000]},
        {"groups": ["\U000e0001" * 500]},
        {"groups": [f"{number:0400}" for number in range(40)]},
        {"groups": ["x" * 500] * 2},
    ],
)
def test_refusal_of_what_may_come_from_a_file_is_short(arguments):
    with pytest.raises((ValueError, TypeError)) as caught:
        PromptConfig(**arguments)
    assert len(str(caught.value)) < 500


@pytest.mark.parametrize("name", ["text_slot", "position_embedding", "groups"])
def test_number_too_long_to_be_written_out_is_refused_by_name(name):
    with pytest.raises((ValueError, TypeError), match=f"^{name} is a number of thousands of digits, expected"):
        PromptConfig(**{name: 10**5000})


def test_prompts_longer_than_the_sequence_are_refused(clip):
    # A 4 x 2 grid and the class token: nine tokens, eight of them after the class token.
    PromptedVisionEncoder(clip, 8).detach()
    with pytest.raises(ValueError, match=r"length is 9, but this .* has a sequence of 9 tokens"):
        PromptedVisionEncoder(clip, 9)


def test_prompts_deeper_than_the_tower_are_refused(clip):
    with pytest.raises(ValueError, match=r"depth is 4, but this .* has 3 blocks; give 1 to 3"):
        PromptedVisionEncoder(clip, depth=4)


def test_prompts_start_as_the_mean_state_of_each_block(clip):
    """Prompts of block i lie where the tokens of block i lie."""
    from promptreid.towers.initial_states import probe_images

    seen = []
    handles = [
        block.register_forward_pre_hook(lambda _, args, kwargs: seen.append(args[0][:, 1:]), with_kwargs=True)
        for block in clip.visual.transformer.resblocks
    ]
    clip.encode_image(probe_images(clip))
    for handle in handles:
        handle.remove()
    encoder = PromptedVisionEncoder(clip, 2, initialization="mean_state")
    for index, states in enumerate(seen):
        # Two prompts for eight patches: the mean of the first four and of the last four.
        top, bottom = states[:, :4].mean(dim=(0, 1)), states[:, 4:].mean(dim=(0, 1))
        assert encoder.prompts.tokens[index, 0].allclose(top, atol=1e-5)
        assert encoder.prompts.tokens[index, 1].allclose(bottom, atol=1e-5)


def test_text_prompts_start_near_the_start_token_and_differ(clip):
    encoder = PromptedTextEncoder(clip, 3)
    seen = []
    clip.transformer.resblocks[1].register_forward_pre_hook(
        lambda _, args, kwargs: seen.append(args[0]), with_kwargs=True
    )
    with encoder.disabled():
        encoder(torch.tensor([[510, 5, 511] + [0] * 21]))
    start = seen[0][0, 0]  # the blocks run sequence first
    prompts = encoder.prompts.tokens[1]
    assert torch.nn.functional.cosine_similarity(prompts, start[None]).min() > 0.9
    assert not torch.equal(prompts[0], prompts[1])
