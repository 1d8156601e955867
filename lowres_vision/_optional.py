"""Optional packages: one helper, whose error is the pip line that installs what is missing."""

from importlib import import_module
from types import ModuleType


def require(module: str, *, extra: str) -> ModuleType:
    """Import and return ``module``, or raise an ImportError that names the extra to install."""
    try:
        return import_module(module)
    except ModuleNotFoundError as error:
        if error.name != module.partition(".")[0]:
            raise  # the package is there; something inside it is broken, and its own words are best
        raise ModuleNotFoundError(
            f"this part of lowres_vision needs `{error.name}`, which is not installed; "
            f"install it with: pip install 'lowres-vision[{extra}]'",
            name=error.name,
        ) from None
