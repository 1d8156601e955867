"""Which images are restyled after which, and the rows that they become."""

import hashlib
import io
import os
from collections.abc import Callable, Container, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image
from torch import Tensor, nn

from lowres_vision._checks import check_choice, check_range
from lowres_vision._files import write_whole
from lowres_vision._random import stream
from lowres_vision.data import Manifest, decode_image
from lowres_vision.data._rows import row_numbers


class StylePair(NamedTuple):
    """A content row, a style row, and the label of the content row."""

    content: int
    style: int
    label: int


def draw_style_pairs(
    labels: Sequence[int],
    *,
    to: int | Mapping[int, int],
    rows: Sequence[int] | npt.NDArray[np.int64] | None = None,
    style_from: Literal["same", "other", "any"] = "same",
    seed: int = 0,
) -> list[StylePair]:
    """Draw the pairs that bring rare classes up to a count.

    A class with fewer images gets as many pairs as it lacks. Its images are content in turn, in a
    random order, so each is used as often as any other, give or take one; of each content
    image's possible styles none comes twice before all have come once. The pairs of a class
    depend on its own rows, ``style_from``, the styles on offer and ``seed`` alone.

    Args:
        labels: Class index of each row.
        to: Least number of images of each class, or a number by class index.
        rows: Row numbers to count and to draw from; default all.
        style_from: ``"same"`` draws the style from other images of the same class, so that the
            label is right whether it lies in the content or, as with painters, in the style;
            ``"other"`` from other classes, which keeps shapes and varies textures; ``"any"``
            from all other images.
        seed: Non-negative.

    Returns:
        Pairs by class index, each class in the order drawn.

    Raises:
        IndexError: If a row is not there.
        TypeError: If ``rows`` are no row numbers: a mask, say.
        ValueError: If a class to be topped up has no image, or no style image is on offer.

    Example:
        >>> draw_style_pairs([0, 0, 0, 1, 1], to=3)
        [StylePair(content=4, style=3, label=1)]
    """
    check_choice("style_from", style_from, ("same", "other", "any"))
    chosen = row_numbers(range(len(labels)) if rows is None else rows, len(labels)).tolist()
    found = sorted({labels[row] for row in chosen})
    wanted = to if isinstance(to, Mapping) else dict.fromkeys(found, to)
    for count in wanted.values():
        check_range("to", count, 0)
    pairs = []
    for label in sorted(wanted):
        own = [row for row in chosen if labels[row] == label]
        lacking = wanted[label] - len(own)
        if lacking <= 0:
            continue
        if not own:
            raise ValueError(f"class {label} has no image among `rows`, so none can be restyled")
        generator = stream(seed, label)
        contents = _shuffled(own, generator)
        styles = {
            row: _shuffled(_on_offer(row, label, labels, chosen, style_from), generator)
            for row in contents[:lacking]
        }
        for number in range(lacking):
            content = contents[number % len(contents)]
            offered = styles[content]
            if not offered:
                raise ValueError(
                    f"no image of {style_from!r} class is on offer as style for row {content} of "
                    f"class {label}; use style_from='any'"
                )
            style = offered[number // len(contents) % len(offered)]
            pairs.append(StylePair(content, style, label))
    return pairs


def _on_offer(
    row: int, label: int, labels: Sequence[int], chosen: Sequence[int], style_from: str
) -> list[int]:
    return [
        other
        for other in chosen
        if other != row
        and (style_from == "any" or (labels[other] == label) == (style_from == "same"))
    ]


def _shuffled(rows: list[int], generator: torch.Generator) -> list[int]:
    return [rows[i] for i in torch.randperm(len(rows), generator=generator).tolist()]


def add_rows(
    manifest: Manifest,
    pairs: Sequence[StylePair],
    folder: Path,
    transfer: nn.Module,
    *,
    callback: Callable[[int, int], None] | None,
) -> Manifest:
    """Restyle what is not in ``folder`` yet; see ``StyleTransfer.top_up``."""
    folder.mkdir(parents=True, exist_ok=True)
    settings = _fingerprint(transfer)
    device = next(transfer.buffers()).device
    files: list[Path] = []
    for done, pair in enumerate(pairs, start=1):
        content, style = (
            decode_image(manifest.root / manifest.low[row])[None]
            for row in (pair.content, pair.style)
        )
        name = hashlib.sha256(settings.encode())
        for image in (content, style):
            name.update(f"{tuple(image.shape)}".encode() + image.numpy().tobytes())
        files.append(folder / f"{name.hexdigest()[:32]}.png")
        if not files[-1].exists():
            write_whole(files[-1], _png(transfer(content.to(device), style.to(device))[0]))
        if callback is not None:
            callback(done, len(pairs))
    ids = [*manifest.ids]
    taken = set(ids)
    for pair in pairs:
        ids.append(_new_id(manifest.ids[pair.content], manifest.ids[pair.style], taken))
        taken.add(ids[-1])
    labels = np.array([pair.label for pair in pairs], dtype=np.int64)

    def extended(cells: tuple[str, ...]) -> tuple[str, ...]:
        return (*cells, *(cells[pair.content] for pair in pairs))

    columns = {name: extended(cells) for name, cells in manifest.columns.items()}
    for column, sources in (
        ("content_id", [pair.content for pair in pairs]),
        ("style_id", [pair.style for pair in pairs]),
    ):
        before = manifest.columns.get(column, ("",) * len(manifest))
        columns[column] = (*before, *(manifest.ids[row] for row in sources))
    place = os.path.relpath(folder, manifest.root)
    if place.startswith(".."):  # a step up leads elsewhere from where a link has led to
        place = os.path.relpath(folder.resolve(), manifest.root.resolve())
    paths = ((Path(place) / file.name).as_posix() for file in files)
    return replace(
        manifest,
        low=(*manifest.low, *paths),
        ids=tuple(ids),
        labels=np.concatenate([manifest.labels, labels]),
        groups=None if manifest.groups is None else extended(manifest.groups),
        columns=columns,
    )


def _new_id(content: str, style: str, taken: Container[str]) -> str:
    """Return an id, numbered where it is taken: a pair comes again once its styles are used up."""
    new = name = f"styled-{content}-{style}"
    number = 1
    while new in taken:
        number += 1
        new = f"{name}-{number}"
    return new


def _fingerprint(transfer: nn.Module) -> str:
    """Return a hash of the feature network and of every setting that shapes the result."""
    hashed = hashlib.sha256(repr(transfer).encode())
    for name, value in transfer.state_dict(keep_vars=False).items():
        hashed.update(f"{name} {tuple(value.shape)}".encode())
        hashed.update(value.detach().cpu().contiguous().numpy().tobytes())
    return hashed.hexdigest()


def _png(image: Tensor) -> bytes:
    file = io.BytesIO()
    Image.fromarray(image.permute(1, 2, 0).cpu().contiguous().numpy()).save(file, "PNG")
    return file.getvalue()
