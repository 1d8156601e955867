"""JPEG through Pillow, and the quality that a decoded image was once stored with."""

import io
from collections.abc import Sequence
from functools import cache
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image
from PIL.JpegImagePlugin import JpegImageFile
from torch import Tensor

_LUMA = np.array([0.299, 0.587, 0.114])
# A decoder rounds luma to whole levels and then each of R, G and B: together 0.35 levels, and as
# much on each coefficient, for the transform is orthonormal.
_ROUNDING = 0.35
_OUTLIERS = 0.1
_LEAST_GAIN = 0.1  # nats per coefficient; images that never were JPEG reach at most about 0.01


def jpeg_round_trip(image: Tensor, quality: int) -> Tensor:
    """Encode a uint8 image ``(C, H, W)``, C of 1 or 3, with Pillow and decode it again."""
    if len(image) not in (1, 3):
        raise ValueError(f"`jpeg` needs images of 1 or 3 channels, got {len(image)}")
    pixels = image.permute(1, 2, 0).cpu().numpy()
    file = io.BytesIO()
    Image.fromarray(pixels[..., 0] if len(image) == 1 else pixels).save(
        file, "JPEG", quality=quality
    )
    with Image.open(file) as decoded:
        back = torch.from_numpy(np.array(decoded)).reshape(*pixels.shape)
    return back.permute(2, 0, 1).contiguous().to(image.device)


def jpeg_quality(images: Sequence[Tensor]) -> int | None:
    r"""Return the JPEG quality that decoded images were stored with, or None.

    The DCT coefficients of a decoded JPEG lie near multiples of its quantisation steps. For each
    quality in 1..100 the coefficients get the likelihood of lying there, off by the decoder's
    rounding, against lying anywhere; the best quality counts if it beats "anywhere" clearly.

    Args:
        images: uint8 ``(C, H, W)``, C of 1 or 3, neither cropped nor resized since decoding.

    Returns:
        Quality in libjpeg's sense, or None where no quality explains the coefficients. Quality
        100 has steps of one level, which leave no trace.

    References:
        Fan and de Queiroz, Identification of Bitmap Compression History: JPEG Detection and
        Quantizer Estimation, 2003, https://doi.org/10.1109/TIP.2002.807361. They estimate each
        step by itself; here only the tables of Pillow's qualities compete.
    """
    blocks = np.concatenate([_luma_blocks(image) for image in images])  # (N, 8, 8)
    if not len(blocks):
        return None
    transform = _dct()
    coefficients = transform @ blocks @ transform.T
    # Zero is a multiple of every step, so coefficients near it speak for none.
    telling = np.abs(coefficients) > 3 * _ROUNDING
    if not telling.any():
        return None
    gains = [_gain(coefficients, telling, table) for table in _luma_tables()]
    best = int(np.argmax(gains))
    return best + 1 if gains[best] > _LEAST_GAIN else None


def _gain(
    coefficients: npt.NDArray[np.float64],
    telling: npt.NDArray[np.bool_],
    table: npt.NDArray[np.float64],
) -> float:
    """Return the mean log-likelihood ratio of lying on the lattice of ``table``."""
    step = np.broadcast_to(table, coefficients.shape)[telling]
    off = coefficients[telling] - step * np.round(coefficients[telling] / step)
    density = sum(np.exp(-(((off + k * step) / _ROUNDING) ** 2) / 2) for k in (-2, -1, 0, 1, 2))
    ratio = step * density / (np.sqrt(2 * np.pi) * _ROUNDING)
    return float(np.log((1 - _OUTLIERS) * ratio + _OUTLIERS).mean())


def _luma_blocks(image: Tensor) -> npt.NDArray[np.float64]:
    """Return the whole 8 x 8 blocks of luma, without those that a decoder has clipped."""
    pixels = image.permute(1, 2, 0).cpu().numpy().astype(np.float64)
    height, width = (side // 8 * 8 for side in pixels.shape[:2])
    pixels = pixels[:height, :width]
    luma = pixels[..., 0] if pixels.shape[2] == 1 else pixels @ _LUMA
    extreme = (pixels.min(axis=2) == 0) | (pixels.max(axis=2) == 255)
    blocks: npt.NDArray[np.float64] = _blocks(luma - 128)[~_blocks(extreme).any(axis=(1, 2))]
    return blocks


def _blocks(plane: npt.NDArray[Any]) -> npt.NDArray[Any]:
    height, width = plane.shape
    return plane.reshape(height // 8, 8, width // 8, 8).swapaxes(1, 2).reshape(-1, 8, 8)


def _dct() -> npt.NDArray[np.float64]:
    """Return the orthonormal 8-point DCT-II."""
    frequency, place = np.mgrid[0:8, 0:8]
    matrix: npt.NDArray[np.float64] = np.cos((place + 0.5) * frequency * np.pi / 8) / 2
    matrix[0] /= np.sqrt(2)
    return matrix


@cache
def _luma_tables() -> tuple[npt.NDArray[np.float64], ...]:
    """Return Pillow's luma quantisation table of each quality, 1 to 100."""
    tables = []
    for quality in range(1, 101):
        file = io.BytesIO()
        Image.new("L", (8, 8)).save(file, "JPEG", quality=quality)
        with Image.open(file) as image:
            assert isinstance(image, JpegImageFile)
            tables.append(np.array(image.quantization[0], dtype=np.float64).reshape(8, 8))
    return tuple(tables)
