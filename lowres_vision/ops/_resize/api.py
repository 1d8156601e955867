"""The public door of the resize: keyword surface, checks and choice of implementation."""

from collections.abc import Sequence
from typing import Literal, NamedTuple, cast

import torch
from torch import Tensor

from lowres_vision._checks import check_choice, check_size
from lowres_vision.ops._resize import cuda, native
from lowres_vision.ops._resize.operator import resize_op, resize_out_op, resize_ragged_op
from lowres_vision.ops._resize.reference import compose

_MODES = ("bilinear", "bicubic")
_IMPLEMENTATIONS = ("auto", "reference", "native", "triton")
_FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


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
        dtype: Of the result, a float dtype. None: float32 for uint8 images, else the images'.
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
        nothing does.
    """
    ragged = not isinstance(images, Tensor)
    items: Sequence[Tensor] = images if ragged else (images,)  # type: ignore[assignment]
    _check_images(items, ragged=ragged)
    height, width = check_size("size", size)
    check_choice("mode", mode, _MODES)
    check_choice("impl", impl, _IMPLEMENTATIONS)
    first = items[0]
    B = len(items) if ragged else first.shape[0]
    C = first.shape[0] if ragged else first.shape[1]
    _check_per_image("flip", flip, (B,), (torch.bool,), first.device)
    _check_boxes(boxes, B, items)
    _check_mix(mix, B, first.device)
    dtype = _result_dtype(dtype, out, first.dtype)
    if out is not None:
        _check_out(out, (B, C, height, width), channels_last, items)
    gain, bias = _affine(first, C, mean, std)
    boxes = None if boxes is None else boxes.detach()
    mixing = mix if mix is not None else (None, None, None)
    settings = (boxes, flip, gain, bias, mode, antialias)
    if not _kernel_serves(impl, items, dtype, (height, width), ragged=ragged):
        result = compose(items, height, width, settings, mixing, dtype, ragged=ragged)
        if out is not None:
            return out.copy_(result)
        layout = torch.channels_last if channels_last else torch.contiguous_format
        return result.to(dtype).contiguous(memory_format=layout)
    if out is not None:
        resize_out_op(out, list(items), ragged, *settings, *mixing)
        return out
    rest = (height, width, *settings, dtype, channels_last, *mixing)
    result = resize_ragged_op(list(items), *rest) if ragged else resize_op(items[0], *rest)
    return cast(Tensor, result)


def resize_implementation() -> str:
    """Return what serves :func:`resize` of uint8 and float32 images on the CPU of this machine.

    Returns:
        "native-avx512", "native-avx2" or "native-portable" for the C kernel and the instructions
        it uses, or "reference" where the kernel was not built. Batches on CUDA are served by
        Triton kernels where Triton is installed; float64, other devices and exported graphs
        always by the reference.

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
        serves = not (ragged and differentiable) and native.serves(items, dtype, *size)
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
                "`impl`='native' needs the built kernel, tensors on the CPU, no float64, and a "
                f"batch where gradients are wanted; got {items[0].dtype} on {items[0].device} to "
                f"{dtype}, kernel {'built' if native.available() else 'not built'}"
            )
        return True
    # torch.func differentiates torch's own operators alone; an exported graph should hold what
    # every runtime knows.
    if differentiable and torch._C._are_functorch_transforms_active():
        return False
    return serves and not torch.compiler.is_exporting() and torch._C._get_tracing_state() is None


def _affine(
    image: Tensor,
    channels: int,
    mean: Sequence[float] | Tensor | None,
    std: Sequence[float] | Tensor | None,
) -> tuple[Tensor | None, Tensor | None]:
    """Return (C,) gain and bias with ``gain * image + bias == (image / range - mean) / std``."""
    mean = _per_channel("mean", mean, channels, image)
    std = _per_channel("std", std, channels, image)
    gain = None if std is None else 1 / std
    bias = None if mean is None else -mean if gain is None else -mean * gain
    if image.dtype == torch.uint8:
        gain = image.new_full((channels,), 1.0, dtype=torch.float64) if gain is None else gain
        gain = gain / 255
    return gain, bias


def _per_channel(
    name: str, value: Sequence[float] | Tensor | None, channels: int, image: Tensor
) -> Tensor | None:
    if value is None:
        return None
    if not isinstance(value, Tensor):
        value = torch.tensor(value, dtype=torch.float64)
    if value.shape != (channels,):
        raise ValueError(f"`{name}` must have shape ({channels},), got {tuple(value.shape)}")
    return value.detach().to(device=image.device, dtype=torch.float64)


def _result_dtype(
    dtype: torch.dtype | None, out: Tensor | None, image_dtype: torch.dtype
) -> torch.dtype:
    if out is not None:
        if dtype is not None and dtype != out.dtype:
            raise TypeError(f"`dtype` must be `out`'s, {out.dtype}, or None, got {dtype}")
        dtype = out.dtype
    if dtype is None:
        return torch.float32 if image_dtype == torch.uint8 else image_dtype
    if dtype not in _FLOATS:
        raise TypeError(f"`dtype` must be a float dtype, got {dtype}")
    return dtype


def _check_images(items: Sequence[Tensor], *, ragged: bool) -> None:
    if not items:
        raise ValueError("`images` must hold at least one image, got an empty list")
    first = items[0]
    for item in items:
        if not isinstance(item, Tensor):
            raise TypeError(f"`images` must be a tensor or a list of tensors, got {type(item)}")
        if item.dtype != torch.uint8 and item.dtype not in _FLOATS:
            raise TypeError(f"`images` must be uint8 or float, got {item.dtype}")
        if item.ndim != (3 if ragged else 4):
            rule = "a list of (C, H, W)" if ragged else "(B, C, H, W)"
            raise ValueError(f"`images` must be {rule}, got shape {tuple(item.shape)}")
        if 0 in item.shape[-3:]:
            raise ValueError(f"`images` must have C, H, W > 0, got shape {tuple(item.shape)}")
        if ragged and (item.dtype, item.device, item.shape[0]) != (
            first.dtype,
            first.device,
            first.shape[0],
        ):
            raise ValueError(
                "`images` must share dtype, device and channels, got "
                f"{first.dtype} {first.device} C={first.shape[0]} and "
                f"{item.dtype} {item.device} C={item.shape[0]}"
            )


def _check_per_image(
    name: str,
    value: Tensor | None,
    shape: tuple[int, ...],
    dtypes: tuple[torch.dtype, ...],
    device: torch.device,
) -> None:
    if value is None:
        return
    if value.dtype not in dtypes:
        raise TypeError(f"`{name}` must be {' or '.join(map(str, dtypes))}, got {value.dtype}")
    if value.shape != shape:
        raise ValueError(f"`{name}` must have shape {shape}, got {tuple(value.shape)}")
    if value.device != device:
        raise ValueError(f"`{name}` must be on the images' device, {device}, got {value.device}")


def _check_boxes(boxes: Tensor | None, B: int, items: Sequence[Tensor]) -> None:
    _check_per_image("boxes", boxes, (B, 4), _FLOATS, items[0].device)
    if boxes is None or not _readable(boxes):
        return
    corners = boxes.detach().double()
    starts, extents = corners[:, :2], corners[:, 2:]  # (B, 2) each
    limits = torch.tensor([item.shape[-2:] for item in items], dtype=torch.float64)  # (B or 1, 2)
    # A box computed in its own precision may overshoot the edge by a rounding error.
    slack = 4 * torch.finfo(boxes.dtype).eps * limits
    inside = (starts >= 0) & (extents > 0) & (starts + extents <= limits + slack)
    if not bool(inside.all()):
        bad = int((~inside.all(dim=-1)).nonzero()[0])
        H, W = items[bad if len(items) > 1 else 0].shape[-2:]
        raise ValueError(
            "`boxes` must be (top, left, height, width) inside the image with sides > 0, got "
            f"{boxes[bad].tolist()} for image {bad} of {H} x {W} pixels"
        )


def _check_mix(mix: Mix | None, B: int, device: torch.device) -> None:
    if mix is None:
        return
    _check_per_image("mix.partner", mix.partner, (B,), (torch.int64,), device)
    _check_per_image("mix.lam", mix.lam, (B,), _FLOATS, device)
    _check_per_image("mix.box", mix.box, (B, 4), (torch.int64,), device)
    if B and _readable(mix.partner):
        low, high = (int(value) for value in mix.partner.aminmax())
        if low < 0 or high >= B:
            raise ValueError(f"`mix.partner` must be in 0..{B - 1}, got {low if low < 0 else high}")


def _check_out(
    out: Tensor, shape: tuple[int, ...], channels_last: bool, items: Sequence[Tensor]
) -> None:
    if out.shape != shape or out.device != items[0].device:
        raise ValueError(
            f"`out` must have shape {shape} on {items[0].device}, "
            f"got {tuple(out.shape)} on {out.device}"
        )
    layout = torch.channels_last if channels_last else torch.contiguous_format
    if not out.is_contiguous(memory_format=layout):
        raise ValueError(f"`out` must be contiguous in {layout}, got strides {out.stride()}")
    tracked = out.requires_grad or any(item.requires_grad for item in items)
    if tracked and torch.is_grad_enabled():
        raise ValueError("`out` cannot be used where `images` or `out` requires gradients")


def _readable(value: Tensor) -> bool:
    """Whether values may be looked at: not in a traced graph, nor at the price of a GPU sync."""
    return value.device.type == "cpu" and not torch.compiler.is_compiling()
