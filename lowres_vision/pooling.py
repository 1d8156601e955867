"""Generalised-mean pooling, from average (p = 1) to maximum (p towards infinity).

Radenović et al., Fine-tuning CNN Image Retrieval with No Human Annotation, 2018,
https://arxiv.org/abs/1711.02512. Computed so that half precision neither overflows nor loses the
gradient.
"""

import torch
from torch import Tensor, nn

from lowres_vision._checks import check_range

__all__ = ["GeM", "gem_pool2d"]


def gem_pool2d(x: Tensor, p: float | Tensor, *, eps: float = 1e-6) -> Tensor:
    r"""Pool each channel to its generalised mean over the positions.

    ``y = mean(max(x, eps)^p)^(1/p)``, evaluated as ``m * mean((max(x, eps) / m)^p)^(1/p)`` with
    ``m`` the channel's largest value: no power exceeds 1, whatever ``x`` and ``p``. Half
    precision is raised to float32 inside. Values below ``eps``, all negative ones among them, get
    no gradient: put GeM behind a ReLU rather than behind a GELU or SiLU.

    Args:
        x: ``(B, C, H, W)`` float.
        p: The exponent, > 0: a number, or a tensor of one value or of ``(C,)``, which receives
            its gradient.
        eps: Floor of the values, > 0.

    Returns:
        ``(B, C)`` in the dtype of ``x``.

    Raises:
        TypeError: If ``x`` is not float.
        ValueError: If ``x`` is not ``(B, C, H, W)``.

    Example:
        >>> x = torch.tensor([[1.0, 2.0], [3.0, 4.0]]).expand(1, 1, 2, 2)
        >>> gem_pool2d(x, 1.0), gem_pool2d(x, 100.0)
        (tensor([[2.5000]]), tensor([[3.9449]]))

    References:
        Radenović et al., 2018, equation 3, https://arxiv.org/abs/1711.02512. The authors' code
        returns ``(B, C, 1, 1)`` and takes the powers in the dtype of ``x``; in float16 these
        overflow above 40 and vanish below 0.004 at p = 3.
    """
    if not x.is_floating_point():
        raise TypeError(f"`x` must be float, got {x.dtype}")
    if x.ndim != 4:
        raise ValueError(f"`x` must be (B, C, H, W), got shape {tuple(x.shape)}")
    values = x.to(torch.promote_types(x.dtype, torch.float32)).clamp(min=eps)
    if isinstance(p, Tensor):
        p = p.to(values.dtype).view(-1, 1, 1)  # (1 or C, 1, 1)
    # The mean is homogeneous in x, so the scale takes no part in the gradient.
    scale = values.detach().amax((2, 3), keepdim=True)  # (B, C, 1, 1)
    mean = (values / scale).pow(p).mean((2, 3), keepdim=True)  # (B, C, 1, 1)
    return (scale * mean.pow(1 / p)).flatten(1).to(x.dtype)  # (B, C)


class GeM(nn.Module):
    """Module of :func:`gem_pool2d`, with one exponent for all channels.

    A learnable ``p`` needs a parameter group of its own: no weight decay, which would pull it
    towards 0 where the mean is not defined, and, as in the authors' training, ten times the
    learning rate, without which it hardly leaves its initial value.

    Args:
        p: The exponent, or its initial value, > 0.
        eps: Floor of the values, > 0.
        learnable: Whether ``p`` is a parameter, of shape ``(1,)``, or a plain float.

    Example:
        >>> GeM()(torch.rand(2, 512, 7, 7)).shape
        torch.Size([2, 512])
        >>> GeM(4.0, learnable=False)
        GeM(p=4, eps=1e-06, learnable=False)
    """

    def __init__(self, p: float = 3.0, *, eps: float = 1e-6, learnable: bool = True) -> None:
        super().__init__()
        check_range("p", p, 0, open_low=True)
        check_range("eps", eps, 0, open_low=True)
        self.p: float | nn.Parameter = nn.Parameter(torch.tensor([float(p)])) if learnable else p
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        """Return the pooled ``(B, C)``; see :func:`gem_pool2d`."""
        return gem_pool2d(x, self.p, eps=self.eps)

    def extra_repr(self) -> str:
        """Return the arguments as ``repr`` shows them."""
        learnable = isinstance(self.p, nn.Parameter)
        known = not (isinstance(self.p, nn.Parameter) and self.p.is_meta)
        p = f"{torch.as_tensor(self.p).item():.4g}" if known else "?"
        return f"p={p}, eps={self.eps:g}, learnable={learnable}"
