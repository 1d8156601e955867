"""Cosine annealing with warm restarts, linear warm-up and falling peaks.

Surprises: the optimiser's own learning rate is not read; the last step of a cycle is one step
short of the minimum.
"""

import math
from collections.abc import Sequence
from typing import Any

from torch import Tensor
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from lowres_vision._checks import check_range


class CosineWarmRestarts(LRScheduler):
    r"""Learning rate that warms up, falls along a cosine, and starts again.

    At position :math:`t` of cycle :math:`c`, which has :math:`T_c` steps, :math:`T_w` of them
    warm-up,

    .. math::
        \eta = \eta_{\min} + (\eta_c - \eta_{\min}) \begin{cases}
            t / T_w & t < T_w \\
            \tfrac12 \left(1 + \cos \pi \frac{t - T_w}{T_c - T_w}\right) & t \ge T_w
        \end{cases}

    with the peak :math:`\eta_c = \max(\eta_{\min}, \gamma^c \eta_{\max})` and the next cycle's
    length :math:`T_{c+1} = (T_c - T_w) \cdot \mathrm{cycle\_mult} + T_w`: the warm-up keeps its
    length. It is a function of the step alone (:meth:`lr`), so a resumed run has the learning
    rates of an unbroken one.

    Call ``scheduler.step()`` after each ``optimizer.step()``; a step may be a batch or an epoch.

    Args:
        optimizer: Optimiser whose learning rates are set; what they were is not read.
        first_cycle: Steps of the first cycle, warm-up included.
        cycle_mult: Growth of the part after the warm-up from one cycle to the next, >= 1. The
            length of each cycle is rounded to the nearest step, halves to even, before the next
            one is computed.
        warmup: Steps of linear warm-up in every cycle, in [0, first_cycle). The first of them runs
            at ``min_lr``; with a ``min_lr`` of 0 it moves nothing.
        max_lr: Peak of the first cycle: one for all groups, or one for each.
        gamma: Factor from one peak to the next, in (0, 1].
        min_lr: Learning rate at the foot, >= 0: one for all groups, or one for each.
        last_epoch: The last step done, where a schedule is taken up without its ``state_dict``;
            -1 starts at step 0.

    Raises:
        TypeError: If ``first_cycle`` or ``warmup`` is not an int.
        ValueError: If an argument is outside its range, ``max_lr`` is below ``min_lr``, or their
            number differs from that of the groups, now or (as groups may be added) at a later
            step. A single number covers groups that are added later.

    Example:
        >>> import torch
        >>> optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
        >>> scheduler = CosineWarmRestarts(
        ...     optimizer, first_cycle=4, warmup=2, max_lr=0.8, gamma=0.5
        ... )
        >>> [round(scheduler.lr(step)[0], 3) for step in range(8)]
        [0.0, 0.4, 0.8, 0.4, 0.0, 0.2, 0.4, 0.2]

    References:
        Loshchilov, Hutter, "SGDR: Stochastic Gradient Descent with Warm Restarts", ICLR 2017,
        https://arxiv.org/abs/1608.03983, equation 5. Warm-up and falling peaks follow the widely
        used schedulers of gaussian37 and katsura-jp on GitHub, with three differences: the minimum
        is ``min_lr`` rather than the optimiser's learning rate, no peak falls below it, and cycle
        lengths are rounded where katsura-jp's are cut off (``int(100 * 1.15)`` is 114).
    """

    def __init__(
        self,
        optimizer: Optimizer,
        *,
        first_cycle: int,
        cycle_mult: float = 1,
        warmup: int = 0,
        max_lr: float | Sequence[float],
        gamma: float = 1.0,
        min_lr: float | Sequence[float] = 0.0,
        last_epoch: int = -1,
    ) -> None:
        for name, steps in (("first_cycle", first_cycle), ("warmup", warmup)):
            if not isinstance(steps, int) or isinstance(steps, bool):
                raise TypeError(f"`{name}` must be an int number of steps, got {steps!r}")
        check_range("first_cycle", first_cycle, 1)
        check_range("cycle_mult", cycle_mult, 1)
        if not 0 <= warmup < first_cycle:
            raise ValueError(f"`warmup` must be >= 0 and < first_cycle={first_cycle}, got {warmup}")
        check_range("gamma", gamma, 0.0, 1.0, open_low=True)
        self.first_cycle = first_cycle
        self.cycle_mult = cycle_mult
        self.warmup = warmup
        self.max_lr = max_lr if isinstance(max_lr, int | float) else list(max_lr)
        self.gamma = gamma
        self.min_lr = min_lr if isinstance(min_lr, int | float) else list(min_lr)
        self.optimizer = optimizer
        for low, high in zip(self._per_group("min_lr"), self._per_group("max_lr"), strict=True):
            check_range("min_lr", low, 0.0)
            check_range("max_lr", high, low)
        super().__init__(optimizer, last_epoch)

    def lr(self, step: int) -> list[float]:
        """Return the learning rate of each group at ``step``, counted from 0.

        Raises:
            ValueError: If ``step`` is negative, or the groups are no longer those of ``max_lr``.
        """
        check_range("step", step, 0)
        cycle, position, length = self._locate(step)
        if position < self.warmup:
            height = position / self.warmup
        else:
            share = (position - self.warmup) / (length - self.warmup)
            height = (1 + math.cos(math.pi * share)) / 2
        fade = self.gamma**cycle
        return [
            low + (max(low, fade * high) - low) * height
            for low, high in zip(self._per_group("min_lr"), self._per_group("max_lr"), strict=True)
        ]

    def get_lr(self) -> list[float | Tensor]:
        """Return the learning rate of each group at the present step."""
        return [*self.lr(self.last_epoch)]

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Load the state, and set the optimiser's learning rates to those of its step.

        So it does not matter whether the optimiser's state is loaded before or after.
        """
        super().load_state_dict(state_dict)
        for group, lr in zip(self.optimizer.param_groups, self.get_lr(), strict=True):
            if isinstance(group["lr"], Tensor):
                group["lr"].fill_(lr)
            else:
                group["lr"] = lr

    def _locate(self, step: int) -> tuple[int, int, int]:
        """Return the cycle that ``step`` is in, the position in it, and its length."""
        cycle, length = 0, self.first_cycle
        while step >= length:
            longer = round((length - self.warmup) * self.cycle_mult) + self.warmup
            passed = step // length if longer == length else 1
            cycle, step, length = cycle + passed, step - passed * length, longer
        return cycle, step, length

    def _per_group(self, name: str) -> list[float]:
        """Return ``max_lr`` or ``min_lr`` with one value for each group there is now."""
        value: float | list[float] = getattr(self, name)
        groups = len(self.optimizer.param_groups)
        if not isinstance(value, list):
            return [value] * groups
        if len(value) != groups:
            raise ValueError(
                f"`{name}` must have one value for each of the optimizer's {groups} parameter "
                f"groups, got {len(value)}; after `add_param_group`, append to `scheduler.{name}`"
            )
        return value
