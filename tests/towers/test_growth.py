import torch
from hypothesis import given
from hypothesis import strategies as st

from promptreid.towers.growth import (
    grow_bias,
    grow_mask,
    grow_rotary,
    insert_tokens,
    keep_positions,
    mask_before_end,
    put_in_front,
    remove_tokens,
    sample_grid_positions,
    shift_positions,
    take_from_front,
)


@given(st.integers(1, 6), st.integers(0, 5), st.integers(0, 1), st.data())
def test_insert_then_remove_any_slot_gives_the_sequence_back(length, count, axis, data):
    slot = data.draw(st.integers(0, length))
    sequence = torch.randn((3, length, 2) if axis == 1 else (length, 3, 2))
    longer = insert_tokens(sequence, torch.randn(count, 2), slot=slot, axis=axis)
    assert longer.shape[axis] == length + count
    assert torch.equal(remove_tokens(longer, slot=slot, count=count, axis=axis), sequence)


def test_insert_tokens_puts_every_token_at_the_slot_of_every_sequence():
    sequence = torch.tensor([[[1.0], [2.0]], [[3.0], [4.0]]])
    longer = insert_tokens(sequence, torch.tensor([[7.0], [8.0]]), slot=1, axis=1)
    assert longer[..., 0].tolist() == [[1, 7, 8, 2], [3, 7, 8, 4]]


def test_put_in_front_uses_the_room_again_and_leaves_what_was_taken_as_it_is():
    first = put_in_front(torch.tensor([[[1.0]], [[2.0]]]), torch.tensor([[7.0], [8.0]]))
    assert first[:, 0, 0].tolist() == [7, 8, 1, 2]
    rest = take_from_front(first, count=2)
    again = put_in_front(rest, torch.tensor([[5.0], [6.0]]))
    assert again.data_ptr() == first.data_ptr()
    assert again[:, 0, 0].tolist() == [5, 6, 1, 2]
    assert rest[:, 0, 0].tolist() == [1, 2]


def test_put_in_front_with_gradients_or_another_number_of_tokens_makes_a_new_sequence():
    rest = take_from_front(torch.zeros(4, 1, 1), count=2)
    assert put_in_front(rest, torch.ones(1, 1)).shape == (3, 1, 1)
    rest.requires_grad_(True)
    assert put_in_front(rest, torch.ones(2, 1))[:, 0, 0].tolist() == [1, 1, 0, 0]
    assert rest.tolist() == [[[0]], [[0]]]


def test_grow_mask_causal_lets_later_tokens_see_prompts_and_the_start_not():
    causal = torch.full((3, 3), float("-inf")).triu(1)
    grown = grow_mask(causal, length=3, slot=1, count=2, causal=True)
    assert grown is not None
    # start, p1, p2, word, end: the plain triangle of five.
    assert torch.equal(grown, torch.full((5, 5), float("-inf")).triu(1))


def test_grow_mask_padding_of_keys_copies_the_start_token():
    visible = torch.tensor([[True, True, False]])
    grown = grow_mask(visible, length=3, slot=1, count=2, causal=False)
    assert grown is not None
    assert grown.tolist() == [[True, True, True, True, False]]


def test_grow_mask_already_grown_or_absent_is_left_alone():
    mask = torch.zeros(5, 5)
    assert grow_mask(mask, length=3, slot=1, count=2, causal=True) is mask
    assert grow_mask(None, length=3, slot=1, count=2, causal=True) is None


def test_grow_bias_gives_new_positions_none():
    bias = torch.tensor([[1.0, 2.0], [3.0, 4.0]])
    grown = grow_bias(bias, length=2, slot=1, count=1)
    assert grown is not None
    assert grown.tolist() == [[1, 0, 2], [0, 0, 0], [3, 0, 4]]
    assert grow_bias(grown, length=2, slot=1, count=1) is grown
    assert grow_bias(None, length=2, slot=1, count=1) is None


def test_grow_rotary_leaves_new_positions_unturned():
    table = torch.tensor([[0.5, 0.6, 0.7, 0.8]])  # two sines, two cosines
    grown = grow_rotary(table, length=1, slot=0, count=2)
    assert grown is not None
    torch.testing.assert_close(grown, torch.tensor([[0, 0, 1, 1], [0, 0, 1, 1], [0.5, 0.6, 0.7, 0.8]]))
    assert grow_rotary(grown, length=1, slot=0, count=2) is grown


def test_keep_positions_cuts_both_sides_of_a_square_mask():
    mask = torch.arange(9.0).reshape(3, 3)
    kept = keep_positions(mask, torch.tensor([0, 2]), length=3)
    assert kept is not None
    assert kept.tolist() == [[0, 2], [6, 8]]
    keys = keep_positions(torch.tensor([[1.0, 2.0, 3.0]]), torch.tensor([0, 2]), length=3)
    assert keys is not None
    assert keys.tolist() == [[1, 3]]
    assert keep_positions(None, torch.tensor([0]), length=3) is None


def test_mask_before_end_shows_prompts_to_the_end_and_what_follows():
    # start, p, word, end, padding: p stands second but acts as if between word and end.
    visible = mask_before_end(torch.tensor([2]), length=4, slot=1, count=1)[0] == 0
    assert visible.int().tolist() == [
        [1, 0, 0, 0, 0],  # the start sees itself
        [1, 1, 1, 0, 0],  # the prompt sees start, itself, word
        [1, 0, 1, 0, 0],  # the word does not see the prompt
        [1, 1, 1, 1, 0],  # the end sees all before it
        [1, 1, 1, 1, 1],
    ]


def test_shift_positions_moves_the_caption_and_keeps_the_last_row_past_the_end():
    positions = torch.tensor([[0.0], [1.0], [2.0], [4.0]])
    sequence = positions[None].clone()  # embeddings of zero, positions added
    moved = shift_positions(sequence, positions, slot=1, count=1, axis=1)
    # start keeps 0; 1 -> 2, 2 -> 4, and the last stays at the table's end.
    assert moved[0, :, 0].tolist() == [0, 2, 4, 4]
    assert torch.equal(shift_positions(sequence.transpose(0, 1), positions, slot=1, count=1, axis=0)[:, 0], moved[0])


def test_sample_grid_positions_one_prompt_takes_the_middle():
    positions = torch.tensor([[9.0], [0.0], [2.0], [4.0], [6.0]])  # class token, then a 2 x 2 grid
    # One sample of four sits between the second and the third: (2 + 4) / 2.
    assert sample_grid_positions(positions, grid=(2, 2), count=1).tolist() == [[3.0]]
