import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image

from lowres_vision.augment._shrink import KERNELS, Kernel, shrink_matrix, shrunk_side

SIZES = [(16, 4), (17, 5), (64, 18), (9, 9), (7, 1)]


def signal(length: int) -> torch.Tensor:
    return torch.rand(length, generator=torch.Generator().manual_seed(length)).double()


@pytest.mark.parametrize(("length", "size"), SIZES)
@pytest.mark.parametrize(
    ("kernel", "filter"),
    [
        ("box", Image.Resampling.BOX),
        ("bilinear", Image.Resampling.BILINEAR),
        ("bicubic", Image.Resampling.BICUBIC),
        ("lanczos", Image.Resampling.LANCZOS),
        ("nearest", Image.Resampling.NEAREST),
    ],
)
def test_kernels_are_pillows(
    kernel: Kernel, filter: Image.Resampling, length: int, size: int
) -> None:
    line = signal(length)
    image = Image.fromarray(line.float().numpy()[None]).resize((size, 1), filter)
    expected = torch.from_numpy(np.array(image))[0].double()
    got = shrink_matrix(length, size, kernel) @ line
    # Pillow keeps its result in float32: values up to about 1, so a few units of 6e-8.
    torch.testing.assert_close(got, expected, rtol=0, atol=5e-7)


@pytest.mark.parametrize(("length", "size"), SIZES)
@pytest.mark.parametrize("mode", ["bilinear", "bicubic"])
def test_aliased_kernels_are_torchs(mode: str, length: int, size: int) -> None:
    line = signal(length)
    square = line[:, None] * torch.ones(length)
    expected = F.interpolate(square[None, None], (size, length), mode=mode)[0, 0, :, 0]
    got = shrink_matrix(length, size, "aliased_" + mode) @ line  # type: ignore[arg-type]
    torch.testing.assert_close(got, expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize(("length", "size"), SIZES)
def test_area_is_the_mean_of_what_is_covered(length: int, size: int) -> None:
    line = signal(length)
    fine = line.repeat_interleave(size)  # each pixel in `size` equal parts
    expected = fine.reshape(size, length).mean(1)
    torch.testing.assert_close(shrink_matrix(length, size, "area") @ line, expected)


@pytest.mark.parametrize("kernel", KERNELS)
def test_rows_sum_to_one_and_same_size_is_identity(kernel: Kernel) -> None:
    rows = shrink_matrix(31, 7, kernel, blur=1.3).sum(1)
    torch.testing.assert_close(rows, torch.ones(7).double())
    torch.testing.assert_close(shrink_matrix(9, 9, kernel), torch.eye(9).double())


def test_blur_is_a_gaussian_cut_at_the_edges() -> None:
    line, sigma = signal(12), 1.7
    got = shrink_matrix(12, 12, "area", blur=sigma) @ line
    for i in range(12):
        weights = [np.exp(-((i - j) ** 2) / (2 * sigma**2)) for j in range(12)]
        expected = sum(w * float(v) for w, v in zip(weights, line, strict=True)) / sum(weights)
        assert float(got[i]) == pytest.approx(expected, rel=1e-12)


def test_shrunk_side_rounds_half_up_and_leaves_a_pixel() -> None:
    assert [shrunk_side(side, 4) for side in (64, 66, 65, 1)] == [16, 17, 16, 1]
