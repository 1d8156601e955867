"""BatchNorm statistics that a forward pass leaves alone."""

from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn

_STATISTICS = frozenset({"running_mean", "running_var", "num_batches_tracked"})


@contextmanager
def keep_batch_norm_statistics(model: nn.Module, *, enabled: bool = True) -> Iterator[None]:
    """Let ``model`` run without moving its running means, variances and batch counts.

    Within the context the layers write to copies; afterwards they hold their own buffers again,
    the same tensors with the same values. So nothing is lost when contexts are nested or left by
    an error, momentum (None included) and train or eval mode are not touched, and the backward
    pass may come inside the context or after it.

    Args:
        model: Module whose BatchNorm, SyncBatchNorm and InstanceNorm layers are held still.
        enabled: False does nothing; ``enabled=optimizer.in_second_pass`` holds the statistics
            still in the pass that :class:`SAM` makes at the moved weights.

    Example:
        >>> import torch
        >>> layer = torch.nn.BatchNorm1d(2)
        >>> with keep_batch_norm_statistics(layer):
        ...     _ = layer(torch.tensor([[1.0, 2.0], [3.0, 6.0]]))
        >>> layer.running_mean, layer.num_batches_tracked
        (tensor([0., 0.]), tensor(0))
    """
    kept = []
    if enabled:
        for module in model.modules():
            for name, buffer in list(module.named_buffers(recurse=False)):
                if name in _STATISTICS:
                    kept.append((module, name, buffer))
                    setattr(module, name, buffer.clone())
    try:
        yield
    finally:
        for module, name, buffer in kept:
            setattr(module, name, buffer)
