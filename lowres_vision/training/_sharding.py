"""Weights that are shared out over the processes, and whole wherever they are saved.

PyTorch's ``fully_shard`` (FSDP2) keeps a part of each weight, gradient and optimiser state in each
process, and puts a block's weights together while the block is at work. Lightning's own
``FSDPStrategy`` wraps the older FSDP, refuses the CPU and stores pickles. This one runs wherever
PyTorch's collectives do, and what it saves is what one process would.
"""

from collections.abc import Iterable, Mapping
from typing import Any

import torch
import torch.distributed as dist
from lightning.pytorch.core.optimizer import LightningOptimizer
from lightning.pytorch.strategies import ModelParallelStrategy
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import FSDPModule, fully_shard, register_fsdp_forward_method
from torch.distributed.tensor import DTensor, distribute_tensor
from torch.optim import Optimizer

# What is called of models and losses besides `forward` that needs the weights too.
_METHODS = ("embed", "classify", "logits", "probabilities")


def shard(module: nn.Module, mesh: DeviceMesh) -> None:
    """Leave this process its part of each weight of ``module``, the first process' to start with.

    In each ``nn.Sequential`` and ``nn.ModuleList`` the blocks that have parts of their own are
    put together one at a time, and what is outside of them at once. On a module that is shared out
    already it does nothing.
    """
    if isinstance(module, FSDPModule) or next(module.parameters(), None) is None:
        return
    for value in (*module.parameters(), *module.buffers()):
        # `fully_shard` refuses channels_last.
        data = value.data.to(mesh.device_type).contiguous(memory_format=torch.contiguous_format)
        dist.broadcast(data, 0)
        value.data = data.to(value.device)  # the device takes one block at a time
    for part in reversed([*module.modules()]):
        if isinstance(part, nn.Sequential | nn.ModuleList):
            for block in part:
                listed = isinstance(block, nn.ModuleList | nn.ModuleDict)  # has no forward
                if not listed and next(block.children(), None) is not None:
                    fully_shard(block, mesh=mesh)
    fully_shard(module, mesh=mesh)
    for name in _METHODS:
        if hasattr(module, name):
            register_fsdp_forward_method(module, name)


def whole(value: Any) -> Any:
    """Return ``value`` with its shared out tensors whole, on the CPU.

    Every process has to call it; only the first is given the tensors, the others get None for
    them. What is not shared out stays as it is.
    """
    if isinstance(value, DTensor):
        full = value.full_tensor()
        return full.cpu() if dist.get_rank() == 0 else None
    if isinstance(value, Mapping):
        return {key: whole(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(map(whole, value))
    return value


def load_whole(module: nn.Module, state: Mapping[str, Tensor], *, strict: bool = True) -> None:
    """Load the weights of one process into a module, shared out or not."""
    own = module.state_dict()
    parts = {name: _part(value, own.get(name)) for name, value in state.items()}
    module.load_state_dict(parts, strict=strict)


class Sharded(ModelParallelStrategy):
    """A Lightning strategy that shares the weights out over all processes.

    The module's ``configure_model`` says of which of its Modules, with :func:`shard`. As in
    Lightning's ``ddp``, the first process' buffers (statistics of BatchNorm) are those of all.
    Checkpoints go through the trainer's ``CheckpointIO`` and do not tell the number of processes.
    """

    lightning_restore_optimizer = True

    def __init__(self) -> None:
        super().__init__(tensor_parallel_size=1, save_distributed_checkpoint=False)

    def setup_environment(self) -> None:
        """Count the processes."""
        self._data_parallel_size = self.num_nodes * self.num_processes
        super().setup_environment()

    def training_step(self, *args: Any, **kwargs: Any) -> Any:
        """Take a step with the first process' buffers."""
        assert self.model is not None
        _agree(self.model.buffers())
        return super().training_step(*args, **kwargs)

    def validation_step(self, *args: Any, **kwargs: Any) -> Any:
        """Score with the first process' buffers, which are those saved."""
        assert self.model is not None
        _agree(self.model.buffers())
        return super().validation_step(*args, **kwargs)

    def lightning_module_state_dict(self) -> dict[str, Any]:
        """Return the weights, whole in the first process."""
        assert self.model is not None
        return dict(whole(self.model.state_dict()))

    def load_model_state_dict(self, checkpoint: Mapping[str, Any], strict: bool = True) -> None:
        """Take this process' part of a checkpoint's weights."""
        assert self.model is not None
        load_whole(self.model, checkpoint["state_dict"], strict=strict)

    def optimizer_state(self, optimizer: Optimizer) -> dict[str, Any]:
        """Return the optimiser's state, whole in the first process."""
        inner = optimizer._optimizer if isinstance(optimizer, LightningOptimizer) else optimizer
        return dict(whole(inner.state_dict()))

    def load_optimizer_state_dict(self, checkpoint: Mapping[str, Any]) -> None:
        """Take this process' part of a checkpoint's optimiser states."""
        for optimizer, saved in zip(self.optimizers, checkpoint["optimizer_states"], strict=True):
            parameters = [p for group in optimizer.param_groups for p in group["params"]]
            parts = {
                number: {name: _part(entry, parameters[number]) for name, entry in entries.items()}
                for number, entries in saved["state"].items()
            }
            optimizer.load_state_dict({**saved, "state": parts})

    def load_checkpoint(self, checkpoint_path: Any, weights_only: bool | None = None) -> Any:
        """Return the whole checkpoint, in every process."""
        return self.checkpoint_io.load_checkpoint(checkpoint_path)


def _part(value: Any, own: Any) -> Any:
    """Return this process' part of ``value``, where ``own`` is shared out and of its shape."""
    if isinstance(own, DTensor) and isinstance(value, Tensor) and value.shape == own.shape:
        value = value.to(own.device).contiguous(memory_format=torch.contiguous_format)
        # All processes have read the same file, so that none has to send it.
        return distribute_tensor(value, own.device_mesh, own.placements, src_data_rank=None)
    return value


def _agree(buffers: Iterable[Tensor]) -> None:
    """Give every process the first one's buffers."""
    by_type: dict[torch.dtype, list[Tensor]] = {}
    for buffer in buffers:
        by_type.setdefault(buffer.dtype, []).append(buffer)
    for group in by_type.values():
        flat = torch.cat([buffer.flatten() for buffer in group])
        dist.broadcast(flat, 0)
        parts = torch.split(flat, [buffer.numel() for buffer in group])
        torch._foreach_copy_(group, [p.view_as(b) for p, b in zip(parts, group, strict=True)])
