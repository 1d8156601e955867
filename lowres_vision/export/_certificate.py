"""What an exported file was compared with, on what, and how far off it was."""

import dataclasses
import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch
from torch import Tensor

from lowres_vision._files import write_whole


@dataclass(frozen=True)
class Certificate:
    """The comparison of an exported file with the Module it was made from.

    Attributes:
        file: Name of the exported file.
        sha256: Its digest.
        images: Number of images both were run on, one by one and all at once.
        largest_difference: Largest absolute difference of an output.
        tolerance: What it had to stay within.
        same_class: Images with the same class.
        undecided: Images where a class could differ: the Module's best two outputs lie within
            ``margin`` of each other.
        margin: See above.
        versions: Of the packages involved.
        notes: What the caller stored with the file, e.g. class names.
    """

    file: str
    sha256: str
    images: int
    largest_difference: float
    tolerance: float
    same_class: int
    undecided: int
    margin: float
    versions: dict[str, str]
    notes: dict[str, str]

    def save(self, path: Path) -> None:
        """Write it as JSON."""
        write_whole(path, (json.dumps(dataclasses.asdict(self), indent=2) + "\n").encode())


def certify(
    file: Path,
    run: Callable[[Tensor], Tensor],
    images: Tensor,
    expected: Tensor,
    *,
    name: str,
    tolerance: float,
    margin: float,
    packages: tuple[str, ...],
    notes: dict[str, str],
) -> Certificate:
    """Compare ``run`` with what the Module gave, at batch size one and at the whole batch.

    Raises:
        ValueError: If an output differs by more than ``tolerance``, or a class differs that the
            Module decided by more than ``margin``.
    """
    singles = torch.cat([run(image[None]) for image in images])
    whole = run(images)
    difference = max(float((found - expected).abs().max()) for found in (singles, whole))
    best = expected.topk(2, dim=1).values
    decided = best[:, 0] - best[:, 1] > margin
    same = (singles.argmax(1) == expected.argmax(1)) & (whole.argmax(1) == expected.argmax(1))
    if not difference <= tolerance or bool((decided & ~same).any()):  # a NaN is no agreement
        raise ValueError(
            f"the exported model differs from the Module by up to {difference:.2g} "
            f"(`tolerance` {tolerance:g}) and gives another class for "
            f"{int((decided & ~same).sum())} of {len(images)} images; nothing was written"
        )
    return Certificate(
        file=name,
        sha256=hashlib.sha256(file.read_bytes()).hexdigest(),
        images=len(images),
        largest_difference=difference,
        tolerance=tolerance,
        same_class=int(same.sum()),
        undecided=int((~decided).sum()),
        margin=margin,
        versions=installed_versions(*packages),
        notes=notes,
    )


def installed_versions(*packages: str) -> dict[str, str]:
    """Return the versions of this library, of torch and of ``packages``."""
    return {name: _version(name) for name in ("lowres-vision", "torch", *packages)}


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "unknown"
