"""Pictures: every pixel of a grid against a loop over pixels, and the scaling of levels against integer arithmetic."""

import pytest
import torch

from fastdiff.io.pictures import image_grid, to_pil, to_uint8
from fastdiff.kernels import FastdiffError


def random_images(*shape: int) -> torch.Tensor:
    return torch.randint(256, shape, dtype=torch.uint8)


def expected_grid(images: torch.Tensor, columns: int, factor: int, gap: int, background: int) -> torch.Tensor:
    """[C, H, W], one pixel at a time: each image lies below and to the right of a line of ``gap`` pixels."""
    count, channels, height, width = images.shape
    rows = -(-count // columns)
    cell_height, cell_width = height * factor + gap, width * factor + gap
    sheet = torch.full((channels, rows * cell_height + gap, columns * cell_width + gap), background, dtype=torch.uint8)
    for n in range(count):
        top, left = n // columns * cell_height + gap, n % columns * cell_width + gap
        for y in range(height * factor):
            for x in range(width * factor):
                sheet[:, top + y, left + x] = images[n, :, y // factor, x // factor]
    return sheet


def pixels(image) -> list:
    return [[image.getpixel((x, y)) for x in range(image.width)] for y in range(image.height)]


@pytest.mark.parametrize(
    ("shape", "options", "columns", "factor", "gap", "background"),
    [
        ((5, 3, 4, 6), {"side": 9}, 2, 2, 4, 96),  # 5 images in 2 columns: the last place is empty
        ((3, 1, 5, 4), {"columns": 3, "side": 4, "gap": 1, "background": 7}, 3, 1, 1, 7),  # larger than side: as it is
        ((1, 1, 8, 8), {}, 1, 8, 4, 96),
        ((7, 1, 4, 4), {"side": 4, "gap": 0}, 3, 1, 0, 96),
        ((2, 3, 2, 2), {"columns": 5, "side": 2, "background": 0}, 5, 1, 4, 0),
    ],
)
def test_image_grid(shape, options, columns, factor, gap, background):
    images = random_images(*shape)
    sheet = image_grid(images, **options)
    expected = expected_grid(images, columns, factor, gap, background)
    assert (sheet.mode, sheet.size) == ("L" if shape[1] == 1 else "RGB", (expected.shape[2], expected.shape[1]))
    values = expected[0].tolist() if shape[1] == 1 else expected.permute(1, 2, 0).tolist()
    assert pixels(sheet) == [[tuple(p) if isinstance(p, list) else p for p in row] for row in values]


@pytest.mark.parametrize("levels", [2, 3, 17, 255, 256])
def test_to_uint8_rounds_to_nearest(levels):
    values = torch.arange(levels, dtype=torch.uint8)
    # (255 k) / (levels - 1), rounded in integers; no tie occurs but at levels = 3, where 127.5 goes to the even 128
    expected = [(2 * 255 * k + levels - 1) // (2 * (levels - 1)) for k in range(levels)]
    scaled = to_uint8(values, levels)
    assert scaled.dtype == torch.uint8
    assert scaled.tolist() == expected


@pytest.mark.parametrize(("channels", "mode"), [(1, "L"), (3, "RGB")])
def test_to_pil(channels, mode):
    image = random_images(channels, 3, 5)
    result = to_pil(image)
    assert (result.mode, result.size) == (mode, (5, 3))
    for y in range(3):
        for x in range(5):
            value = result.getpixel((x, y))
            assert image[:, y, x].tolist() == ([value] if channels == 1 else list(value))


@pytest.mark.parametrize(
    "image", [torch.zeros(1, 2, 2), random_images(2, 2, 2), random_images(2, 2), random_images(1, 1, 2, 2)]
)
def test_to_pil_rejects_other_tensors(image):
    with pytest.raises(ValueError, match="image must") as error:
        to_pil(image)
    assert isinstance(error.value, FastdiffError)


@pytest.mark.parametrize(("count", "columns"), [(0, None), (0, 1), (2, 0), (2, -1)])
def test_image_grid_needs_images_and_columns(count, columns):
    with pytest.raises(ValueError, match="columns") as error:
        image_grid(random_images(count, 1, 2, 2), columns)
    assert isinstance(error.value, FastdiffError)
