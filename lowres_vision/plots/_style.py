"""What all pictures share: colours, letters and the way to disk.

Colours are those of Okabe and Ito, told apart under every common form of colour blindness; shades
run from ``cividis``, differences from ``PuOr``. No meaning hangs on colour alone.
"""

import os
import textwrap
from collections import Counter
from collections.abc import Sequence
from functools import cache
from typing import Any

import numpy as np
import numpy.typing as npt
from matplotlib import font_manager
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ft2font import FT2Font

BLUE, ORANGE, GREEN, VERMILLION = "#0072B2", "#E69F00", "#009E73", "#D55E00"
COLOURS = (BLUE, ORANGE, GREEN, VERMILLION, "#CC79A7", "#56B4E9", "#000000", "#B8A800")
LINES = ("-", "--", "-.", ":")
SHADES, DIFFERENCES = "cividis", "PuOr"

# Fonts of East Asian scripts as systems call them; the first that has all glyphs serves.
_FONTS = (
    "DejaVu Sans",
    "NanumGothic",
    "NanumBarunGothic",
    "Noto Sans CJK KR",
    "Noto Sans CJK JP",
    "Noto Sans KR",
    "Malgun Gothic",
    "Apple SD Gothic Neo",
    "AppleGothic",
    "Arial Unicode MS",
)


def panels(
    rows: int, columns: int, *, size: tuple[float, float], **options: Any
) -> tuple[Figure, npt.NDArray[np.object_]]:
    """Return a figure of ``size`` inches and its ``(rows, columns)`` axes."""
    figure = Figure(figsize=size, layout="constrained")
    return figure, figure.subplots(rows, columns, squeeze=False, **options)


def saved(figure: Figure, path: str | os.PathLike[str] | None) -> Figure:
    """Write ``figure`` to ``path``, if there is one, and return it."""
    if path is not None:
        figure.savefig(path, dpi=120)
    return figure


def line_style(number: int) -> dict[str, Any]:
    """Return colour and dashes of line ``number``, from 0; the first 32 differ."""
    return {
        "color": COLOURS[number % len(COLOURS)],
        "linestyle": LINES[number // len(COLOURS) % len(LINES)],
    }


def names_to_draw(names: Sequence[str], *, longest: int = 28) -> list[str]:
    """Return names as a picture can hold them.

    Long ones lose their middle, and get their number where that makes two alike. Where no installed
    font has the letters of a name, its number stands in for it, as empty boxes would tell nothing:
    "no. 3".
    """
    whole = [" ".join(str(name).split()) for name in names]
    short = [_shortened(name, longest) for name in whole]
    alike = {name for name, times in Counter(short).items() if times > 1}
    for number, name in enumerate(whole):
        if short[number] in alike and len(name) > longest:
            short[number] = f"{number}: {_shortened(name, longest - 5)}"
    return [_drawable(name, number) for number, name in enumerate(short)]


def in_legend(name: str) -> str:
    """Return a name that a legend shows: matplotlib hides those that begin with "_"."""
    return f" {name}" if name.startswith("_") else name


def missing_letters(figure: Figure, names: Sequence[str]) -> None:
    """Say under the picture how to get the names that could not be drawn."""
    missing = sum(font_of(str(name)) is None for name in names)
    if missing:
        words = (
            f"{missing} of {len(names)} names need a font that is not installed "
            f"(Korean: fonts-nanum, or Noto Sans CJK)"
        )
        width = int(15 * figure.get_figwidth())
        lines = textwrap.wrap(words, width)
        figure.supxlabel("\n".join(lines), fontsize="x-small")
        figure.set_figheight(figure.get_figheight() + 0.15 + 0.15 * len(lines))


def letters(axes: Axes) -> None:
    """Give every text of ``axes`` a font that has its letters."""
    legend = axes.get_legend()
    named = [] if legend is None else legend.get_texts()
    ticks = [*axes.get_xticklabels(), *axes.get_yticklabels()]
    for text in [axes.title, axes.yaxis.label, *axes.texts, *ticks, *named]:
        text.set_fontfamily(font_of(text.get_text()) or _FONTS[0])


@cache
def font_of(text: str) -> str | None:
    """Return an installed font that has all letters of ``text``, or None."""
    for name in _FONTS:
        charmap = _charmap(name)
        if charmap and all(ord(letter) in charmap for letter in text):
            return name
    return None


@cache
def _charmap(name: str) -> frozenset[int]:
    try:
        path = font_manager.findfont(name, fallback_to_default=False)
    except ValueError:
        return frozenset()
    return frozenset(FT2Font(path).get_charmap())


def _shortened(name: str, longest: int) -> str:
    if len(name) <= longest:
        return name
    half = (longest - 1) // 2
    return f"{name[:half].rstrip()}…{name[-half:].lstrip()}"


def _drawable(name: str, number: int) -> str:
    # A pair of dollars would be read as mathematics.
    return f"no. {number}" if font_of(name) is None else name.replace("$", r"\$")
