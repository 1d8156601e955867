"""The resize in plain torch: two tap-matrix products per image. This is the specification.

Every other implementation is tested against it, and it serves where none of them can: on
devices without a kernel, in double precision, and in exported graphs.
"""

from collections.abc import Sequence
from functools import partial

import torch
from torch import Tensor

from lowres_vision.ops._resize.settings import Settings
from lowres_vision.ops._resize.taps import tap_matrix


def resize_reference(
    images: Tensor, height: int, width: int, settings: Settings, dtype: torch.dtype
) -> Tensor:
    """Crop, flip, resize and normalise ``(B, C, H, W)`` images to ``(B, C, height, width)``.

    With tap matrices R ``(height, H)`` and S ``(width, W)`` of an image's box, a channel becomes
    ``R (gain * image + bias) S^T``. The rows of R and S sum to 1, so it does not matter whether
    the affine map comes before or after; before, it touches fewer pixels when enlarging.

    Args:
        images: ``(B, C, H, W)`` uint8 or float.
        height: Output height.
        width: Output width.
        settings: What to do; mixing is left to :func:`mix_reference`.
        dtype: float32 or float64, in which the sums run and which the result has.
    """
    x = _scaled(images.to(dtype), settings.gain)
    if settings.bias is not None:
        x = x + settings.bias.to(dtype)[:, None, None]
    if settings.boxes is None:
        x = _flipped(x, settings.flip)  # the whole image's grid is symmetric
    rows, columns = _matrices(images.shape[-2:], (height, width), settings, x)
    return _product(rows, x, columns.mT)


def resize_backward_reference(
    gradient: Tensor, H: int, W: int, settings: Settings, dtype: torch.dtype
) -> Tensor:
    """Return the gradient of the images, ``gain * R^T gradient S``, ``(B, C, H, W)``.

    Args are those of :func:`resize_reference`, with the images' size in place of the result's;
    mixing is left to :func:`mix_backward_reference`.
    """
    g = _scaled(gradient.to(dtype), settings.gain)
    rows, columns = _matrices((H, W), gradient.shape[-2:], settings, g)
    result = _product(rows.mT, g, columns)
    return _flipped(result, settings.flip) if settings.boxes is None else result


def mix_reference(images: Tensor, settings: Settings) -> Tensor:
    """Mix each of ``(B, C, H, W)`` images with its partner; see :class:`lowres_vision.ops.Mix`."""
    partner, lam, paste = settings.partner, settings.lam, settings.paste
    if partner is None or lam is None:
        return images
    others = images[partner]  # (B, C, H, W)
    if paste is None:
        share = lam.to(images.dtype)[:, None, None, None]
        return share * images + (1 - share) * others
    return torch.where(_inside(paste, images), others, images)


def mix_backward_reference(gradient: Tensor, settings: Settings) -> Tensor:
    """Return the gradient of :func:`mix_reference`'s images; partners may be shared."""
    partner, lam, paste = settings.partner, settings.lam, settings.paste
    if partner is None or lam is None:
        return gradient
    gradient = gradient.to(sum_dtype(gradient.dtype))  # parts add up
    if paste is None:
        share = lam.to(gradient.dtype)[:, None, None, None]
        own, others = share * gradient, (1 - share) * gradient
    else:
        inside = _inside(paste, gradient)
        own, others = gradient * ~inside, gradient * inside
    if own.is_cuda:  # sorts, where index_add adds in whatever order threads arrive
        return own.index_put((partner,), others, accumulate=True)
    return own.index_add(0, partner, others)


def compose(
    images: Sequence[Tensor],
    height: int,
    width: int,
    settings: Settings,
    dtype: torch.dtype,
    *,
    ragged: bool,
) -> Tensor:
    """Return the whole operation on one batch, or where ``ragged`` on a list of ``(C, H, W)``.

    ``dtype`` is the one that the caller casts the result to.
    """
    sums = sum_dtype(images[0].dtype, dtype)
    if not ragged:
        return mix_reference(resize_reference(images[0], height, width, settings, sums), settings)
    results = [
        resize_reference(image[None], height, width, settings.of_image(index), sums)
        for index, image in enumerate(images)
    ]
    return mix_reference(torch.cat(results), settings)


def exporting() -> bool:
    """Whether a graph is being written that should hold what every runtime knows."""
    # Up to torch 2.11, is_exporting() is true in all that torch.compile traces. The flag is
    # private, and may go one day.
    flag = getattr(torch.compiler, "_is_exporting_flag", None)
    exported: bool = torch.compiler.is_exporting() if flag is None else flag
    return exported or torch._C._get_tracing_state() is not None


def sum_dtype(*dtypes: torch.dtype) -> torch.dtype:
    """Return the dtype to sum in: float64 if any of ``dtypes`` is, else float32."""
    return torch.float64 if torch.float64 in dtypes else torch.float32


def _matrices(
    source: Sequence[int], size: Sequence[int], settings: Settings, like: Tensor
) -> tuple[Tensor, Tensor]:
    """Return R and S in the dtype of ``like``: one pair for all, or ``(B, 1, ...)`` by box.

    Without boxes the flip is left to the caller: one pair then serves every image.
    """
    (H, W), (height, width) = source, size
    taps = partial(tap_matrix, mode=settings.mode, antialias=settings.antialias)
    if settings.boxes is None:
        zero = torch.zeros((), dtype=torch.float64, device=like.device)
        rows, columns = taps(zero, zero + H, H, height), taps(zero, zero + W, W, width)
        return rows.to(like.dtype), columns.to(like.dtype)  # (height, H), (width, W)
    top, left, extent_y, extent_x = settings.boxes.to(torch.float64).unbind(-1)  # (B,) each
    rows, columns = taps(top, extent_y, H, height), taps(left, extent_x, W, width)
    if settings.flip is not None:
        columns = torch.where(settings.flip[:, None, None], columns.flip(-2), columns)
    # (B, 1, height, H), (B, 1, width, W)
    return rows.to(like.dtype)[:, None], columns.to(like.dtype)[:, None]


def _scaled(x: Tensor, gain: Tensor | None) -> Tensor:
    return x if gain is None else x * gain.to(x.dtype)[:, None, None]


def _flipped(x: Tensor, flip: Tensor | None) -> Tensor:
    return x if flip is None else torch.where(flip[:, None, None, None], x.flip(-1), x)


def _inside(paste: Tensor, images: Tensor) -> Tensor:
    top, left, height, width = paste[:, :, None].unbind(1)  # (B, 1) each
    ys = torch.arange(images.shape[-2], device=images.device)
    xs = torch.arange(images.shape[-1], device=images.device)
    in_rows = (ys >= top) & (ys < top + height)  # (B, H)
    in_columns = (xs >= left) & (xs < left + width)  # (B, W)
    return in_rows[:, None, :, None] & in_columns[:, None, None, :]  # (B, 1, H, W)


def _product(left: Tensor, x: Tensor, right: Tensor) -> Tensor:
    if torch.is_autocast_enabled(x.device.type):  # would run the products in half precision
        with torch.autocast(x.device.type, enabled=False):
            return left @ x @ right
    return left @ x @ right
