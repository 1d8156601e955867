"""SRCNN: super-resolution by three convolutions, small enough to train on one's own pairs."""

import math
from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lowres_vision._checks import check_range
from lowres_vision._random import stream
from lowres_vision.ops import resize

_CROP = 33  # high-resolution pixels of a training target, the paper's sub-image


class SRCNN(nn.Module):
    r"""Enlarge images by a whole factor: bicubic, then three convolutions that correct it.

    .. math:: y = b + f_3(\mathrm{relu}(f_2(\mathrm{relu}(f_1(b))))), \quad b = \mathrm{bicubic}(x)

    with 64 and 32 features. The image is padded once by repeating its edge, and the convolutions
    are unpadded, as in the paper's training.

    Args:
        scale: Whole factor, >= 2.
        kernel_sizes: Odd sides of the three kernels: (9, 5, 5) has 69,251 parameters and is the
            better one in the paper, (9, 1, 5) with 20,099 the quicker.
        residual: Add the bicubic image ``b`` at the end. False is the paper's network, which
            spends its first thousands of steps on learning to copy.

    Example:
        >>> SRCNN(4)(torch.rand(1, 3, 16, 16)).shape
        torch.Size([1, 3, 64, 64])

    References:
        Dong et al., Image Super-Resolution Using Deep Convolutional Networks, 2016,
        https://arxiv.org/abs/1501.00092: RGB images through one network, which they find better
        overall than luma alone with bicubic chroma. The sum is that of Kim et al., Accurate Image
        Super-Resolution Using Very Deep Convolutional Networks, 2016,
        https://arxiv.org/abs/1511.04587.
    """

    def __init__(
        self,
        scale: int,
        *,
        kernel_sizes: tuple[int, int, int] = (9, 5, 5),
        residual: bool = True,
    ) -> None:
        super().__init__()
        check_range("scale", scale, 2)
        if any(side % 2 == 0 or side < 1 for side in kernel_sizes):
            raise ValueError(f"`kernel_sizes` must be odd and positive, got {kernel_sizes}")
        self.scale = scale
        self.kernel_sizes = kernel_sizes
        self.residual = residual
        first, second, third = kernel_sizes
        self.features = nn.Conv2d(3, 64, first)
        self.mapping = nn.Conv2d(64, 32, second)
        self.reconstruction = nn.Conv2d(32, 3, third)
        for layer in (self.features, self.mapping):
            nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
            nn.init.zeros_(layer.bias)  # type: ignore[arg-type]
        nn.init.normal_(self.reconstruction.weight, std=0.001)
        nn.init.zeros_(self.reconstruction.bias)  # type: ignore[arg-type]

    @property
    def margin(self) -> int:
        """High-resolution pixels that the convolutions take from each side."""
        return sum(side // 2 for side in self.kernel_sizes)

    def forward(self, images: Tensor) -> Tensor:
        """Enlarge ``(B, 3, H, W)`` in [0, 1] to ``(B, 3, scale * H, scale * W)``, not clamped."""
        enlarged = enlarge(images, self.scale)
        return self.correct(F.pad(enlarged, [self.margin] * 4, mode="replicate"))

    def correct(self, enlarged: Tensor) -> Tensor:
        """Correct bicubic images ``(B, 3, H, W)``, which lose ``margin`` pixels on each side."""
        x = F.relu(self.features(enlarged))
        x = F.relu(self.mapping(x))
        correction: Tensor = self.reconstruction(x)
        if not self.residual:
            return correction
        cut = slice(self.margin, -self.margin or None)
        return enlarged[..., cut, cut] + correction


def enlarge(images: Tensor, scale: int) -> Tensor:
    """Enlarge ``(B, C, H, W)``, uint8 or float, to float by Pillow's bicubic filter."""
    height, width = images.shape[-2:]
    return resize(images, (height * scale, width * scale), mode="bicubic")


def psnr(images: Tensor, reference: Tensor) -> float:
    r"""Return the mean peak signal-to-noise ratio over a batch, in dB.

    .. math:: \mathrm{PSNR} = 10 \log_{10} \frac{255^2}{\mathrm{mean}\,(x - y)^2}

    over all pixels and channels of each image, without a border left out.

    Args:
        images: uint8 ``(B, C, H, W)``.
        reference: The true images, of the same shape.

    Returns:
        The mean over the batch; inf if an image equals its reference.

    Example:
        >>> black, grey = torch.zeros(1, 3, 8, 8).byte(), torch.full((1, 3, 8, 8), 8).byte()
        >>> round(psnr(black, grey), 2)
        30.07
    """
    for name, batch in (("images", images), ("reference", reference)):
        if batch.dtype != torch.uint8:
            raise TypeError(f"`{name}` must be uint8, got {batch.dtype}")
    if images.shape != reference.shape or images.ndim != 4:
        raise ValueError(
            f"`images` and `reference` must both be (B, C, H, W), got {tuple(images.shape)} and "
            f"{tuple(reference.shape)}"
        )
    squared = ((images.double() - reference.double()) ** 2).mean((1, 2, 3))
    return float((10 * torch.log10(255**2 / squared)).mean())


def train_srcnn(
    low: Sequence[Tensor] | Tensor,
    high: Sequence[Tensor] | Tensor,
    *,
    kernel_sizes: tuple[int, int, int] = (9, 5, 5),
    residual: bool = True,
    steps: int = 1000,
    batch_size: int = 16,
    lr: float = 1e-3,
    seed: int = 0,
    callback: Callable[[int, float], None] | None = None,
) -> SRCNN:
    """Train an :class:`SRCNN` on pairs of one picture at two resolutions.

    Each step draws pictures and a crop of 33 x 33 high-resolution pixels from each, turned and
    mirrored at random, and takes an Adam step on the mean squared error; the rate falls to zero
    along a cosine, and is a tenth in the last layer, as in the paper. Weights and draws depend on
    ``seed`` alone; PyTorch's own generator is left as it was.

    Give the rows that a classifier is trained on and no others: held-out pictures would teach the
    network their own details.

    Args:
        low: uint8 images ``(3, h, w)``.
        high: The same pictures, uint8 ``(3, scale * h, scale * w)``, each side at least 33.
        kernel_sizes: See :class:`SRCNN`.
        residual: See :class:`SRCNN`.
        steps: Number of steps. 1,000 of them take about two minutes on one core.
        batch_size: Crops of a step.
        lr: Adam's rate at the first step.
        seed: Non-negative.
        callback: Called as ``callback(step, loss)`` after each step, counted from 1; the loss is
            that of [0, 1] pixels.

    Returns:
        The network, in evaluation mode on the CPU.

    Raises:
        TypeError: If an image is not uint8.
        ValueError: If numbers of images differ, or a high image is not its low one's size times
            a whole factor, the same throughout.
        FloatingPointError: If the loss is not finite.
    """
    scale = _whole_factor(low, high)
    check_range("steps", steps, 1)
    check_range("batch_size", batch_size, 1)
    check_range("lr", lr, 0, open_low=True)
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(stream(seed).initial_seed())
        network = SRCNN(scale, kernel_sizes=kernel_sizes, residual=residual)
    last = network.reconstruction
    body = [*network.features.parameters(), *network.mapping.parameters()]
    optimizer = torch.optim.Adam(
        [{"params": body, "lr": lr}, {"params": last.parameters(), "lr": lr / 10}]
    )
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    for step in range(1, steps + 1):
        generator = stream(seed, step)
        crops = [_draw_crop(low, high, scale, network.margin, generator) for _ in range(batch_size)]
        enlarged, target = (torch.stack(parts) for parts in zip(*crops, strict=True))
        loss = F.mse_loss(network.correct(enlarged), target)
        value = loss.item()
        if not math.isfinite(value):
            raise FloatingPointError(f"the loss of step {step} is {value}; lower `lr`, now {lr}")
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        schedule.step()
        if callback is not None:
            callback(step, value)
    return network.eval()


def _draw_crop(
    low: Sequence[Tensor] | Tensor,
    high: Sequence[Tensor] | Tensor,
    scale: int,
    margin: int,
    generator: torch.Generator,
) -> tuple[Tensor, Tensor]:
    """Return a bicubic crop with its margin and the true crop without, alike in everything else."""
    u = torch.rand(6, generator=generator, dtype=torch.float64).tolist()
    number = math.floor(u[0] * len(low))
    target = high[number].float() / 255  # (3, H, W)
    enlarged = enlarge(low[number][None], scale)
    enlarged = F.pad(enlarged, [margin] * 4, mode="replicate")[0]
    top = math.floor(u[1] * (target.shape[1] - _CROP + 1))
    left = math.floor(u[2] * (target.shape[2] - _CROP + 1))
    side = _CROP + 2 * margin
    pair = [
        enlarged[:, top : top + side, left : left + side],
        target[:, top : top + _CROP, left : left + _CROP],
    ]
    if u[3] < 0.5:
        pair = [image.flip(2) for image in pair]
    enlarged, target = (image.rot90(math.floor(4 * u[4]), (1, 2)) for image in pair)
    return enlarged, target


def _whole_factor(low: Sequence[Tensor] | Tensor, high: Sequence[Tensor] | Tensor) -> int:
    if len(low) != len(high) or not len(low):
        raise ValueError(
            f"`low` and `high` must be as many, at least one, got {len(low)} and {len(high)}"
        )
    scales = set()
    for small, large in zip(low, high, strict=True):
        for name, image in (("low", small), ("high", large)):
            if image.dtype != torch.uint8:
                raise TypeError(f"`{name}` must be uint8, got {image.dtype}")
            if image.ndim != 3 or len(image) != 3:
                raise ValueError(f"`{name}` must be (3, H, W), got shape {tuple(image.shape)}")
        scale = large.shape[1] // small.shape[1]
        if scale < 2 or large.shape[1:] != (small.shape[1] * scale, small.shape[2] * scale):
            raise ValueError(
                f"`high` must be `low` times a whole factor >= 2, got {tuple(small.shape)} and "
                f"{tuple(large.shape)}"
            )
        if min(large.shape[1:]) < _CROP:
            raise ValueError(f"`high` must have sides >= {_CROP}, got {tuple(large.shape)}")
        scales.add(scale)
    if len(scales) > 1:
        raise ValueError(f"`high` must be `low` times one factor, got {sorted(scales)}")
    return int(scales.pop())
