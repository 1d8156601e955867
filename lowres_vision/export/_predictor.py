"""Everything between pixels and probabilities in one Module, and that Module in one file."""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Protocol, Self

import torch
from torch import Tensor, nn

from lowres_vision.ensemble import VotingEnsemble
from lowres_vision.export._allowance import Allowance
from lowres_vision.export._anew import agree, answers, any_half, fill, record_of, tensors_of
from lowres_vision.export._certificate import installed_versions
from lowres_vision.export._hub import OnHub
from lowres_vision.export._parts import make
from lowres_vision.export._sealed import read_sealed, write_sealed

_ROOM, _TIMES = 2**30, 8  # bytes, and how often the file's, that making a predictor may take


class _Trained(Protocol):
    """What a predictor needs of a trained model; a ``training.Classifier`` is one."""

    @property
    def model(self) -> nn.Module: ...
    @property
    def loss(self) -> Any: ...
    @property
    def transform(self) -> nn.Module | None: ...


class TrainedModel(NamedTuple):
    """One trained model of a :class:`Predictor`, where no ``training.Classifier`` is at hand.

    ``loss`` is the Module it was trained with, whose ``probabilities`` reads the model's outputs;
    ``transform`` goes from images as they are stored to what the model reads.
    """

    model: nn.Module
    loss: nn.Module
    transform: nn.Module | None = None


class Predictor(nn.Module, OnHub):
    """From stored images to class probabilities: resize, normalise, models, calibration, vote.

    Whatever a model was trained with before and after itself is part of this Module, so nobody
    who gets it has to repeat it: not the size, not mean and standard deviation, not the softmax
    or scale of the loss. Each member has its own; one Module can mix models of several sizes.

    It starts in eval mode and shares its parameters with the members. :meth:`save` and :meth:`load`
    keep it in a file; on the Hugging Face Hub, ``save_pretrained``, ``push_to_hub`` and
    ``from_pretrained`` do what they do there.

    Args:
        members: At least one trained ``training.Classifier`` or :class:`TrainedModel`.
        classes: Class names by index.
        vote: As of :class:`~lowres_vision.ensemble.VotingEnsemble`.
        weights: ``(members,)`` weights of the vote, e.g. those of
            :func:`~lowres_vision.ensemble.select_ensemble`; default equal.
        calibration: Module from probabilities ``(B, K)`` to probabilities that comes last, e.g. a
            :class:`~lowres_vision.ensemble.Temperature` with ``reads="probabilities"``.

    Attributes:
        notes: Texts that travel with the file, e.g. scores.

    Raises:
        ValueError: If there is no member, or weights and classes do not fit.

    Example:
        >>> from lowres_vision.losses import CrossEntropyLoss
        >>> from lowres_vision.resizer import Resize
        >>> model = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(3, 2))
        >>> read = Resize(8, mean=(0.5,) * 3, std=(0.5,) * 3)
        >>> member = TrainedModel(model, CrossEntropyLoss(), read)
        >>> predictor = Predictor([member], classes=("heron", "rail"))
        >>> predictor(torch.zeros(4, 3, 16, 12, dtype=torch.uint8)).sum(1)
        tensor([1., 1., 1., 1.], grad_fn=<SumBackward1>)
    """

    def __init__(
        self,
        members: Sequence[_Trained],
        *,
        classes: Sequence[str],
        vote: str = "soft",
        weights: Sequence[float] | None = None,
        calibration: nn.Module | None = None,
    ) -> None:
        super().__init__()
        if len(set(classes)) != len(classes) or len(classes) < 2:
            raise ValueError(f"`classes` must be at least two different names, got {classes!r}")
        self.classes = tuple(classes)
        self.vote = VotingEnsemble(
            [_with_transform(member) for member in members],
            probabilities=[member.loss.probabilities for member in members],
            vote=vote,  # type: ignore[arg-type]
            weights=weights,
        )
        self.calibration = calibration
        self.notes: dict[str, str] = {}
        self.eval()

    def forward(self, images: Tensor) -> Tensor:
        """Return the probabilities ``(B, K)`` of images ``(B, C, H, W)``, uint8 as decoded."""
        probabilities: Tensor = self.vote(images)
        self._check_classes(probabilities.shape[1])
        if self.calibration is not None:
            probabilities = self.calibration(probabilities)
        return probabilities

    def save(
        self, path: str | os.PathLike[str], *, notes: Mapping[str, str] | None = None
    ) -> dict[str, Any]:
        """Write everything to one safetensors file, which can hold no code.

        Its header has the classes, each part's name and constructor arguments, the versions at
        hand and a checksum over the whole file. Before it is written, the predictor is made anew
        from that and has to give the same answers.

        Args:
            path: The file; a name that ends in ``.safetensors`` says what it is.
            notes: Texts that travel with it, e.g. scores; default those of :attr:`notes`.

        Returns:
            The record that the header holds.

        Raises:
            ValueError: If a part cannot be made anew from its constructor's arguments.

        Example:
            >>> import tempfile
            >>> from lowres_vision.augment import BatchTransform
            >>> from lowres_vision.losses import CrossEntropyLoss
            >>> from lowres_vision.models import LowResClassifier
            >>> model = LowResClassifier("test_vit", num_classes=2, image_size=32)
            >>> read = BatchTransform(32, mean=model.mean, std=model.std)
            >>> member = TrainedModel(model, CrossEntropyLoss(), read)
            >>> path = Path(tempfile.mkdtemp()) / "birds.safetensors"
            >>> _ = Predictor([member], classes=("heron", "rail")).save(path)
            >>> Predictor.load(path).classes
            ('heron', 'rail')
        """
        record = {**record_of(self), "versions": installed_versions("timm")}
        if notes is not None:
            record["notes"] = dict(notes)
        tensors, given = tensors_of(self), answers(self.vote)
        self._check_classes(given.shape[2])
        try:
            anew = self._made(record, tensors)
        except Exception as error:  # whatever a constructor raises
            detail = " ".join(str(error).split())[:300]
            raise ValueError(
                f"the predictor cannot be made anew from its constructors' arguments ({detail}); "
                f"undo what was changed in its models, or write it with `export_onnx`"
            ) from error
        if not agree(given, answers(anew.vote.to(given.device)), tolerance=1e-4):
            raise ValueError(
                "the predictor made anew from its constructors' arguments gives other answers; "
                "undo what was changed in its models, or write it with `export_onnx`"
            )
        write_sealed(Path(path), record, {**tensors, "answers": given.cpu()})
        return record

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Self:
        """Return the predictor that :meth:`save` wrote, on the CPU.

        The file can name parts of this library, timm's models and plain layers of torch, with
        plain arguments, and nothing else; nor does making them take more memory than 1 GiB and
        eight times the file's weights. Under the versions that wrote it the answers are the
        same, to the bit on the same kind of machine. Under others, the models first have to give
        two made-up images the outputs that the file holds, to a thousandth of the largest (a
        fiftieth where weights are of a half type).

        Args:
            path: The file.

        Raises:
            FileNotFoundError: If there is no such file.
            ValueError: If it is another file, was damaged, or asks for what is not to be had here,
                or if it gives other answers under the versions that are installed.
        """
        path = Path(path)
        record, tensors = read_sealed(path)
        here = installed_versions("timm")
        try:
            given, there = tensors.pop("answers"), dict(record["versions"])
            predictor = cls._made(record, tensors)
            agreed = there == here or _still(predictor, given)
        except Exception as error:  # a foreign record may break a constructor in any way
            detail = " ".join(f"{type(error).__name__}: {error}".split())[:300]
            raise ValueError(
                f"{path} asks for a predictor that cannot be made here ({detail}); it was written "
                f"with {record.get('versions')}, here are {here}: install those versions, and "
                f"register a backbone of your own with timm first"
            ) from error
        if not agreed:
            raise ValueError(
                f"{path} was written with {there} and gives other answers with {here}; install "
                f"those versions, or write it with `export_onnx` where they are"
            )
        return predictor

    def _check_classes(self, count: int) -> None:
        if count != len(self.classes):
            raise ValueError(
                f"the models give {count} classes, `classes` names {len(self.classes)}"
            )

    @classmethod
    def _made(cls, record: dict[str, Any], tensors: dict[str, Tensor]) -> Self:
        held = sum(value.numel() * value.element_size() for value in tensors.values())
        allowance = Allowance(total=_ROOM + _TIMES * held)
        # Drawn are weights that the file's then replace.
        with torch.random.fork_rng(devices=[]), allowance:
            members = [
                TrainedModel(make(member["model"]), make(member["loss"]))
                for member in record["members"]
            ]
            predictor = cls(
                members,
                classes=record["classes"],
                vote=record["vote"],
                weights=record["weights"],
                calibration=make(record["calibration"]),
            )
        fill(predictor, tensors)
        predictor.notes = dict(record["notes"])
        return predictor


def _still(predictor: Predictor, given: Tensor) -> bool:
    """Whether the models give the outputs that they gave, in memory that any machine has."""
    tolerance = 2e-2 if any_half(predictor) else 1e-3
    with Allowance(each=_ROOM):
        found = answers(predictor.vote)
    return agree(given, found, tolerance=tolerance)


def _with_transform(member: _Trained) -> nn.Module:
    model = getattr(member, "scored_model", member.model)  # the moving average where one is kept
    return model if member.transform is None else nn.Sequential(member.transform, model)
