"""The part of :class:`LearnableResizer` at the output's size, computed twice instead of kept.

What ``torch.utils.checkpoint`` does, for the CPU: there a second pass costs less arithmetic than
fresh memory, page by page, for activations of 51 MB (16 images, 16 channels, 224 x 224). Here
both passes go a few images at a time, so that an activation is still in the cache when it is used
and malloc hands out the same memory again.

A BatchNorm ties the images together. Going forward, all of them reach it before any passes; their
moments, which are kept, later let each image pass alone. Going backward, the normalisation
``z = gamma * x' + beta`` of n values is first taken as if its moments were constants, which gives
``dgamma = sum(dz * x')`` and ``dbeta = sum(dz)`` too. When these are complete, what flows through
the moments is added to ``dx``: ``-gamma / std * (dgamma * x' + dbeta) / n``.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

if TYPE_CHECKING:
    from lowres_vision.resizer._learnable import LearnableResizer

SLOPE = 0.2  # of every LeakyReLU
_PART = 4 << 20  # bytes of an activation that is worked on at a time
_PAIR = (nn.Conv2d, nn.BatchNorm2d)
_BRANCH = (*_PAIR, nn.LeakyReLU, *_PAIR)
_CONV3 = ((3, 3), (1, 1), (1, 1), (1, 1), 1, "zeros", None)
_HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")


def refine(resizer: LearnableResizer, u: Tensor) -> Tensor:
    """Return ``resizer._refine(u)``, of which ``u`` alone is kept for the backward pass."""
    project = resizer.project
    weights = [w for conv, norm in _layers(resizer) for w in (conv.weight, norm.weight, norm.bias)]
    detail: Tensor = _Refine.apply(resizer, u, *weights, project.weight, project.bias)
    return detail


def can_refine(resizer: LearnableResizer, u: Tensor) -> bool:
    """Whether :func:`refine` serves: on the CPU, for layers as they were built, without hooks."""
    if u.device.type != "cpu" or len(u) * resizer.size[0] * resizer.size[1] <= 1:
        return False
    parts = (resizer.blocks, resizer.fuse, resizer.project)
    modules = [module for part in parts for module in part.modules()]
    watched = any(getattr(m, hooks) for m in modules for hooks in _HOOKS)
    wrapped = any("forward" in vars(m) for m in modules)
    return _as_built(resizer) and not watched and not wrapped


@contextmanager
def scratch_buffers(module: nn.Module) -> Iterator[None]:
    """Within, the module counts its batch statistics into copies, which are then thrown away."""
    kept = [(m, name, b) for m in module.modules() for name, b in m.named_buffers(recurse=False)]
    for owner, name, buffer in kept:
        setattr(owner, name, buffer.clone())
    try:
        yield
    finally:
        for owner, name, buffer in kept:
            setattr(owner, name, buffer)


class _Moments(NamedTuple):
    mean: Tensor  # (channels,)
    var: Tensor
    of_batch: bool  # not the running ones


@dataclass
class _Part:
    """A few images on their way back."""

    x: list[Tensor]  # outputs of the convolutions
    h: list[Tensor]  # shortcuts
    dx: Tensor  # gradient of the last of x, but for what flows through the moments
    ds: Tensor  # gradient of the first shortcut through the last norm
    dh: Tensor | float = 0.0  # gradient of the last shortcut through its block


class _Refine(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, resizer: LearnableResizer, u: Tensor, *weights: Tensor) -> Tensor:
        network = _Network(resizer, weights)
        s = [resizer._upsample(images) for images in network.split(u)]
        h, x = list(s), [network.convolve(0, shortcut) for shortcut in s]
        for i, norm in enumerate(network.norms):
            network.moments.append(_moments(norm, x))
            last = i + 1 == network.depth
            for j in range(len(x)):
                z = network.normalise(i, x[j], s[j] if last else h[j])
                if not network.activates(i):
                    h[j] = z
                x[j] = resizer.project(z) if last else network.convolve(i + 1, z)
        ctx.save_for_backward(u, *weights)
        ctx.resizer, ctx.moments = resizer, network.moments
        ctx.autocast = torch.get_autocast_dtype("cpu"), torch.is_autocast_enabled("cpu")
        return torch.cat(x)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        u, *weights = ctx.saved_tensors
        dtype, enabled = ctx.autocast
        with torch.autocast("cpu", dtype, enabled=enabled):
            if not torch.is_grad_enabled():
                network = _Network(ctx.resizer, weights, ctx.moments)
                return (None, *network.backward(u, gradient))
            with scratch_buffers(ctx.resizer):  # create_graph=True: in the ordinary way
                detail = ctx.resizer._refine(u)
        wanted = [t for t in (u, *weights) if t.requires_grad]
        found = iter(torch.autograd.grad(detail, wanted, gradient, create_graph=True))
        return (None, *(next(found) if t.requires_grad else None for t in (u, *weights)))


class _Network:
    """The layers with the weights of one call, the moments of its batch, and the gradients.

    After norm i, which follows convolution i, comes an activation or a shortcut.
    """

    def __init__(
        self,
        resizer: LearnableResizer,
        weights: Sequence[Tensor],
        moments: Sequence[_Moments] = (),
    ) -> None:
        self.resizer, self.weights, self.moments = resizer, weights, list(moments)
        self.norms = [norm for _, norm in _layers(resizer)]
        self.depth = len(self.norms)

    def split(self, images: Tensor) -> Sequence[Tensor]:
        height, width = self.resizer.size
        bytes_each = len(self.weights[0]) * height * width * images.dtype.itemsize
        return torch.split(images, max(1, _PART // bytes_each))

    def activates(self, i: int) -> bool:
        return i % 2 == 0 and i + 1 < self.depth

    def convolve(self, i: int, z: Tensor) -> Tensor:
        return F.conv2d(z, self.weights[3 * i], padding=1)

    def normalise(self, i: int, x: Tensor, shortcut: Tensor) -> Tensor:
        """Return norm i of ``x`` and what follows it."""
        gamma, beta = self.weights[3 * i + 1 : 3 * i + 3]
        mean, var, _ = self.moments[i]
        z = F.batch_norm(x, mean, var, gamma, beta, eps=self.norms[i].eps)
        return F.leaky_relu_(z, SLOPE) if self.activates(i) else z.add_(shortcut)

    def backward(self, u: Tensor, gradient: Tensor) -> list[Tensor]:
        """Return the gradients of ``u`` and of the weights."""
        self.gradients = [torch.zeros_like(weight) for weight in self.weights]
        parts = self._recompute(u, gradient)
        for i in reversed(range(self.depth)):
            for part in parts:
                x = part.x.pop()
                self._add_through_moments(part.dx, i, x, len(u))
                z = self.normalise(i - 1, part.x[-1], x) if i % 2 else part.h.pop()
                dz = _convolution_backward(part.dx, z, self.weights[3 * i], self.gradients[3 * i])
                if i % 2:
                    dz = torch.ops.aten.leaky_relu_backward(dz, z, SLOPE, True)
                else:
                    part.dh = dz.add_(part.dh)
                if i > 0:
                    part.dx = self._normalise_backward(i - 1, part.x[-1], dz)
        du = [
            torch.ops.aten.upsample_bilinear2d_backward(
                part.ds.add_(part.dh), self.resizer.size, images.shape, False
            )
            for part, images in zip(parts, self.split(u), strict=True)
        ]
        return [torch.cat(du), *self.gradients]

    def _recompute(self, u: Tensor, gradient: Tensor) -> list[_Part]:
        """Go forward again, and back to the last norm."""
        project = [weight.detach().requires_grad_() for weight in self.weights[-2:]]
        with torch.enable_grad():
            kernel = self.resizer.project.kernel(project[0], project[1], self.resizer.size)
        weight, bias, stride = kernel
        gradients = [torch.zeros_like(weight), torch.zeros_like(bias)]
        parts, last = [], self.depth - 1
        for images, dy in zip(self.split(u), self.split(gradient), strict=True):
            h = [self.resizer._upsample(images)]
            x = [self.convolve(0, h[0])]
            for i in range(last):
                z = self.normalise(i, x[i], h[-1])
                if not self.activates(i):
                    h.append(z)
                x.append(self.convolve(i + 1, z))
            z = self.normalise(last, x[last], h[0])
            dy = F.pixel_unshuffle(dy, stride).contiguous(memory_format=torch.channels_last)
            dz = _convolution_backward(dy, z, weight.detach(), *gradients, padding=3, stride=stride)
            parts.append(_Part(x, h, dx=self._normalise_backward(last, x[last], dz), ds=dz))
        self.gradients[-2:] = torch.autograd.grad(kernel[:2], project, gradients)
        return parts

    def _normalise_backward(self, i: int, x: Tensor, dz: Tensor) -> Tensor:
        """Return the gradient of ``x`` for constant moments and count those of the weights."""
        mean, var, _ = self.moments[i]
        gamma, eps = self.weights[3 * i + 1], self.norms[i].eps
        dx: Tensor
        dx, dgamma, dbeta = torch.ops.aten.native_batch_norm_backward(
            dz, x, gamma, mean, var, None, None, False, eps, [True] * 3
        )
        self.gradients[3 * i + 1].add_(dgamma)
        self.gradients[3 * i + 2].add_(dbeta)
        return dx

    def _add_through_moments(self, dx: Tensor, i: int, x: Tensor, images: int) -> None:
        mean, var, of_batch = self.moments[i]
        if of_batch:
            values = images * x.shape[2] * x.shape[3]
            scale = self.weights[3 * i + 1] * (var + self.norms[i].eps).rsqrt() / -values
            gamma, beta = (scale * gradient for gradient in self.gradients[3 * i + 1 : 3 * i + 3])
            dx.add_(F.batch_norm(x, mean, var, gamma, beta, eps=self.norms[i].eps))


def _as_built(resizer: LearnableResizer) -> bool:
    branches = [getattr(block, "branch", ()) for block in resizer.blocks]
    layers = [layer for row in (*branches, resizer.fuse) for layer in row]
    if [type(layer) for layer in layers] != [*_BRANCH * len(branches), *_PAIR]:
        return False
    # A parametrization has children; spectral_norm's changes whenever the weight is read.
    project = hasattr(resizer.project, "kernel") and not list(resizer.project.children())
    return project and all(map(_is_ours, layers))


def _is_ours(layer: nn.Module) -> bool:
    if isinstance(layer, nn.Conv2d):
        geometry = layer.kernel_size, layer.stride, layer.padding, layer.dilation, layer.groups
        return (*geometry, layer.padding_mode, layer.bias) == _CONV3
    if isinstance(layer, nn.BatchNorm2d):
        return layer.affine
    return isinstance(layer, nn.LeakyReLU) and layer.negative_slope == SLOPE


def _layers(resizer: LearnableResizer) -> list[tuple[nn.Conv2d, nn.BatchNorm2d]]:
    branches = [cast(nn.Sequential, block.branch) for block in resizer.blocks]
    pairs = [pair for branch in branches for pair in (branch[0:2], branch[3:5])]
    return [cast(tuple[nn.Conv2d, nn.BatchNorm2d], tuple(pair)) for pair in (*pairs, resizer.fuse)]


def _moments(norm: nn.BatchNorm2d, x: Sequence[Tensor]) -> _Moments:
    """Return the moments that ``norm`` takes of all ``x`` together, and let its own follow."""
    if norm.running_mean is not None and norm.running_var is not None and not norm.training:
        return _Moments(norm.running_mean.clone(), norm.running_var.clone(), of_batch=False)
    spare = torch.zeros_like(norm.weight)  # its dtype is what they are wanted in
    moments = [torch.batch_norm_update_stats(part, spare, spare.clone(), 0) for part in x]
    means, variances = (torch.stack(values) for values in zip(*moments, strict=True))
    values = sum(part[:, 0].numel() for part in x)
    shares = means.new_tensor([part[:, 0].numel() / values for part in x])[:, None]
    mean = (shares * means).sum(0)
    var = (shares * (variances + (means - mean).square())).sum(0)
    if norm.track_running_stats and norm.running_mean is not None and norm.running_var is not None:
        momentum = norm.momentum
        if norm.num_batches_tracked is not None:
            norm.num_batches_tracked.add_(1)
            if momentum is None:
                momentum = 1 / int(norm.num_batches_tracked)
        momentum = momentum or 0.0
        norm.running_mean.lerp_(mean, momentum)
        norm.running_var.lerp_(var * (values / (values - 1)), momentum)
    return _Moments(mean, var, of_batch=True)


def _convolution_backward(
    dy: Tensor, x: Tensor, weight: Tensor, *gradients: Tensor, padding: int = 1, stride: int = 1
) -> Tensor:
    """Return the gradient of ``x``; add those of the weight and, if asked for, the bias."""
    biased = len(gradients) > 1
    geometry = ([stride] * 2, [padding] * 2, [1, 1], False, [0, 0], 1)
    sizes = [len(weight)] if biased else None
    dx, *found = torch.ops.aten.convolution_backward(
        dy, x, weight.to(x.dtype), sizes, *geometry, [True, True, biased]
    )
    for gradient, part in zip(gradients, found, strict=False):
        gradient.add_(part)
    result: Tensor = dx
    return result
