"""The public door of the resize: keyword surface, checks and choice of implementation."""

import functools
from collections.abc import Sequence
from typing import Literal, NamedTuple, cast

import torch
from torch import Tensor

from lowres_vision._checks import check_choice, check_size
from lowres_vision.ops._resize import cuda, native
from lowres_vision.ops._resize.checks import (
    FLOATS,
    check_images,
    check_mix,
    check_out,
    check_per_image,
    check_rounding,
    check_values,
)
from lowres_vision.ops._resize.operator import (
    resize_op,
    resize_out_op,
    resize_ragged_op,
    resize_undispatched,
    undispatched,
)
from lowres_vision.ops._resize.reference import compose, exporting
from lowres_vision.ops._resize.rounded import resize_uint8
from lowres_vision.ops._resize.settings import Settings

_MODES = ("bilinear", "bicubic")
_IMPLEMENTATIONS = ("auto", "reference", "native", "triton")


class Mix(NamedTuple):
    """A drawn CutMix or MixUp, applied by :func:`resize` to the images it makes.

    With ``box`` (CutMix), the pixels inside it come from the partner's resized image, and ``lam``
    is only the label's share of the image itself: one minus the share of output pixels inside.
    Without (MixUp), the result is ``lam * own + (1 - lam) * partner``. The targets mix as
    ``lam * targets + (1 - lam) * targets[partner]`` either way.

    Args:
        partner: ``(B,)`` int64, the index in the batch that each image is mixed with.
        lam: ``(B,)`` float in [0, 1].
        box: ``(B, 4)`` int64 top, left, height, width in output pixels, or None. What lies
            outside the image is ignored; a side of 0 leaves the image as it is.

    References:
        Zhang et al., mixup, 2018, https://arxiv.org/abs/1710.09412; Yun et al., CutMix, 2019,
        https://arxiv.org/abs/1905.04899.
    """

    partner: Tensor
    lam: Tensor
    box: Tensor | None = None


def resize(
    images: Tensor | Sequence[Tensor],
    size: int | tuple[int, int],
    *,
    boxes: Tensor | None = None,
    flip: Tensor | None = None,
    mean: Sequence[float] | Tensor | None = None,
    std: Sequence[float] | Tensor | None = None,
    mode: Literal["bilinear", "bicubic"] = "bilinear",
    antialias: bool = True,
    rounding: Literal["uint8"] | None = None,
    dtype: torch.dtype | None = None,
    channels_last: bool = False,
    mix: Mix | None = None,
    out: Tensor | None = None,
    impl: Literal["auto", "reference", "native", "triton"] = "auto",
) -> Tensor:
    """Crop, flip, resize, normalise, cast and mix a batch of images in one pass.

    Output pixel (y, x) of a box (top, left, height, width) is the filtered image at
    ``(top + (y + 1/2) * height / size[0] - 1/2, left + (x + 1/2) * width / size[1] - 1/2)``
    (``align_corners=False``), after which ``(value - mean) / std``. Bicubic values may leave the
    image's range: nothing is clamped. Gradients flow to float images; boxes, ``mean``, ``std``
    and ``mix`` are constants.

    Args:
        images: ``(B, C, H, W)`` uint8, read as 0..255 -> [0, 1], or float; any strides, so a
            permuted ``(B, H, W, C)`` costs no copy. Or a list of ``(C, H, W)`` of different
            sizes, one dtype and device.
        size: Output height and width, > 0; an int stands for a square.
        boxes: ``(B, 4)`` float top, left, height, width in input pixels, inside the image, sides
            > 0. A box owns the pixels it touches and no other is read. None: the whole image.
        flip: ``(B,)`` bool, mirror left and right. None: no image.
        mean: ``(C,)`` in [0, 1] units. None: 0.
        std: ``(C,)`` in [0, 1] units, > 0. None: 1.
        mode: "bilinear", or "bicubic" with a = -0.75, and -0.5 with ``antialias``.
        antialias: When shrinking, widen the filter by the scale, as Pillow does.
        rounding: "uint8" resizes uint8 images as Pillow does, for models trained through it:
            columns, then rows, each rounded to whole numbers in 0..255, with ``antialias``. The
            bytes are Pillow's, every one. None: no rounding, which is more exact.
        dtype: Of the result, a float dtype; with ``rounding`` and nothing after it, also
            ``torch.uint8``. None: float32 for uint8 images, else the images'.
        channels_last: Return the result in ``torch.channels_last`` memory format.
        mix: CutMix or MixUp with partners from this batch, in output pixels.
        out: ``(B, C, *size)``, overwritten and returned; its dtype is the result's and its memory
            is in the format asked for. Not for images that require gradients.
        impl: "auto" takes the fastest that can do the work; a named one does it or raises.

    Returns:
        ``(B, C, *size)``.

    Raises:
        TypeError: If an argument has the wrong type or dtype.
        ValueError: If a shape, device or choice does not fit, or, for boxes and partners on the
            CPU and outside ``torch.compile``, a value is out of range.
        RuntimeError: If ``impl`` names an implementation that cannot do the work here.

    Example:
        >>> images = torch.arange(2 * 3 * 8 * 8).reshape(2, 3, 8, 8).to(torch.uint8)
        >>> resize(images, 32).shape
        torch.Size([2, 3, 32, 32])
        >>> boxes = torch.tensor([[0.0, 0.0, 4.0, 4.0], [2.0, 2.0, 6.0, 6.0]])
        >>> mean, std = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
        >>> y = resize(images, (32, 24), boxes=boxes, mean=mean, std=std, dtype=torch.bfloat16)
        >>> y.shape, y.dtype
        (torch.Size([2, 3, 32, 24]), torch.bfloat16)

    References:
        The grid, the filters and the antialiasing are those of torch's ``interpolate`` and of
        Pillow. Pillow's ``resize(box=...)`` reads beyond the box; here, as in crop-then-resize,
        nothing does. From version 13 on Pillow may filter the rows first where that is cheaper;
        ``rounding`` keeps the order of the versions before.
    """
    ragged = not isinstance(images, Tensor)
    items: Sequence[Tensor] = images if ragged else (images,)  # type: ignore[assignment]
    check_images(items, ragged=ragged)
    height, width = check_size("size", size)
    check_choice("mode", mode, _MODES)
    check_choice("impl", impl, _IMPLEMENTATIONS)
    if rounding is not None:
        check_choice("rounding", rounding, ("uint8",))
    first = items[0]
    B = len(items) if ragged else first.shape[0]
    C = first.shape[0] if ragged else first.shape[1]
    check_per_image("flip", flip, (B,), (torch.bool,), first.device)
    check_per_image("boxes", boxes, (B, 4), FLOATS, first.device)
    if mix is not None:
        check_mix(*mix, B, first.device)
    dtype = _result_dtype(dtype, out, first.dtype, rounded=rounding is not None)
    if out is not None:
        check_out(out, (B, C, height, width), channels_last, items)
    if rounding is not None:
        plain = mean is None and std is None and mix is None
        check_rounding(first.dtype, dtype, antialias, plain=plain)
    made = dtype if rounding is None else torch.uint8
    kernels = _kernel_serves(impl, items, made, (height, width), ragged=ragged)
    direct = kernels and undispatched(items)
    in_c = direct and first.device.type == "cpu"
    if rounding is not None or not in_c:  # else the kernel does: 0.15 ms when caches are cold
        check_values(boxes, None if mix is None else mix.partner, items)
    gain, bias = _affine(first, C, mean, std, keep=in_c)
    boxes = None if boxes is None else boxes.detach()
    mixing = () if mix is None else mix
    settings = Settings(boxes, flip, gain, bias, mode, antialias, *mixing)
    if rounding is not None:
        rounded = resize_uint8(items, height, width, settings, ragged=ragged, kernels=kernels)
        if dtype == torch.uint8:
            layout = torch.channels_last if channels_last else torch.contiguous_format
            return rounded.contiguous(memory_format=layout) if out is None else out.copy_(rounded)
        # What is left, at the final size, is to normalise, to cast and to mix.
        items, ragged = (rounded,), False
        settings = Settings(None, None, gain, bias, mode, antialias, *mixing)
        kernels = _kernel_serves(impl, items, dtype, (height, width), ragged=ragged)
        direct = kernels and undispatched(items)
    if not kernels:
        result = compose(items, height, width, settings, dtype, ragged=ragged)
        if out is not None:
            return out.copy_(result)
        layout = torch.channels_last if channels_last else torch.contiguous_format
        return result.to(dtype).contiguous(memory_format=layout)
    if direct:
        rest = (height, width, dtype, channels_last, settings)
        return resize_undispatched(out, items, *rest, ragged=ragged)
    if out is not None:
        resize_out_op(out, list(items), ragged, *settings)
        return out
    arguments = (height, width, dtype, channels_last, *settings)
    operator, source = (resize_ragged_op, list(items)) if ragged else (resize_op, items[0])
    return cast(Tensor, operator(source, *arguments))


def resize_implementation() -> str:
    """Return what serves :func:`resize` of uint8 and float32 images on the CPU of this machine.

    Returns:
        "native-avx512bf16", "native-avx512", "native-avx2" or "native-portable" for the C kernel
        and the instructions it uses, or "reference" where the kernel was not built. Batches on
        CUDA are served by Triton kernels where Triton is installed; float64, other devices and
        exported graphs always by the reference.

    Example:
        >>> resize_implementation().partition("-")[0] in ("native", "reference")
        True
    """
    return f"native-{native.instructions()}" if native.available() else "reference"


def _kernel_serves(
    impl: str, items: Sequence[Tensor], dtype: torch.dtype, size: tuple[int, int], *, ragged: bool
) -> bool:
    if impl == "reference":
        return False
    differentiable = torch.is_grad_enabled() and any(item.requires_grad for item in items)
    on_cpu = items[0].device.type == "cpu"
    if on_cpu:
        serves = native.serves(items, dtype, *size)
    else:
        serves = cuda.serves(items, dtype, *size, ragged=ragged)
    if impl == "triton":
        ready = serves and not on_cpu
        if not ready or not (torch.compiler.is_compiling() or cuda.works(items[0].device)):
            raise RuntimeError(
                "`impl`='triton' needs Triton, a C compiler, one batch on a CUDA device of "
                f"capability 8.0 or more, no float64; got {items[0].dtype} on {items[0].device} "
                f"to {dtype}{' in a list' if ragged else ''}, "
                f"Triton {'' if cuda.installed() else 'not '}"
                "installed"
            )
        return True
    if impl == "native":
        if not (on_cpu and serves):
            raise RuntimeError(
                "`impl`='native' needs the built kernel and tensors on the CPU, no float64; got "
                f"{items[0].dtype} on {items[0].device} to {dtype}, kernel "
                f"{'built' if native.available() else 'not built'}"
            )
        return True
    # torch.func differentiates torch's own operators alone.
    if differentiable and torch._C._are_functorch_transforms_active():
        return False
    return serves and not exporting()


def _affine(
    image: Tensor,
    channels: int,
    mean: Sequence[float] | Tensor | None,
    std: Sequence[float] | Tensor | None,
    *,
    keep: bool,
) -> tuple[Tensor | None, Tensor | None]:
    """Return (C,) gain and bias with ``gain * image + bias == (image / range - mean) / std``.

    Those of plain numbers are kept for the next call where ``keep`` allows it: nothing traces,
    and nothing but the C kernel reads them.
    """
    for name, value in (("mean", mean), ("std", std)):
        shape = (channels,) if value is None else _shape(value)
        if shape != (channels,):
            raise ValueError(f"`{name}` must have shape ({channels},), got {shape}")
    whole = 255.0 if image.dtype == torch.uint8 else 1.0
    if isinstance(mean, Tensor) or isinstance(std, Tensor):
        shift, scale = _constant(mean, image.device), _constant(std, image.device)
        if scale is None and whole == 1:
            return None, None if shift is None else -shift
        if scale is None:
            scale = torch.ones(channels, dtype=torch.float64, device=image.device)
        return 1 / (whole * scale), None if shift is None else -shift / scale
    # Plain numbers stay so: eight operations on tensors of three would cost 20 us.
    shifts = None if mean is None else tuple(float(value) for value in mean)
    scales = (1.0,) * channels if std is None else tuple(float(value) for value in std)
    affine = _kept_affine if keep else _number_affine
    return affine(whole, shifts, scales, image.device)


def _number_affine(
    whole: float, mean: tuple[float, ...] | None, std: tuple[float, ...], device: torch.device
) -> tuple[Tensor | None, Tensor | None]:
    gain = None if whole == 1 and set(std) == {1.0} else [1 / (whole * scale) for scale in std]
    bias = None
    if mean is not None:
        bias = [-shift / scale for shift, scale in zip(mean, std, strict=True)]
    return _constant(gain, device), _constant(bias, device)


_kept_affine = functools.lru_cache(maxsize=32)(_number_affine)


def _shape(value: Sequence[float] | Tensor) -> tuple[int, ...]:
    return tuple(value.shape) if isinstance(value, Tensor) else (len(value),)


def _constant(value: Sequence[float] | Tensor | None, device: torch.device) -> Tensor | None:
    if value is None:
        return None
    if not isinstance(value, Tensor):
        return torch.tensor(value, dtype=torch.float64, device=device)
    return value.detach().to(device=device, dtype=torch.float64)


def _result_dtype(
    dtype: torch.dtype | None, out: Tensor | None, image_dtype: torch.dtype, *, rounded: bool
) -> torch.dtype:
    if out is not None:
        if dtype is not None and dtype != out.dtype:
            raise TypeError(f"`dtype` must be `out`'s, {out.dtype}, or None, got {dtype}")
        dtype = out.dtype
    if dtype is None:
        return torch.float32 if image_dtype == torch.uint8 else image_dtype
    if dtype not in FLOATS and not (rounded and dtype == torch.uint8):
        rule = "a float dtype or torch.uint8" if rounded else "a float dtype"
        raise TypeError(f"`dtype` must be {rule}, got {dtype}")
    return dtype
