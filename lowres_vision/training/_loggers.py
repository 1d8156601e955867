"""Loggers by name: where the scores of a run go besides its own files."""

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from lightning.pytorch.loggers import Logger, MLFlowLogger, TensorBoardLogger, WandbLogger
from lightning.pytorch.utilities import rank_zero_only

from lowres_vision._optional import require
from lowres_vision.training._metrics_file import MetricsFile

_SERVICES = {"wandb": "wandb", "mlflow": "mlflow"}


def make_loggers(
    names: str | Sequence[str],
    directory: str | os.PathLike[str],
    *,
    name: str | None = None,
    tags: Sequence[str] = (),
    settings: Mapping[str, Any] | None = None,
) -> list[Logger]:
    """Return Lightning loggers for a run.

    =============== ==========================================================================
    ``csv``         ``metrics.csv`` in ``directory``, which a resumed run goes on with
    ``tensorboard`` events in ``directory/tensorboard``; the ``track`` extra
    ``wandb``       Weights & Biases, files in ``directory``; offline with ``WANDB_MODE=offline``
    ``mlflow``      MLflow, at ``MLFLOW_TRACKING_URI`` or in ``directory/mlflow.db``
    =============== ==========================================================================

    A run that is resumed is another run to the services, of the same name.

    Args:
        names: One of them, or several.
        directory: The run's.
        name: What the services call the run; default ``directory``'s last two parts.
        tags: Words to find the run by.
        settings: Conditions of the run, nested as you like; services show them as its parameters.

    Raises:
        ValueError: If a name is none of the above, or comes twice.
        ModuleNotFoundError: If a package is missing, with the command that installs it.

    Example:
        >>> import tempfile
        >>> folder = tempfile.mkdtemp()
        >>> [type(logger).__name__ for logger in make_loggers("csv", folder)]
        ['MetricsFile']
        >>> make_loggers(["csv", "neptune"], folder)
        Traceback (most recent call last):
        ValueError: `names` must be of 'csv', 'tensorboard', 'wandb', 'mlflow', got 'neptune'
    """
    names = [names] if isinstance(names, str) else list(names)
    makers = {"csv": _csv, "tensorboard": _tensorboard, "wandb": _wandb, "mlflow": _mlflow}
    for given in names:
        if given not in makers:
            raise ValueError(f"`names` must be of {str([*makers])[1:-1]}, got {given!r}")
        if names.count(given) > 1:
            raise ValueError(f"`names` has {given!r} {names.count(given)} times")
    for given in names:
        _require(given)
    directory = Path(directory)
    name = name or "/".join(directory.absolute().parts[-2:])
    loggers = [makers[given](directory, name, tuple(tags)) for given in names]
    conditions = {"tags": " ".join(tags)} if tags else {}
    for logger in loggers:
        if settings or conditions:
            logger.log_hyperparams({**conditions, **flat(settings or {})})
    return loggers


_Maker = Callable[[Path, str, tuple[str, ...]], Logger]


def _csv(directory: Path, name: str, tags: tuple[str, ...]) -> Logger:
    return MetricsFile(directory)


def _tensorboard(directory: Path, name: str, tags: tuple[str, ...]) -> Logger:
    return TensorBoardLogger(directory, name="", version="tensorboard", default_hp_metric=False)


def _wandb(directory: Path, name: str, tags: tuple[str, ...]) -> Logger:
    directory.mkdir(parents=True, exist_ok=True)
    return WandbLogger(name=name, save_dir=directory, tags=list(tags))


def _mlflow(directory: Path, name: str, tags: tuple[str, ...]) -> Logger:
    directory.mkdir(parents=True, exist_ok=True)
    given = os.environ.get("MLFLOW_TRACKING_URI")
    # Current versions refuse to keep runs in plain files.
    local = f"sqlite:///{(directory / 'mlflow.db').absolute()}"
    logger = MLFlowLogger(
        experiment_name="lowres-vision",
        run_name=name,
        tags=dict.fromkeys(tags, "") or None,
        tracking_uri=given or local,
    )
    _ = logger.experiment
    if not given:  # the first use has set it, and the next run would take it for the user's
        os.environ.pop("MLFLOW_TRACKING_URI", None)
    return logger


@contextmanager
def closing(loggers: Sequence[Logger]) -> Iterator[None]:
    """End the services' runs after the block, with the error that it ended with.

    Lightning leaves a run of W&B open, and the next fold's would be the same one.
    """
    try:
        yield
    except BaseException as error:
        with suppress(Exception):  # the block's error is told as it is
            _close(loggers, f"{type(error).__name__}: {error}")
        raise
    _close(loggers, "")


@rank_zero_only
def _close(loggers: Sequence[Logger], error: str) -> None:
    for logger in loggers:
        if isinstance(logger, MLFlowLogger) and error:
            logger.experiment.set_tag(logger.run_id, "error", error[:5000])
        if isinstance(logger, WandbLogger):
            if error:
                logger.experiment.summary["error"] = error
            logger.experiment.finish(exit_code=int(bool(error)))


def _require(name: str) -> None:
    if name == "tensorboard":
        require("tensorboard", extra="track")
    elif name in _SERVICES:
        try:
            require(_SERVICES[name], extra="track")
        except ModuleNotFoundError as error:
            if error.name != _SERVICES[name]:
                raise
            raise ModuleNotFoundError(
                f"the logger {name!r} needs the package {_SERVICES[name]}, which no extra of "
                f"lowres-vision installs; install it with: pip install {_SERVICES[name]}",
                name=error.name,
            ) from None


def flat(settings: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return nested settings as ``outer.inner``, with numbers, words and None as they are."""
    found: dict[str, Any] = {}
    for key, value in settings.items():
        if isinstance(value, Mapping):
            found |= flat(value, f"{prefix}{key}.")
        else:
            plain = value is None or isinstance(value, bool | int | float | str)
            found[f"{prefix}{key}"] = value if plain else str(value)
    return found
