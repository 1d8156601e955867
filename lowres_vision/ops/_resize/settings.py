"""What one call of the resize does to its images, as the door hands it to whatever serves."""

from typing import NamedTuple

from torch import Tensor


class Settings(NamedTuple):
    """The arguments of a resize beside its images and the result's size and dtype.

    Args:
        boxes: ``(B, 4)`` top, left, height, width; None: the whole image.
        flip: ``(B,)`` bool, mirror left and right; None: no.
        gain: ``(C,)`` or None for 1.
        bias: ``(C,)`` or None for 0; a result is ``gain * image + bias``.
        mode: "bilinear" or "bicubic".
        antialias: See :mod:`lowres_vision.ops._resize.taps`.
        partner: ``(B,)`` the field of :class:`lowres_vision.ops.Mix`; None: nothing is mixed.
        lam: ``(B,)`` likewise.
        paste: ``(B, 4)`` the ``box`` of CutMix; None: MixUp.
    """

    boxes: Tensor | None = None
    flip: Tensor | None = None
    gain: Tensor | None = None
    bias: Tensor | None = None
    mode: str = "bilinear"
    antialias: bool = True
    partner: Tensor | None = None
    lam: Tensor | None = None
    paste: Tensor | None = None

    def unmixed(self) -> "Settings":
        """Return the same without the mixing."""
        # Not `_replace`, which torch.compile of torch 2.8 does not trace.
        return Settings(self.boxes, self.flip, self.gain, self.bias, self.mode, self.antialias)

    def of_image(self, index: int) -> "Settings":
        """Return what concerns one image of the batch alone."""
        boxes = None if self.boxes is None else self.boxes[index : index + 1]
        flip = None if self.flip is None else self.flip[index : index + 1]
        return Settings(boxes, flip, self.gain, self.bias, self.mode, self.antialias)
