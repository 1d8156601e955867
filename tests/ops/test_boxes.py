import pytest
import torch
from torchvision.transforms.v2 import RandomResizedCrop

from lowres_vision.ops import random_resized_crop_boxes

N = 8_000


def torchvision_boxes(size, scale, ratio):
    torch.manual_seed(0)
    crop = RandomResizedCrop(8, scale=scale, ratio=ratio)
    image = torch.empty(1, *size)
    draws = [crop.make_params([image]) for _ in range(N)]
    return torch.tensor([[d["top"], d["left"], d["height"], d["width"]] for d in draws]).float()


@pytest.mark.parametrize(
    ("size", "scale", "ratio"),
    [
        ((64, 64), (0.08, 1.0), (3 / 4, 4 / 3)),
        ((17, 40), (0.5, 1.0), (3 / 4, 4 / 3)),  # often falls back
        ((40, 9), (0.9, 1.0), (3 / 4, 4 / 3)),  # always falls back, too narrow
    ],
)
def test_distribution_is_torchvisions(size, scale, ratio):
    generator = torch.Generator().manual_seed(1)
    ours = random_resized_crop_boxes(N, size, scale=scale, ratio=ratio, generator=generator)
    theirs = torchvision_boxes(size, scale, ratio)
    for column in range(4):
        values = torch.cat([ours[:, column], theirs[:, column]]).unique()
        cdf = [
            torch.searchsorted(x[:, column].sort().values, values, right=True) / N
            for x in (ours, theirs)
        ]
        # Kolmogorov-Smirnov: two samples of one law differ by more than this once in 1e6 times.
        assert (cdf[0] - cdf[1]).abs().max() < 2.7 * (2 / N) ** 0.5


@pytest.mark.parametrize("size", [(1, 1), (1, 9), (9, 1), (64, 48)])
def test_boxes_are_whole_and_inside(size):
    boxes = random_resized_crop_boxes(500, size, generator=torch.Generator().manual_seed(0))
    assert boxes.dtype == torch.float32
    assert torch.equal(boxes, boxes.round())
    assert (boxes[:, :2] >= 0).all()
    assert (boxes[:, 2:] >= 1).all()
    assert (boxes[:, :2] + boxes[:, 2:] <= torch.tensor(size)).all()


def test_only_the_generator_decides():
    first, second = (
        random_resized_crop_boxes(9, (32, 32), generator=torch.Generator().manual_seed(3))
        for _ in range(2)
    )
    assert torch.equal(first, second)


def test_full_scale_of_a_square_is_the_image():
    boxes = random_resized_crop_boxes(5, (32, 32), scale=(1, 1), ratio=(1, 1))
    assert torch.equal(boxes, torch.tensor([[0.0, 0.0, 32.0, 32.0]]).expand(5, 4))


def test_empty_batch():
    assert random_resized_crop_boxes(0, (32, 32)).shape == (0, 4)


@pytest.mark.parametrize(
    ("kwargs", "text"),
    [
        ({"batch": -1}, "`batch` must be >= 0, got -1"),
        ({"size": (0, 4)}, "`size` must be .*height, width.* got \\(0, 4\\)"),
        ({"scale": (0.0, 1.0)}, "`scale\\[0\\]` must be > 0, got 0.0"),
        ({"scale": (0.5, 0.2)}, "`scale\\[1\\]` must be >= 0.5, got 0.2"),
        ({"ratio": (-1.0, 1.0)}, "`ratio\\[0\\]` must be > 0, got -1.0"),
    ],
)
def test_refusals(kwargs, text):
    arguments = {"batch": 2, "size": (8, 8)} | kwargs
    with pytest.raises(ValueError, match=text):
        random_resized_crop_boxes(arguments.pop("batch"), arguments.pop("size"), **arguments)
