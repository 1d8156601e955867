"""Sharpness-aware minimisation around any optimiser.

Surprises: a step costs two passes and one copy of the weights; a step with an inf or NaN gradient
is skipped and counted, not taken; gradients have to be accumulated inside the closure.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils import get_total_norm
from torch.optim import Optimizer
from torch.optim.optimizer import ParamsT
from torch.utils.hooks import RemovableHandle

from lowres_vision._checks import check_range
from lowres_vision._numerics import at_least_float32


class SAM(Optimizer):
    r"""Steps by the gradient found at the worst point nearby, which favours flat minima.

    With the gradient :math:`g` at the weights :math:`w`, the second pass runs at :math:`w + e`,

    .. math::
        e = \rho \frac{g}{\lVert g \rVert + 10^{-12}}
        \quad\text{or, if adaptive,}\quad
        e = \rho \frac{w^2 g}{\lVert |w| g \rVert + 10^{-12}} ,

    and the base optimiser moves :math:`w` (not :math:`w + e`) by the gradient found there. The
    norm is over all parameters of all groups; ``rho`` and ``adaptive`` may differ by group. The
    direction does not depend on the scale of the loss or on clipping by norm, so in the first pass
    neither has to be undone.

    ``step(closure)`` makes both passes::

        def closure():
            optimizer.zero_grad()
            with keep_batch_norm_statistics(model, enabled=optimizer.in_second_pass):
                loss = criterion(model(images), targets)
                loss.backward()
            return loss

        optimizer.step(closure)

    Both passes must see the same batch, mixed the same way. To accumulate, run all micro-batches in
    the closure. To clip, clip at its end; the second clipping is the one that counts. Without a
    closure, and for fp16, the same in two halves::

        optimizer.zero_grad()
        scaler.scale(loss_of(batch)).backward()
        optimizer.first_step(zero_grad=True)
        with keep_batch_norm_statistics(model):
            scaler.scale(loss_of(batch)).backward()
        scaler.unscale_(optimizer)  # only if the gradients are clipped next
        scaler.step(optimizer)  # without a scaler: optimizer.second_step()
        scaler.update()

    **Overflow.** If a gradient of either pass is inf or NaN, the weights and the state of the base
    optimiser stay as they were, bit for bit, and :attr:`skipped_steps` grows by one. A bad first
    pass makes the gradients of the second NaN, so a scaler lowers its scale, and all ranks of a
    distributed run skip the same step.

    **Many processes.** Under DDP both passes may be synchronised as usual; with the first one under
    ``no_sync()`` each rank climbs by its own share of the batch (m-sharpness), as in the paper.
    Parameters sharded by ``fully_shard`` work as they are; those of the older wrapper class
    ``FullyShardedDataParallel`` do not, as the norm would be of one shard.

    **Lightning.** Automatic optimisation passes a closure, but for 16-mixed: use bf16-mixed, or
    manual optimisation in two halves. ``accumulate_grad_batches`` above 1 leaves earlier
    micro-batches out of the closure and is refused.

    Groups, state and ``state_dict`` are those of the base optimiser: schedulers,
    ``add_param_group`` and resuming work, and a run may go over from the bare optimiser to SAM.

    Args:
        params: Parameters, parameter groups or named parameters; a group may set ``rho`` and
            ``adaptive``.
        base_optimizer: Class of the optimiser that makes the step, e.g. ``torch.optim.SGD``.
        rho: Radius of the neighbourhood, >= 0; 0 is the base optimiser, at twice its cost.
        adaptive: Measure the neighbourhood relative to each weight (ASAM); wants a ``rho`` about
            ten times larger.
        base_arguments: Arguments of ``base_optimizer``, e.g. ``lr``.

    Raises:
        TypeError: If ``base_optimizer`` does not build an optimiser.
        ValueError: If a ``rho`` is negative, or the base optimiser has a ``rho`` of its own.

    Example:
        >>> weight = torch.nn.Parameter(torch.tensor([3.0, 4.0]))
        >>> optimizer = SAM([weight], torch.optim.SGD, rho=5.0, lr=0.1)
        >>> def closure():
        ...     optimizer.zero_grad()
        ...     loss = weight.square().sum() / 2
        ...     loss.backward()
        ...     return loss
        >>> optimizer.step(closure).item()  # the gradient (6, 8) of (3, 4) + 5 (0.6, 0.8)
        12.5
        >>> weight.data
        tensor([2.4000, 3.2000])

    References:
        Foret, Kleiner, Mobahi, Neyshabur, "Sharpness-Aware Minimization for Efficiently Improving
        Generalization", ICLR 2021, https://arxiv.org/abs/2010.01412, equations 2 and 3.
        Kwon, Kim, Park, Choi, "ASAM: Adaptive Sharpness-Aware Minimization for Scale-Invariant
        Learning of Deep Neural Networks", ICML 2021, https://arxiv.org/abs/2102.11600, with
        :math:`|w|` as normalisation operator for every parameter and without its :math:`\eta`.
    """

    # GradScaler then always calls `step`, with `found_inf` and `grad_scale` set on the optimiser.
    # Otherwise it would leave out the step that overflowed, and with it the way back to w.
    _step_supports_amp_scaling = True

    def __init__(
        self,
        params: ParamsT,
        base_optimizer: Callable[..., Optimizer],
        *,
        rho: float = 0.05,
        adaptive: bool = False,
        **base_arguments: Any,
    ) -> None:
        check_range("rho", rho, 0.0)
        super().__init__(params, {"rho": rho, "adaptive": adaptive})
        if isinstance(base_optimizer, Optimizer) or not callable(base_optimizer):
            raise TypeError(
                f"`base_optimizer` must be a class such as torch.optim.SGD, got {base_optimizer!r}"
            )
        self.base_optimizer = base_optimizer(self.param_groups, **base_arguments)
        if not isinstance(self.base_optimizer, Optimizer):
            raise TypeError(
                f"`base_optimizer` must build a torch.optim.Optimizer, got {self.base_optimizer!r}"
            )
        if taken := self.defaults.keys() & self.base_optimizer.defaults.keys():
            raise ValueError(
                f"`base_optimizer` must have no {' or '.join(sorted(taken))} of its own, "
                f"got {type(self.base_optimizer).__name__}"
            )
        self.defaults.update(self.base_optimizer.defaults)
        self._progress = _Progress()
        self._share()

    @property
    def in_second_pass(self) -> bool:
        """Whether the first half of a step is done and the second is not."""
        return self._progress.in_second_pass

    @property
    def skipped_steps(self) -> int:
        """Number of steps not taken because a gradient was inf or NaN."""
        return self._progress.skipped_steps

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Make both passes with ``closure``, or the second half of a step begun by `first_step`.

        With neither, gradients that are all zero are taken: the climb is zero, and a second pass
        would find the same. ``torch.distributed.checkpoint`` makes state to load into in this way.

        Args:
            closure: Zeroes the gradients, computes the loss, back-propagates and returns the loss.
                It is called twice; if it fails, the weights are as before the step.

        Returns:
            The loss at the weights before the step; None without a closure.

        Raises:
            RuntimeError: If there is neither a closure nor a first half, or the closure leaves the
                gradients of an earlier pass in place.
        """
        if closure is None and not self.in_second_pass and not self._gradients_are_zero():
            raise RuntimeError(
                "`step` needs a closure, or a `first_step` before it; a GradScaler and Lightning's "
                "16-mixed pass no closure: use `first_step` and `second_step`, or bf16"
            )
        loss = None
        try:
            if closure is not None and self.in_second_pass:
                # How Lightning's wrapper, which always passes one, arrives here from second_step.
                with torch.enable_grad():
                    loss = closure()
            elif closure is not None:
                if getattr(self, "grad_scale", None) is not None:
                    raise RuntimeError("a GradScaler takes no closure: use `first_step` instead")
                loss = self._run(closure)
                self.first_step()
                self._run(closure)
        except BaseException:
            self.restore()
            raise
        self._descend()
        return loss

    @torch.no_grad()
    def first_step(self, *, zero_grad: bool = False) -> None:
        """Move the weights from ``w`` to ``w + e`` by the gradients there are.

        Args:
            zero_grad: Drop the gradients afterwards.

        Raises:
            RuntimeError: If the second half of the last step is missing, or a gradient is sparse.
        """
        self._refuse_in_second_pass("first_step")
        groups = [
            (group, [weight for weight in group["params"] if weight.grad is not None])
            for group in self.param_groups
        ]
        slopes = [
            [weight.abs() * weight.grad if group["adaptive"] else weight.grad for weight in weights]
            for group, weights in groups
        ]
        norm = _norm([slope for each in slopes for slope in each])
        progress = self._progress
        progress.in_second_pass = True
        if not math.isfinite(norm):
            progress.void = True
            progress.hooks = [
                weight.register_hook(lambda gradient: torch.full_like(gradient, torch.nan))
                for group in self.param_groups
                for weight in group["params"]
                if weight.requires_grad
            ]
        else:
            for (group, weights), steps in zip(groups, slopes, strict=True):
                progress.moved += [(weight, weight.detach().clone()) for weight in weights]
                if group["adaptive"]:
                    steps = [w.abs() * slope for w, slope in zip(weights, steps, strict=True)]
                if weights:
                    torch._foreach_add_(weights, steps, alpha=group["rho"] / (norm + 1e-12))
        if zero_grad:
            self.zero_grad()

    def second_step(self, *, zero_grad: bool = False) -> None:
        """Return to ``w`` and let the base optimiser step by the gradients found at ``w + e``.

        The same as ``step()``, which is how a ``GradScaler`` calls it.

        Args:
            zero_grad: Drop the gradients afterwards.

        Raises:
            RuntimeError: If there was no `first_step`.
        """
        self.step()
        if zero_grad:
            self.zero_grad()

    @torch.no_grad()
    def restore(self) -> None:
        """Return to ``w`` without a step, e.g. after an error in the second pass; else do nothing.

        Every weight that moved is copied back in place, whether or not it has a gradient now.
        """
        progress = self._progress
        for hook in progress.hooks:
            hook.remove()
        for weight, before in progress.moved:
            weight.copy_(before)
        progress.hooks, progress.moved = [], []
        progress.in_second_pass = progress.void = False

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Drop the gradients of all parameters, or set them to zero."""
        self._progress.zeroed = True
        super().zero_grad(set_to_none)

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add parameters, as ``torch.optim.Optimizer`` does; the group may set ``rho``."""
        check_range("rho", param_group.get("rho", self.defaults["rho"]), 0.0)
        super().add_param_group(param_group)

    def state_dict(self) -> dict[str, Any]:
        """Return the state of the base optimiser, with ``rho`` and ``adaptive`` in its groups.

        Raises:
            RuntimeError: Between the halves of a step, where the weights are not the model's.
        """
        self._refuse_in_second_pass("state_dict")
        return {**self.base_optimizer.state_dict(), "skipped_steps": self.skipped_steps}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Load what :meth:`state_dict` returned, or the state of a bare base optimiser.

        Raises:
            RuntimeError: Between the halves of a step.
        """
        self._refuse_in_second_pass("load_state_dict")
        state = dict(state_dict)
        skipped = state.pop("skipped_steps", 0)
        self.base_optimizer.load_state_dict(state)
        self._progress.skipped_steps = skipped
        self._share()

    def __getstate__(self) -> dict[str, Any]:
        own = {"base_optimizer": self.base_optimizer, "_progress": self._progress}
        return {**super().__getstate__(), **own}

    def _share(self) -> None:
        """Make groups and state one object with the base optimiser's."""
        self.param_groups = self.base_optimizer.param_groups
        self.state = self.base_optimizer.state
        for group in self.param_groups:
            for name in ("rho", "adaptive"):
                group.setdefault(name, self.defaults[name])

    def _run(self, closure: Callable[[], Any]) -> Any:
        """Run ``closure`` and refuse it if it added to the gradients that were there before."""
        weights = [weight for group in self.param_groups for weight in group["params"]]
        used = [weight for weight in weights if weight.grad is not None]
        witness = min(used, key=torch.Tensor.numel, default=None)
        stale = None if witness is None else witness.grad
        self._progress.zeroed = False
        with torch.enable_grad():
            loss = closure()
        if witness is not None and witness.grad is stale and not self._progress.zeroed:
            raise RuntimeError(
                "the closure must call `optimizer.zero_grad()`: it added to older gradients; to "
                "accumulate, run all micro-batches in the closure (Lightning: "
                "accumulate_grad_batches=1)"
            )
        return loss

    def _descend(self) -> None:
        """Return to ``w`` and step by the gradients, unless they or the first ones are not finite.

        A GradScaler sets ``found_inf``, and ``grad_scale`` if the gradients are still scaled.
        """
        void = self._progress.void
        self.restore()
        gradients = self._gradients()
        found_inf = bool(getattr(self, "found_inf", False))
        if void or found_inf or not math.isfinite(_norm(gradients)):
            self._progress.skipped_steps += 1
            return
        scale = getattr(self, "grad_scale", None)
        if scale is not None:
            for gradient in gradients:
                gradient.div_(scale.to(gradient.device))
        self.base_optimizer.step()

    def _gradients(self) -> list[Tensor]:
        return [w.grad for g in self.param_groups for w in g["params"] if w.grad is not None]

    def _gradients_are_zero(self) -> bool:
        gradients = self._gradients()
        return bool(gradients) and _norm(gradients) == 0

    def _refuse_in_second_pass(self, name: str) -> None:
        if self.in_second_pass:
            raise RuntimeError(
                f"`{name}` came between the halves of a step; call `second_step`, or `restore` to "
                f"give the step up"
            )


@dataclass
class _Progress:
    """What changes from step to step, in one object that wrappers of the optimiser share.

    Lightning's wrapper takes over the methods of the optimiser but keeps what they assign.
    """

    in_second_pass: bool = False
    void: bool = False
    zeroed: bool = False
    skipped_steps: int = 0
    moved: list[tuple[Tensor, Tensor]] = field(default_factory=list)
    hooks: list[RemovableHandle] = field(default_factory=list)


def _norm(tensors: list[Tensor]) -> float:
    """Return the norm of all tensors together, in float32 or better."""
    if any(tensor.is_sparse for tensor in tensors):
        raise RuntimeError("SAM takes no sparse gradients; build the embedding with sparse=False")
    norm = get_total_norm([at_least_float32(tensor) for tensor in tensors])
    # Of sharded weights this is a DTensor, a class that would import torch.distributed.
    return float(norm.full_tensor() if hasattr(norm, "full_tensor") else norm)
