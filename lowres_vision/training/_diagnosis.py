"""What was not finite in a training step: found by running the step again."""

import hashlib
import math
import os
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import asdict, dataclass
from functools import partial, reduce
from operator import add
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from lowres_vision._batch import Batch, PairBatch
from lowres_vision._modes import evaluation_mode
from lowres_vision._random import stream
from lowres_vision.training._classifier import _TRANSFORM, Classifier
from lowres_vision.training._failed_step import FailedStep
from lowres_vision.training._watch import Watch, is_finite

_AUTOCAST = {"16-mixed": torch.float16, "bf16-mixed": torch.bfloat16}


@dataclass(frozen=True)
class Diagnosis:
    """What running a step again has shown.

    Attributes:
        loss: The loss of the batch.
        terms: Its terms by name.
        rows: Rows whose own loss was not finite in the batch.
        rows_alone: Rows whose loss is not finite by itself either, one image in evaluation mode.
            Empty though ``rows`` is not: the rows are harmless, and what they share is not, e.g.
            the statistics of a BatchNorm.
        unreadable_rows: Rows whose image holds NaN or inf where the model reads it.
        first_module: First Module to return NaN or inf, by its name in the classifier and its
            class; "" if none did.
        from_finite: Whether all that this Module read was finite.
        weights: Parameters and buffers that held NaN or inf before the step.
        gradients: Parameters whose gradient is not finite; empty where the loss already is not.
        images_sha256: Of the images as the model read them.
        same: Whether these images and the model's outputs were, bit for bit, those of the failed
            step; None while there is nothing to compare with.
    """

    loss: float
    terms: dict[str, float]
    rows: tuple[int, ...]
    rows_alone: tuple[int, ...]
    unreadable_rows: tuple[int, ...]
    first_module: str
    from_finite: bool
    weights: tuple[str, ...]
    gradients: tuple[str, ...]
    images_sha256: str
    same: bool | None = None

    def to_text(self) -> str:
        """Return the findings, a line each."""
        lines = [f"loss {self.loss}"]
        if len(self.terms) > 1:
            lines[0] += ": " + ", ".join(f"{name} {value}" for name, value in self.terms.items())
        if self.weights:
            lines.append(f"not finite before the step: {_listed(self.weights)}")
        if self.unreadable_rows:
            lines.append(f"image not finite: row {_listed(self.unreadable_rows)}")
        if self.first_module:
            read = "finite values" if self.from_finite else "values that were not finite"
            lines.append(f"first output not finite: {self.first_module}, which read {read}")
        if self.rows:
            lines.append(f"loss not finite in the batch: row {_listed(self.rows)}")
            alone = f"row {_listed(self.rows_alone)}" if self.rows_alone else "none"
            lines.append(f"loss not finite by itself: {alone}")
        if self.gradients:
            lines.append(f"gradient not finite: {_listed(self.gradients)}")
        if self.same is not None:
            are = "are" if self.same else "are not"
            lines.append(f"images and outputs {are} those of the step that failed, bit for bit")
        return "\n".join(lines)

    def record(self) -> dict[str, Any]:
        """Return the findings as JSON can hold them, numbers that are not finite as words."""
        words = {**asdict(self), "loss": str(self.loss)}
        words["terms"] = {name: str(value) for name, value in self.terms.items()}
        return words


def replay(
    directory: str | os.PathLike[str], classifier: Classifier, *, device: str | None = None
) -> Diagnosis:
    """Run a failed training step again and tell what was not finite in it.

    The step is the one that :class:`NonFiniteGuard` saved: its weights, batch, crops, mixes and
    dropout. On a CPU the outputs are, bit for bit, those of the step that failed. The command does
    the same::

        python -m lowres_vision.training replay RUN/fold_0/failure --build train.py:build

    Args:
        directory: The folder named in the error.
        classifier: As it was built for the run; its weights are replaced.
        device: Where to run; default is the type of device that the step ran on, or the CPU where
            there is none.

    Raises:
        FileNotFoundError: If a file of the step is missing.
        ValueError: If one is not what was written, or the weights do not fit the classifier.
    """
    step = FailedStep.load(directory)
    try:
        classifier.load_state_dict(step.weights)
    except RuntimeError as error:
        detail = " ".join(str(error).split())[:300]
        raise ValueError(
            f"the weights in {directory} do not fit the classifier that was built: {detail}"
        ) from error
    if device is None:
        device = step.device if step.device != "cuda" or torch.cuda.is_available() else "cpu"
    classifier.to(device).train()
    classifier.seed = step.seed
    for name, module in classifier.named_modules():
        if name in step.evaluating:
            module.training = False
    for name, parameter in classifier.named_parameters():
        parameter.requires_grad_(name not in step.frozen)
    threads = torch.get_num_threads()
    torch.set_num_threads(step.threads)
    try:
        diagnosis, _ = diagnose(classifier, step)
    finally:
        torch.set_num_threads(threads)
    return diagnosis


def diagnose(classifier: Classifier, step: FailedStep) -> tuple[Diagnosis, list[Tensor]]:
    """Run ``step`` on a classifier that is as it was, and return what was found and the outputs.

    Of the classifier nothing changes; the random states move as in a step.
    """
    device = next(classifier.parameters()).device
    batch = _to(step.batch, device)
    share = slice(step.rank, len(batch.rows), step.world)
    generator = stream(step.seed, _TRANSFORM, step.epoch, step.batch_index)
    autocast = _autocast(step.precision, device.type)
    weights = tuple(n for n, value in classifier.state_dict().items() if not is_finite(value))
    with (
        torch.enable_grad(),
        autocast,
        Watch(classifier) as watch,
        _kept_buffers(classifier),
        _alone_in_group(classifier),
    ):
        _set_random_state(step.random_state)
        views = classifier._prepare(batch, share, generator)
        if step.second_pass:  # the views were those of the first
            _set_random_state(step.random_state)
        terms = classifier._terms(views)
        loss = reduce(add, terms.values())
        # Within, as the backward pass of a BatchNorm wants the buffers it left.
        gradients = _bad_gradients(classifier, loss) if math.isfinite(loss.item()) else ()
    rows = batch.rows[share].tolist()
    with torch.no_grad(), autocast:
        in_batch = [
            not bool(classifier.loss(output[i : i + 1], targets[i : i + 1]).isfinite())
            for output, targets in watch.read_by_loss
            for i in range(len(output))
        ]
        readable = [bool(image.isfinite().all()) for image in views.images]
        alone = _alone(classifier, views.images, views.targets) if any(in_batch) else []
    outputs = [output for output, _ in watch.read_by_loss]
    digest = hashlib.sha256(views.images.cpu().contiguous().numpy().tobytes()).hexdigest()
    same = None
    if step.images_sha256:
        same = digest == step.images_sha256 and len(outputs) == len(step.outputs)
        same = same and all(map(_same, outputs, step.outputs))
    return Diagnosis(
        loss=loss.item(),
        terms={name: term.item() for name, term in terms.items()},
        rows=_rows(rows, in_batch),
        rows_alone=_rows(rows, alone),
        unreadable_rows=_rows(rows, [not fine for fine in readable]),
        first_module=watch.first,
        from_finite=watch.from_finite,
        weights=weights,
        gradients=gradients,
        images_sha256=digest,
        same=same,
    ), outputs


def _alone(classifier: Classifier, images: Tensor, targets: Tensor) -> list[bool]:
    """Return of each image whether its loss is not finite, alone and in evaluation mode."""
    with evaluation_mode(classifier.model):
        return [
            not bool(
                classifier.loss(classifier.model(images[i : i + 1]), targets[i : i + 1]).isfinite()
            )
            for i in range(len(images))
        ]


def _bad_gradients(classifier: Classifier, loss: Tensor) -> tuple[str, ...]:
    named = [(name, p) for name, p in classifier.named_parameters() if p.requires_grad]
    gradients = torch.autograd.grad(loss, [p for _, p in named], allow_unused=True)
    return tuple(
        name
        for (name, _), gradient in zip(named, gradients, strict=True)
        if gradient is not None and not is_finite(gradient)
    )


def _rows(rows: list[int], bad: list[bool]) -> tuple[int, ...]:
    """Return the rows that ``bad`` points at; there may be two images of each."""
    return tuple(sorted({rows[i % len(rows)] for i, wrong in enumerate(bad) if wrong}))


def _autocast(precision: str, device: str) -> Any:
    if precision not in _AUTOCAST:
        return nullcontext()
    return torch.autocast(device, dtype=_AUTOCAST[precision], cache_enabled=False)


def random_state() -> dict[str, Tensor]:
    """Return the state of PyTorch's generators, of the current GPU's too where one is in use."""
    state = {"cpu": torch.get_rng_state()}
    if torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
        state["cuda"] = torch.cuda.get_rng_state()
    return state


def _set_random_state(state: dict[str, Tensor]) -> None:
    torch.set_rng_state(state["cpu"].cpu())
    if "cuda" in state and torch.cuda.is_available():
        torch.cuda.set_rng_state(state["cuda"].cpu())


@contextmanager
def _alone_in_group(module: nn.Module) -> Iterator[None]:
    """Within, SyncBatchNorm asks no other process, as none is looking into the step with this."""
    layers = [layer for layer in module.modules() if isinstance(layer, nn.SyncBatchNorm)]
    try:
        for layer in layers:
            layer.forward = partial(_BatchNorm.forward, layer)  # type: ignore[method-assign]
        yield
    finally:
        for layer in layers:
            del layer.forward


@contextmanager
def _kept_buffers(module: nn.Module) -> Iterator[None]:
    before = [(buffer, buffer.clone()) for buffer in module.buffers()]
    try:
        yield
    finally:
        with torch.no_grad():
            for buffer, value in before:
                buffer.copy_(value)


def _to(batch: Batch | PairBatch, device: torch.device) -> Any:
    def move(value: Any) -> Any:
        if isinstance(value, Tensor):
            return value.to(device)
        if isinstance(value, list):
            return [move(part) for part in value]
        if isinstance(value, tuple):
            return type(value)(*(move(part) for part in value))
        return value

    return move(batch)


def _same(ours: Tensor, theirs: Tensor) -> bool:
    """Tell whether two tensors have the same bits; NaN counts as equal to NaN."""
    ours, theirs = ours.cpu(), theirs.cpu()
    return (
        ours.dtype == theirs.dtype
        and ours.shape == theirs.shape
        and bool(((ours == theirs) | (ours.isnan() & theirs.isnan())).all())
    )


def _listed(values: tuple[Any, ...]) -> str:
    shown = ", ".join(str(value) for value in values[:10])
    return shown if len(values) <= 10 else f"{shown} and {len(values) - 10} more"
