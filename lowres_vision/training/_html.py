"""HTML that needs nothing but itself: text escaped, pictures inside, no scripts, no network."""

import base64
import html
import io
from collections.abc import Iterable, Sequence
from typing import Any

_STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; margin: 2rem auto; max-width: 70rem; padding: 0 1rem;
  color: #222; background: #fff }
h1 { font-size: 1.6rem } h2 { font-size: 1.2rem; margin-top: 2.2rem; border-bottom: 1px solid #ccc }
table { border-collapse: collapse; font-size: .9rem } th, td { padding: .15rem .7rem;
  text-align: left; vertical-align: top; border-bottom: 1px solid #eee; overflow-wrap: anywhere }
td.number { text-align: right; font-variant-numeric: tabular-nums; white-space: nowrap }
img { max-width: 100%; height: auto } pre { background: #f5f5f5; padding: .7rem; overflow-x: auto }
.bar { display: inline-block; height: .7em; background: #0072B2; min-width: 1px }
.bars td:last-child { width: 14rem }
"""

# A browser that follows this fetches nothing and runs nothing, whatever the text holds.
_POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"


def page(title: str, parts: Iterable[str]) -> str:
    """Return a document of ``parts``, which are HTML."""
    return (
        f'<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}">\n'
        f'<meta name="viewport" content="width=device-width">\n'
        f"<title>{text(title)}</title>\n<style>{_STYLE}</style>\n</head>\n<body>\n"
        f"<h1>{text(title)}</h1>\n" + "\n".join(parts) + "\n</body>\n</html>\n"
    )


def text(value: Any) -> str:
    """Return ``value`` as words that stay words."""
    return html.escape(str(value))


def heading(words: str) -> str:
    """Return the heading of a section."""
    return f"<h2>{text(words)}</h2>"


def paragraph(words: str) -> str:
    """Return a paragraph."""
    return f"<p>{text(words)}</p>"


def lines(words: str) -> str:
    """Return lines as they stand."""
    return f"<pre>{text(words)}</pre>"


def table(head: Sequence[str], rows: Iterable[Sequence[Any]], *, bars: bool = False) -> str:
    """Return a table; floats get four digits, and with ``bars`` the last of a row a bar, too."""
    cells = [f"<tr>{''.join(f'<th>{text(name)}</th>' for name in head)}</tr>"]
    for row in rows:
        drawn = [_cell(value) for value in row]
        if bars:
            drawn.append(f'<td><span class="bar" style="width:{100 * row[-1]:.1f}%"></span></td>')
        cells.append(f"<tr>{''.join(drawn)}</tr>")
    opening = '<table class="bars">' if bars else "<table>"
    return f"{opening}\n" + "\n".join(cells) + "\n</table>"


def picture(figure: Any, description: str) -> str:
    """Return a matplotlib figure as an image that is part of the document."""
    data = io.BytesIO()
    figure.savefig(data, format="png", dpi=110)
    encoded = base64.b64encode(data.getvalue()).decode()
    return f'<p><img alt="{text(description)}" src="data:image/png;base64,{encoded}"></p>'


def _cell(value: Any) -> str:
    if isinstance(value, bool) or not isinstance(value, int | float):
        return f"<td>{text('' if value is None else value)}</td>"
    return f'<td class="number">{f"{value:.4f}" if isinstance(value, float) else value}</td>'
