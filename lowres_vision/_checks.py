"""One wording for the errors that public functions and constructors raise.

Every message names the argument, the rule and the value that broke it. The checks look at
Python values, shapes, dtypes and devices, never at tensor values, so they cost nothing on a
GPU and stay out of the way of ``torch.compile``.
"""

from collections.abc import Collection


def check_size(name: str, size: object) -> tuple[int, int]:
    """Return ``size`` as ``(height, width)``; an int stands for a square.

    Raises:
        TypeError: If it is neither an int nor two ints.
        ValueError: If a side is not positive.
    """
    pair = (size, size) if isinstance(size, int) else size
    if not (
        isinstance(pair, (tuple, list))  # torch.compile of torch 2.8 knows no union of types
        and len(pair) == 2
        and all(isinstance(side, int) and not isinstance(side, bool) for side in pair)
    ):
        raise TypeError(f"`{name}` must be an int or (height, width) of ints, got {size!r}")
    height, width = pair
    if height <= 0 or width <= 0:
        raise ValueError(f"`{name}` must be (height, width) with both > 0, got {size!r}")
    return height, width


def check_choice(name: str, value: object, choices: Collection[str]) -> None:
    """Raise ``ValueError`` unless ``value`` is one of ``choices``."""
    if value not in choices:
        listed = ", ".join(repr(choice) for choice in choices)
        raise ValueError(f"`{name}` must be one of {listed}, got {value!r}")


def check_range(
    name: str,
    value: float,
    low: float | None = None,
    high: float | None = None,
    *,
    open_low: bool = False,
) -> None:
    """Raise ``ValueError`` unless ``low <= value <= high`` (``low < value`` if ``open_low``).

    A bound of None is no bound; NaN is always refused.
    """
    above = low is None or (value > low if open_low else value >= low)
    below = high is None or value <= high
    if above and below and value == value:
        return
    rules = []
    if low is not None:
        rules.append(f"{'>' if open_low else '>='} {low}")
    if high is not None:
        rules.append(f"<= {high}")
    raise ValueError(f"`{name}` must be {' and '.join(rules) or 'a number'}, got {value!r}")
