"""How much memory a predictor's record may ask for: in keeping with the weights in its file.

A record names constructors and their arguments, and shapes are compared with the file's only once
a model stands. So what they allocate is counted while they run: an operation is first asked, on the
meta device, how large its result will be, and is refused before it takes the memory. Constructing
timm's models takes 1 to 2.2 times their weights, position indices of 448 px and temporary
tensors included.
"""

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map_only

_OBJECT = 2**15  # bytes that a tensor counts for at least: a layer costs as much, and time


class Allowance(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Within, no operation takes more memory than is allowed.

    Args:
        total: Bytes of all results together, whether still held or not.
        each: Bytes of one result.
    """

    def __init__(self, *, total: float = math.inf, each: float = math.inf) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.total, self.each, self.taken = total, each, 0

    def __torch_dispatch__(
        self,
        func: Any,
        types: Sequence[type],
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        kwargs = kwargs or {}
        if not (func.is_view or func._schema.is_mutable):
            taken = _bytes_of(func, args, kwargs)
            self.taken += taken
            if taken > self.each or self.taken > self.total:
                allowed = min(self.each, self.total) / 2**30
                raise MemoryError(
                    f"a part asks for more than {allowed:.1f} GiB, which its weights do not explain"
                )
        return func(*args, **kwargs)


def _bytes_of(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> int:
    """Return the memory that an operation's results will take."""
    args, kwargs = tree_map_only(Tensor, lambda value: value.to("meta"), (args, kwargs))
    if any(argument.name == "device" for argument in func._schema.arguments):
        kwargs = {**kwargs, "device": torch.device("meta")}
    try:
        results = tree_leaves(func(*args, **kwargs))
    except (NotImplementedError, RuntimeError):  # it depends on values, as `item` does
        return 0
    tensors = [result for result in results if isinstance(result, Tensor)]
    return sum(_OBJECT + value.numel() * value.element_size() for value in tensors)
