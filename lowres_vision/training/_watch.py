"""What of a classifier was first to return NaN or inf, and what its loss read."""

from collections.abc import Iterator
from typing import Any

from torch import Tensor, nn

from lowres_vision.training._classifier import Classifier


class Watch:
    """Within, notes what the loss reads and which Module is the first to return NaN or inf.

    Attributes:
        first: The Module, by its name in the classifier and its class; "" if none did.
        from_finite: Whether all that it read was finite.
        read_by_loss: Outputs and targets, call by call.
    """

    def __init__(self, classifier: Classifier) -> None:
        self.first, self.from_finite = "", True
        self.read_by_loss: list[tuple[Tensor, Tensor]] = []
        self._modules = dict(classifier.named_modules())
        teacher = getattr(classifier.pairing, "teacher", None)
        if isinstance(teacher, nn.Module):  # kept out of the classifier's own Modules
            self._modules |= {
                f"pairing.teacher.{name}".rstrip("."): module
                for name, module in teacher.named_modules()
            }
        self._loss = classifier.loss

    def __enter__(self) -> "Watch":
        self._hooks = [
            module.register_forward_hook(self._hook(name), with_kwargs=True)
            for name, module in self._modules.items()
        ]
        self._hooks.append(self._loss.register_forward_pre_hook(self._before_loss))
        return self

    def __exit__(self, *_: Any) -> None:
        for hook in self._hooks:
            hook.remove()

    def _before_loss(self, _: nn.Module, read: tuple[Any, ...]) -> None:
        self.read_by_loss.append((read[0].detach(), read[1]))

    def _hook(self, name: str) -> Any:
        # Called when a Module has finished, so a part comes before the whole that it is in.
        def note(module: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
            if not self.first and not all(is_finite(tensor) for tensor in _tensors(output)):
                self.first = f"{name} ({type(module).__name__})"
                self.from_finite = all(is_finite(tensor) for tensor in _tensors((args, kwargs)))

        return note


def is_finite(value: Tensor) -> bool:
    """Tell whether no element is NaN or inf."""
    return not value.is_floating_point() or bool(value.isfinite().all())


def _tensors(value: Any) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, dict):
        for part in value.values():
            yield from _tensors(part)
    elif isinstance(value, list | tuple):
        for part in value:
            yield from _tensors(part)
