"""Maps of the parts of a crop that answer a phrase."""

import pytest
import torch
from PIL import Image

from promptreid.data.images import open_image
from promptreid.evaluation.pictures.occlusion import draw_occlusion_maps, occlusion_map


@pytest.fixture
def crop(model, split):
    return model.eval_transform(open_image(split.records[0].path))


def test_occlusion_map_is_a_map_and_leaves_the_model_as_it_was(model, crop):
    model.train()
    heat = occlusion_map(model, crop, "a red coat")
    assert heat.shape == (12, 6)
    assert float(heat.min()) >= 0.0
    assert float(heat.max()) == 1.0
    assert torch.equal(heat, occlusion_map(model, crop, "a red coat"))
    assert model.training
    assert all(parameter.grad is None for parameter in model.parameters())
    with pytest.raises(ValueError, match="the phrase is empty"):
        occlusion_map(model, crop, " ")


def test_occlusion_map_is_the_mean_loss_over_the_covers_that_hold_a_cell(model, crop):
    rows, columns = 4, 2
    model.eval()
    height, width = crop.shape[1] // rows, crop.shape[2] // columns

    def similarity(pixels):
        with torch.no_grad():
            words = model.encode_text(model.tokenizer(["a red coat"]), normalize=True)[0]
            return float(model.encode_image(pixels[None], normalize=True)[0] @ words)

    losses = torch.zeros(rows, columns)
    counts = torch.zeros(rows, columns)
    for row in range(rows):
        for column in range(columns):
            near = (slice(max(0, row - 1), row + 2), slice(max(0, column - 1), column + 2))
            covered = crop.clone()
            covered[:, near[0].start * height : near[0].stop * height, near[1].start * width : near[1].stop * width] = 0
            losses[near] += similarity(crop) - similarity(covered)
            counts[near] += 1
    expected = (losses / counts).clamp(min=0)
    heat = occlusion_map(model, crop, "a red coat", grid=(rows, columns), batch_size=3)
    torch.testing.assert_close(heat, expected / expected.max(), atol=1e-4, rtol=0)


def test_draw_occlusion_maps_makes_a_panel_a_phrase(model, split, tmp_path):
    path = split.records[0].path
    one = draw_occlusion_maps(tmp_path / "one.png", model, path, ["red coat"])
    two = draw_occlusion_maps(tmp_path / "two.png", model, path, ["red coat", "white shoes"])
    with Image.open(one) as narrow, Image.open(two) as wide:
        assert (narrow.format, wide.format) == ("PNG", "PNG")
        assert 2 * wide.width == pytest.approx(3 * narrow.width, abs=3)
    assert draw_occlusion_maps(tmp_path / "dollars.png", model, path, ["$5% or $6"]).is_file()
    with pytest.raises(ValueError, match="phrases is empty"):
        draw_occlusion_maps(tmp_path / "map.png", model, path, [])
    for empty in ("", " "):
        with pytest.raises(ValueError, match="the phrase is empty"):
            draw_occlusion_maps(tmp_path / "map.png", model, path, ["red coat", empty])
    with pytest.raises(TypeError, match=r"phrases is 'red coat', expected a list, such as \['red coat'\]"):
        draw_occlusion_maps(tmp_path / "map.png", model, path, "red coat")
    assert not (tmp_path / "map.png").exists()
