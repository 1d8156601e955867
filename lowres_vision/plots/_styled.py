"""A picture of what style transfer has made of a manifest's rows."""

import os

import numpy as np
from matplotlib.figure import Figure

from lowres_vision._checks import check_range
from lowres_vision.data import Manifest, decode_image
from lowres_vision.plots._images import style_panel
from lowres_vision.plots._style import letters, missing_letters, names_to_draw, saved


def styled_rows(
    manifest: Manifest, path: str | os.PathLike[str] | None = None, *, most: int = 6
) -> Figure:
    """Draw images of :meth:`~lowres_vision.augment.StyleTransfer.top_up` beside their sources.

    As :func:`style_panel` does: content, style and result, a row each, with the name of the class.

    Args:
        manifest: What ``top_up`` returned.
        path: Picture to write, its suffix choosing the format; None writes none.
        most: Rows drawn, spread evenly over the restyled ones.

    Returns:
        The figure.

    Raises:
        DataError: If an image cannot be decoded.
        ValueError: If no row is a restyled one, or what one was made of is no longer in the
            manifest.

    Example:
        >>> import tempfile
        >>> from torch import nn
        >>> from lowres_vision.augment import StyleTransfer
        >>> from lowres_vision.data import make_toy_folders
        >>> folder = make_toy_folders(tempfile.mkdtemp(), per_class={"train": 2}, size=16)
        >>> birds = Manifest.read_folders(folder / "train")
        >>> network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU())
        >>> transfer = StyleTransfer(network, content_layers=["1"], style_layers=["0"], steps=1)
        >>> made = transfer.top_up(birds, folder / "styled", to={"Azure Tit": 4})
        >>> figure = styled_rows(made)
        >>> len(figure.axes), figure.axes[0].get_ylabel()  # 2 rows of 3
        (6, 'Azure Tit')
    """
    check_range("most", most, 1)
    styles = manifest.columns.get("style_id", ())
    restyled = [row for row, style in enumerate(styles) if style]
    if not restyled:
        raise ValueError(
            f"{manifest.source} has no restyled rows; give the manifest that "
            f"`StyleTransfer.top_up` returned"
        )
    places = np.linspace(0, len(restyled) - 1, min(most, len(restyled))).round().astype(int)
    chosen = [restyled[place] for place in places]
    row_of = {id: row for row, id in enumerate(manifest.ids)}
    triples = []
    for row in chosen:
        sources = manifest.columns["content_id"][row], styles[row]
        if gone := [id for id in sources if id not in row_of]:
            raise ValueError(
                f"{manifest.ids[row]!r} was made of {gone[0]!r}, which is not in the manifest; "
                f"give the whole one that `StyleTransfer.top_up` returned"
            )
        triples.append((*(row_of[id] for id in sources), row))
    contents, styled_after, results = (
        [decode_image(manifest.root / manifest.low[row]) for row in column]
        for column in zip(*triples, strict=True)
    )
    figure = style_panel(contents, styled_after, results)
    names = names_to_draw(manifest.classes)
    for axes, row in zip(figure.axes[::3], chosen, strict=True):
        axes.set_ylabel(names[manifest.labels[row]])
        letters(axes)
    missing_letters(figure, sorted({manifest.classes[manifest.labels[row]] for row in chosen}))
    return saved(figure, path)
