"""Test-time views of finished runs, entered in their ledger."""

import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import torch
from torch.utils.data import DataLoader

from lowres_vision._batch import collate
from lowres_vision._checks import check_range
from lowres_vision.augment import BatchTransform
from lowres_vision.data import Manifest, MultiResolutionDataset
from lowres_vision.ensemble import Member, OutOfFold, TestTimeAugmentation, View
from lowres_vision.training._classifier import Classifier
from lowres_vision.training._outcome import read_tests, write_tests
from lowres_vision.training._run import ledger_hash
from lowres_vision.training._teacher import Fold, call_build
from lowres_vision.training._weights import load_weights

Build = Callable[..., Classifier]
Floats = npt.NDArray[np.float32]

_SAME = 0.02  # bf16 and another order of batches move a probability by less


def predict_views(
    manifest: Manifest,
    build: Build | Mapping[str, Build],
    augment: Sequence[View] | Callable[[Classifier], TestTimeAugmentation],
    *,
    out: str | os.PathLike[str],
    test: Manifest | None = None,
    resolution: Literal["low", "high"] = "low",
    batch_size: int = 64,
    device: str | torch.device = "cpu",
) -> dict[str, dict[str, float]]:
    """Predict under test-time views what the runs of a cross-validation have not seen.

    The held-out rows' predictions go into the ledger in ``out``, the test rows' into
    ``test_probabilities.npz``, each with its view's name. What a ledger has already is checked,
    not written again. The view called ``"plain"``, if there is one, must give what the run itself
    predicted: where it does not, ``augment`` shows images otherwise than the run's transform did.

    Args:
        manifest: Rows of the cross-validation.
        build: As for :func:`cross_validate`.
        augment: The views, which then get the size, mean, std and mode of the run's
            :class:`~lowres_vision.augment.BatchTransform`. Or, where the images of a run were
            transformed otherwise, from a classifier with its best weights to the augmentation.
        out: Folder of the finished runs.
        test: Test rows, if the runs had any.
        resolution: That the rows were scored on.
        batch_size: Images at once.
        device: That predicts.

    Returns:
        Seconds per image of each view, by model: what :func:`~lowres_vision.ensemble.select_views`
        reports as cost.

    Raises:
        FileNotFoundError: If ``out`` has no ledger, no predictions of test rows where there is
            ``test``, or a run's weights are gone.
        TypeError: If there are views alone, and the run's transform is no ``BatchTransform``.
        ValueError: If a run is unfinished, is of other data or has no ``build``, ``test`` has other
            rows than the runs predicted or another order, a plain view differs from the run's own
            predictions, or there are views alone and the run's images took a detour (``via``).
    """
    check_range("batch_size", batch_size, 1)
    out = Path(out)
    ledger = OutOfFold(out / "ledger")
    if test is not None:
        read_tests(out, test)  # other rows are told before hours are spent on them
    row_of = {name: row for row, name in enumerate(manifest.ids)}
    seconds: dict[str, dict[str, float]] = {}
    tested: dict[Member, dict[int, Floats]] = {}
    for folder, about, checkpoint_hash in _finished_runs(out):
        model, seed, fold = about["model"], about["seed"], about["fold"]
        if isinstance(build, Mapping) and model not in build:
            raise ValueError(f"`build` has no {model!r}, of which {folder} is a run")
        ids = [ledger.ids[row] for row in np.flatnonzero(ledger.fold_of == fold)]
        rows = np.array([row_of[name] for name in ids])
        classifier = call_build(
            build[model] if isinstance(build, Mapping) else build,
            Fold(fold, rows, manifest.digest()),
        )
        load_weights(classifier.scored_model, folder / "best.safetensors")
        classifier.eval()
        augmented = augment(classifier) if callable(augment) else _shown(classifier, augment)
        augmented = augmented.eval().to(device)
        held_out = MultiResolutionDataset(manifest, rows=rows, resolution=resolution)
        answers = _answers(augmented, held_out, batch_size, device)
        _refuse_other_images(augmented, answers, folder)
        for view, probabilities in zip(augmented.names, answers, strict=True):
            if view != "plain":
                ledger.add(
                    probabilities,
                    ids=ids,
                    model=model,
                    seed=seed,
                    fold=fold,
                    view=view,
                    classes=about["classes"],
                    data_hash=ledger_hash(about),
                    fold_hash=about["folds_sha256"],
                    checkpoint_hash=checkpoint_hash,
                )
        if model not in seconds:
            seconds[model] = augmented.seconds_per_image(_first_batch(held_out, batch_size, device))
        if test is not None:
            unseen = MultiResolutionDataset(test, resolution=resolution)
            found = _answers(augmented, unseen, batch_size, device)
            for view, probabilities in zip(augmented.names, found, strict=True):
                if view != "plain":
                    tested.setdefault(Member(model, seed, view), {})[fold] = probabilities
    if test is not None:
        stacks = {
            member: np.stack([by_fold[fold] for fold in sorted(by_fold)])
            for member, by_fold in tested.items()
        }
        write_tests(out, stacks, ids=test.ids, classes=ledger.classes)
    return seconds


def _shown(classifier: Classifier, views: Sequence[View]) -> TestTimeAugmentation:
    """Return the views as the classifier's transform shows images when it is evaluated."""
    transform = classifier.transform
    if not isinstance(transform, BatchTransform):
        raise TypeError(
            f"`augment` must be a function for a transform that is no BatchTransform, of whose "
            f"size and colours the views would be, got views for {type(transform).__name__}"
        )
    if transform.via is not None:
        raise ValueError(
            f"`augment` cannot be views where images were first resized to {transform.via}, the "
            f"`via` of the run's transform; views are made from the images as they were loaded"
        )
    return TestTimeAugmentation(
        classifier.scored_model,
        probabilities=classifier.loss.probabilities,
        views=views,
        size=transform.eval_size,
        mean=transform.mean,
        std=transform.std,
        mode=transform.mode,
    )


def _finished_runs(out: Path) -> Iterator[tuple[Path, dict[str, Any], str]]:
    """Yield folder, description and weights' hash of each run."""
    books = sorted(out.rglob("run.json"))
    if not books:
        raise ValueError(f"`out` {out} holds no run")
    for file in books:
        book = json.loads(file.read_text())
        if book["stage"] != "done":
            raise ValueError(f"{file.parent} is not finished; call cross_validate again")
        yield file.parent, book["made_of"], book["files"]["best.safetensors"]


@torch.inference_mode()
def _answers(
    augmented: TestTimeAugmentation,
    samples: MultiResolutionDataset,
    batch_size: int,
    device: str | torch.device,
) -> Floats:
    """Return the probabilities ``(V, N, K)`` of all samples, in order."""
    loader = DataLoader(samples, batch_size=batch_size, collate_fn=collate)
    parts = [augmented.each(_moved(batch.images, device)).float().cpu() for batch in loader]
    return np.asarray(torch.cat(parts, dim=1).numpy())


def _first_batch(
    samples: MultiResolutionDataset, batch_size: int, device: str | torch.device
) -> Any:
    loader = DataLoader(samples, batch_size=batch_size, collate_fn=collate)
    return _moved(next(iter(loader)).images, device)


def _moved(images: Any, device: str | torch.device) -> Any:
    if isinstance(images, torch.Tensor):
        return images.to(device)
    return [image.to(device) for image in images]


def _refuse_other_images(augmented: TestTimeAugmentation, answers: Floats, folder: Path) -> None:
    if "plain" not in augmented.names:
        return
    with np.load(folder / "predictions.npz", allow_pickle=False) as stored:
        off = np.abs(answers[augmented.names.index("plain")] - stored["probabilities"]).max()
    if not off <= _SAME:
        raise ValueError(
            f"`augment` shows images otherwise than the transform of {folder} did: its plain view "
            f"is off the run's own predictions by {off:.3f}; compare size, mean, std and mode"
        )
