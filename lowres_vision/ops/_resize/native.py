"""The C kernel: finding its library, and handing it tensors.

The library is built with the package where there is a compiler; :func:`available` says whether
it is there. It is plain C, found beside this file and loaded with ctypes, which releases the
interpreter's lock for the time of a call.
"""

import ctypes
import functools
import logging
import os
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from lowres_vision.ops._resize.checks import box_slack, check_values
from lowres_vision.ops._resize.settings import Settings

_VERSION = 3  # LRV_VERSION in native.c
_INSTRUCTIONS = ("portable", "avx2", "avx512", "avx512bf16")
_TYPES = {torch.uint8: 0, torch.float16: 1, torch.bfloat16: 2, torch.float32: 3}
_PROCESS = os.getpid()
_LONGEST = 1 << 24  # pixels of a side; keeps every index of the kernel far from its limits
# Results larger than about half of a last-level cache are written past it. Below, a consumer
# that reads them at once is better served by ordinary stores (0.26 against 0.44 ms, B=8).
_STREAM_BYTES = 16 << 20


class _Image(ctypes.Structure):
    _fields_ = (
        ("data", ctypes.c_void_p),
        ("channel", ctypes.c_int64),
        ("row", ctypes.c_int64),
        ("column", ctypes.c_int64),
        ("height", ctypes.c_int64),
        ("width", ctypes.c_int64),
    )


class _Job(ctypes.Structure):
    _fields_ = (
        ("image", _Image),
        ("next_image", ctypes.c_int64),
        ("images", ctypes.POINTER(_Image)),
        ("result", ctypes.c_void_p),
        ("batch", ctypes.c_int64),
        ("channels", ctypes.c_int64),
        ("height", ctypes.c_int64),
        ("width", ctypes.c_int64),
        ("boxes", ctypes.c_void_p),
        ("flip", ctypes.c_void_p),
        ("gain", ctypes.c_void_p),
        ("bias", ctypes.c_void_p),
        ("partner", ctypes.c_void_p),
        ("lam", ctypes.c_void_p),
        ("paste", ctypes.c_void_p),
        ("team", ctypes.c_void_p),
        ("slack", ctypes.c_double),
        ("image_type", ctypes.c_int32),
        ("result_type", ctypes.c_int32),
        ("bicubic", ctypes.c_int32),
        ("antialias", ctypes.c_int32),
        ("backward", ctypes.c_int32),
        ("channels_last", ctypes.c_int32),
        ("stream", ctypes.c_int32),
        ("instructions", ctypes.c_int32),
        ("threads", ctypes.c_int32),
    )


def available() -> bool:
    """Whether the library was built and loads; says once where it does not."""
    return _loads()


# All that torch.compiler.assume_constant_result does; calling it imports the compiler, for 2 s.
available._dynamo_marked_constant = True  # type: ignore[attr-defined]


@functools.cache
def instructions() -> str:
    """Return the best of the kernel's instruction sets that this machine has."""
    return _INSTRUCTIONS[_library().lrv_instructions()]


def serves(images: Sequence[Tensor], dtype: torch.dtype, *sides: int) -> bool:
    """Whether the kernel can do this work; it knows nothing of float64."""
    return (
        dtype in _TYPES
        and all(image.dtype in _TYPES for image in images)
        and all(max(image.shape[-2:]) < _LONGEST for image in images)
        and max(sides) < _LONGEST
        and available()
    )


def run(
    out: Tensor,
    images: Sequence[Tensor],
    settings: Settings,
    *,
    ragged: bool = False,
    backward: bool = False,
    checked: bool = True,
    instructions: str | None = None,
) -> None:
    """Fill ``out`` ``(B, C, height, width)``, dense, contiguous or channels_last.

    ``images`` holds one ``(B, C, H, W)`` batch, or where ``ragged`` B images ``(C, H, W)``. Going
    ``backward``, it holds the gradient of a resize's result and ``out`` becomes that of its
    images. Unless ``checked``, the kernel looks at the values that :func:`check_values` is about,
    and nothing is written where it would raise. ``instructions`` asks for a lesser set than the
    machine has, for tests.
    """
    if out.numel() == 0:
        return
    images = [image.resolve_neg() for image in images]
    # Named, so that what is converted here outlives the call.
    keep = [
        _as(settings.boxes, torch.float64),
        _as(settings.flip, torch.bool),
        _as(settings.gain, torch.float64),
        _as(settings.bias, torch.float64),
        _as(settings.partner, torch.int64),
        _as(settings.lam, torch.float32),
        _as(settings.paste, torch.int64),
    ]
    library = _library()
    job = _Job(
        _image(images[0]),
        0 if ragged else images[0].stride(0),
        (_Image * len(images))(*map(_image, images)) if ragged else None,
        out.data_ptr(),
        *out.shape,
        *(None if tensor is None else tensor.data_ptr() for tensor in keep),
        _team(),
        -1 if checked or settings.boxes is None else box_slack(settings.boxes.dtype),
        _TYPES[images[0].dtype],
        _TYPES[out.dtype],
        settings.mode == "bicubic",
        settings.antialias,
        backward,
        not out.is_contiguous(),
        out.nbytes > _STREAM_BYTES,
        library.lrv_instructions() if instructions is None else _INSTRUCTIONS.index(instructions),
        torch.get_num_threads(),
    )
    status = library.lrv_resize(ctypes.byref(job))
    if status == 1:
        raise MemoryError("the resize kernel could not allocate its tables")
    if status and not checked:
        check_values(settings.boxes, settings.partner, images)
    if status == 2:
        raise IndexError(f"`mix.partner` must be in 0..{out.shape[0] - 1}")
    if status == 3:  # by a rule that is not quite the check's: nothing was written
        raise ValueError("`boxes` must be inside their images, with sides > 0")


@functools.cache
def _loads() -> bool:
    try:
        _library()
    except OSError as error:
        logging.getLogger("lowres_vision").warning(
            "resizing on the CPU runs in plain torch, several times slower: %s", error
        )
        return False
    return True


@functools.cache
def _library() -> ctypes.CDLL:
    path = Path(__file__).with_name("libresize.so")
    if not path.exists():
        raise OSError(f"{path.name} was not built with this installation")
    library = ctypes.CDLL(str(path))
    if library.lrv_version() != _VERSION:
        raise OSError(f"{path.name} belongs to another version of lowres_vision; build it again")
    return library


def _team() -> int | None:
    """Return the address of GOMP_parallel, of the OpenMP that torch runs on, where it serves."""
    # Its threads do not survive a fork, and it would wait for them forever.
    return _openmp() if os.getpid() == _PROCESS else None


@functools.cache
def _openmp() -> int | None:
    try:
        return ctypes.cast(ctypes.CDLL(None).GOMP_parallel, ctypes.c_void_p).value
    except (AttributeError, OSError, TypeError):  # another OpenMP; Windows has no CDLL(None)
        return None


def _image(image: Tensor) -> _Image:
    return _Image(image.data_ptr(), *image.stride()[-3:], *image.shape[-2:])


def _as(tensor: Tensor | None, dtype: torch.dtype) -> Tensor | None:
    if tensor is None or (tensor.dtype == dtype and tensor.is_contiguous()):
        return tensor  # sparing two calls that would do nothing, for 40 us when caches are cold
    return tensor.to(dtype).contiguous()
