"""Generated pairs in the layout of a low-resolution bird contest, for trying things out."""

import csv
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image

from lowres_vision.data._manifest import Manifest

_SPECIES = (
    "Amber Finch", "Azure Tit", "Bronze Heron", "Coral Roller", "Crimson Rail", "Dusky Crane",
    "Emerald Dove", "Frosted Owl", "Golden Plover", "Indigo Jay", "Ivory Egret", "Jade Warbler",
    "Lilac Bulbul", "Marsh Robin", "Night Wren", "Ochre Lark", "Pearl Tern", "Plum Sunbird",
    "Russet Kite", "Sable Crow", "Scarlet Ibis", "Silver Gull", "Slate Myna", "Teal Kingfisher",
    "Umber Hoopoe",
)  # fmt: skip
_HIGH = 256
_LOW = 64


def make_toy_pairs(
    folder: str | os.PathLike[str],
    *,
    classes: int = 4,
    per_class: int = 60,
    test_per_class: int = 15,
    seed: int = 0,
) -> Path:
    """Write generated image pairs and their CSVs to ``folder`` and return it.

    A picture is a striped bird on a noisy background; its class sets body hue and stripe
    direction, while place, size, light, stripe width and background vary. The high-resolution
    image is 256 px JPEG, the low one its 4 x 4 box reduction to 64 px PNG. The layout is that of
    a contest: ``train.csv`` (``img_path, upscale_img_path, label``), ``test.csv``
    (``id, img_path``), ``sample_submission.csv`` (``id, label``), images in ``train``,
    ``upscale_train`` and ``test``. ``test_answers.csv`` holds what a contest keeps back.

    Args:
        folder: Where to write; made if missing.
        classes: Number of classes, 2..25.
        per_class: Training pictures of each class, at least 1.
        test_per_class: Test pictures of each class.
        seed: The same seed writes the same pixels.

    Example:
        >>> import tempfile
        >>> folder = make_toy_pairs(tempfile.mkdtemp(), classes=2, per_class=2, test_per_class=1)
        >>> sorted(path.name for path in folder.iterdir())
        ['sample_submission.csv', 'test', 'test.csv', 'test_answers.csv', 'train', 'train.csv',
         'upscale_train']
    """
    if not 2 <= classes <= len(_SPECIES):
        raise ValueError(f"`classes` must be in 2..{len(_SPECIES)}, got {classes}")
    if per_class < 1:
        raise ValueError(f"`per_class` must be >= 1, got {per_class}")
    folder = Path(folder)
    for name in ("train", "upscale_train", "test"):
        (folder / name).mkdir(parents=True, exist_ok=True)
    random = np.random.default_rng(seed)

    train = []
    for number, kind in enumerate(random.permutation(np.repeat(np.arange(classes), per_class))):
        high = _draw(int(kind), classes, random)
        low_path, high_path = f"train/TRAIN_{number:05}.png", f"upscale_train/TRAIN_{number:05}.jpg"
        _shrink(high, _LOW).save(folder / low_path)
        high.save(folder / high_path, quality=95)
        train.append((f"./{low_path}", f"./{high_path}", _SPECIES[kind]))
    _write_csv(folder / "train.csv", ("img_path", "upscale_img_path", "label"), train)

    test, answers = [], []
    for number, kind in enumerate(
        random.permutation(np.repeat(np.arange(classes), test_per_class))
    ):
        name = f"TEST_{number:05}"
        _shrink(_draw(int(kind), classes, random), _LOW).save(folder / f"test/{name}.png")
        test.append((name, f"./test/{name}.png"))
        answers.append((name, _SPECIES[kind]))
    _write_csv(folder / "test.csv", ("id", "img_path"), test)
    _write_csv(folder / "test_answers.csv", ("id", "label"), answers)
    sample = [(name, _SPECIES[0]) for name, _ in test]
    _write_csv(folder / "sample_submission.csv", ("id", "label"), sample)
    return folder


def make_toy_folders(
    folder: str | os.PathLike[str],
    *,
    classes: int = 4,
    per_class: Mapping[str, int | Sequence[int]] | None = None,
    size: int = 64,
    seed: int = 0,
    label: str | None = None,
) -> Path:
    """Write generated images to ``folder/<split>/<class>/<number>.png`` and return ``folder``.

    The pictures are those of :func:`make_toy_pairs`, in the folders that image collections without
    a CSV come in, and with ``label`` a CSV of each split.

    Args:
        folder: Where to write; made if missing. What lies there already stays.
        classes: Number of classes, 2..25.
        per_class: Pictures of each class by split, one number or one for each class, e.g.
            ``{"train": (30, 8, 3), "test": 10}``; default is 30 in ``train``, 10 in ``val`` and
            10 in ``test``.
        size: Side of an image in pixels, 8..256.
        seed: The same seed writes the same pixels.
        label: Column of class names in ``folder/<split>.csv``, beside ``img_path``; None writes no
            CSV.

    Example:
        >>> import tempfile
        >>> folder = make_toy_folders(tempfile.mkdtemp(), classes=2, per_class={"train": 2})
        >>> sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*.png"))[:2]
        ['train/Amber Finch/0.png', 'train/Amber Finch/1.png']
    """
    if not 2 <= classes <= len(_SPECIES):
        raise ValueError(f"`classes` must be in 2..{len(_SPECIES)}, got {classes}")
    if not 8 <= size <= _HIGH:
        raise ValueError(f"`size` must be in 8..{_HIGH}, got {size}")
    folder = Path(folder)
    random = np.random.default_rng(seed)
    for split, count in (per_class or {"train": 30, "val": 10, "test": 10}).items():
        counts = list(count) if isinstance(count, Iterable) else [count] * classes
        if len(counts) != classes or min(counts) < 1:
            raise ValueError(
                f"`per_class` must be a number >= 1 or one for each of {classes} classes, got "
                f"{count} for {split!r}"
            )
        for kind, number_wanted in enumerate(counts):
            place = folder / split / _SPECIES[kind]
            place.mkdir(parents=True, exist_ok=True)
            for number in range(number_wanted):
                _shrink(_draw(kind, classes, random), size).save(place / f"{number}.png")
        if label is not None:
            works = Manifest.read_folders(folder / split, root=folder)
            works.write_csv(folder / f"{split}.csv", label=label)
    return folder


def _draw(kind: int, classes: int, random: np.random.Generator) -> Image.Image:
    """Draw one bird of class ``kind`` at 256 px."""
    y, x = np.mgrid[0:_HIGH, 0:_HIGH] / _HIGH
    centre_y, centre_x = random.uniform(0.4, 0.6, 2)
    size = random.uniform(0.22, 0.32)
    tilt = random.uniform(-0.4, 0.4)
    along = (x - centre_x) * np.cos(tilt) + (y - centre_y) * np.sin(tilt)
    across = (y - centre_y) * np.cos(tilt) - (x - centre_x) * np.sin(tilt)
    body = (along / size) ** 2 + (across / (0.6 * size)) ** 2 < 1
    head = (along - size) ** 2 + (across + 0.3 * size) ** 2 < (0.35 * size) ** 2

    angle = np.pi * kind / classes + tilt
    phase = (np.cos(angle) * x + np.sin(angle) * y) * 2 * np.pi / random.uniform(0.07, 0.1)
    stripes = 0.75 + 0.25 * np.sign(np.sin(phase + random.uniform(0, 2 * np.pi)))
    hue = (kind / classes + random.normal(0, 0.25 / classes)) % 1
    colour = _hue_to_rgb(hue) * random.uniform(0.7, 1.0)

    coarse = random.uniform(0.2, 0.8, (8, 8, 3)).repeat(32, axis=0).repeat(32, axis=1)
    pixels = 0.5 * coarse + 0.5 * random.uniform(0.2, 0.8, 3)
    pixels[body] = (stripes[..., None] * colour)[body]
    pixels[head] = 0.8 * colour
    pixels += random.normal(0, 0.06, pixels.shape)
    return Image.fromarray((pixels.clip(0, 1) * 255).round().astype(np.uint8))


def _hue_to_rgb(hue: float) -> npt.NDArray[np.float64]:
    """Return fully saturated RGB in [0, 1] for a hue in [0, 1)."""
    rgb: npt.NDArray[np.float64] = np.clip(
        np.abs((hue * 6 + np.array([0, 4, 2])) % 6 - 3) - 1, 0.1, 0.9
    )
    return rgb


def _shrink(high: Image.Image, size: int) -> Image.Image:
    return high.resize((size, size), Image.Resampling.BOX)


def _write_csv(path: Path, header: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    with path.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([header, *rows])
