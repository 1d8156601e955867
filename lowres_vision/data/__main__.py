"""The commands ``python -m lowres_vision.data``: audit, deal, verify."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from lowres_vision.data import DataError, Manifest, StratifiedFolds, audit, format_table


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command; return 0 if no fault was found, 2 otherwise."""
    parser = argparse.ArgumentParser(prog="python -m lowres_vision.data")
    commands = parser.add_subparsers(required=True)

    command = commands.add_parser("audit", help="name everything wrong with a data set")
    _add_data(command)
    command.add_argument("--json", type=Path, metavar="FILE", help="write the report there too")
    command.add_argument("--workers", type=int, help="decoding processes; default one per CPU")
    command.add_argument("--time-limit", type=float, default=10.0, help="seconds for one file")
    command.set_defaults(run=_audit)

    command = commands.add_parser("deal", help="deal a data set to folds and save them")
    _add_data(command)
    command.add_argument("folds", type=Path, help="the fold file to write (JSON)")
    command.add_argument("--splits", type=int, default=5, help="number of folds")
    command.add_argument("--share", type=float, help="one hold-out of this share in place of folds")
    command.add_argument("--seed", type=int, default=0)
    command.set_defaults(run=_deal)

    command = commands.add_parser("verify", help="check a data set against its fold file")
    _add_data(command)
    command.add_argument("folds", type=Path, help="the fold file")
    command.set_defaults(run=_verify)

    options = vars(parser.parse_args(arguments))
    run = options.pop("run")
    try:
        return int(run(**options))
    except DataError as error:
        print(error, file=sys.stderr)
        return 2
    except (OSError, ValueError) as error:
        parser.error(str(error))


def _add_data(command: argparse.ArgumentParser) -> None:
    command.add_argument("path", type=Path, help="a CSV, or a folder with a folder per class")
    command.add_argument("--image", default="img_path", metavar="COLUMN")
    command.add_argument(
        "--high-resolution",
        default="upscale_img_path",
        metavar="COLUMN",
        help="column, or for a folder the second tree",
    )
    command.add_argument("--label", default="label", metavar="COLUMN")
    command.add_argument("--id", default="id", metavar="COLUMN")
    command.add_argument("--group", metavar="COLUMN")
    command.add_argument("--root", type=Path, help="folder of the paths; default the CSV's")


def _audit(path: Path, json: Path | None, **options: Any) -> int:
    report = audit(path, **options)
    print(report.to_text())
    if json:
        json.write_text(report.to_json(), encoding="utf-8")
    return 2 if report.faults else 0


def _deal(
    path: Path, folds: Path, splits: int, share: float | None, seed: int, **columns: Any
) -> int:
    manifest = _read(path, **columns)
    dealt = StratifiedFolds(splits, seed=seed).save(folds, manifest, share=share)
    numbers = np.unique(dealt)
    counts = np.zeros((len(manifest.classes), len(numbers)), dtype=np.int64)
    np.add.at(counts, (manifest.labels, np.searchsorted(numbers, dealt)), 1)
    names = [f"fold {n}" for n in numbers] if share is None else ["trained on", "held out"]
    print(format_table(counts, rows=manifest.classes, columns=names))
    return 0


def _verify(path: Path, folds: Path, **columns: Any) -> int:
    StratifiedFolds.load(folds).verify(_read(path, **columns))
    print(f"{path} is what {folds} was dealt to")
    return 0


def _read(path: Path, **columns: Any) -> Manifest:
    if not path.is_dir():
        return Manifest.read_csv(path, **columns)
    high = columns["high_resolution"]
    high = None if high == "upscale_img_path" else high
    return Manifest.read_folders(path, high_resolution=high, root=columns["root"])


if __name__ == "__main__":
    sys.exit(main())
