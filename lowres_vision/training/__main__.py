"""The commands ``python -m lowres_vision.training replay FOLDER`` and ``... report RUN``."""

import argparse
import importlib
import importlib.util
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from lowres_vision.data import Manifest
from lowres_vision.training._diagnosis import replay
from lowres_vision.training._report import write_report


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; return 0."""
    parser = argparse.ArgumentParser(prog="python -m lowres_vision.training")
    commands = parser.add_subparsers(required=True)

    command = commands.add_parser("replay", help="run a training step that failed again")
    command.add_argument("folder", type=Path, help="the one named in the error")
    command.add_argument(
        "--build",
        required=True,
        metavar="FILE.py:FUNCTION",
        help="what returned the run's Classifier; also package.module:FUNCTION. It is executed",
    )
    command.add_argument("--device", help="default: the type of device that the step ran on")
    command.set_defaults(run=_replay)

    command = commands.add_parser("report", help="write one HTML page about a cross-validation")
    command.add_argument("folder", type=Path, metavar="run", help="the cross-validation's `out`")
    command.add_argument("--out", type=Path, metavar="FILE", help="default: RUN/report.html")
    command.add_argument("--csv", type=Path, help="the rows it was trained on, for their images")
    command.add_argument("--test", type=Path, metavar="CSV", help="the test rows, likewise")
    command.add_argument("--image", default="img_path", metavar="COLUMN")
    command.add_argument("--high-resolution", default="upscale_img_path", metavar="COLUMN")
    command.add_argument("--label", default="label", metavar="COLUMN")
    command.add_argument("--id", default="id", metavar="COLUMN")
    command.add_argument("--group", metavar="COLUMN")
    command.add_argument("--root", type=Path, help="folder of the paths; default the CSV's")
    command.add_argument("--build", metavar="FILE.py:FUNCTION", help="as above, for the resizer")
    command.add_argument("--pictures", type=Path, metavar="FOLDER", help="gets them as PNG, too")
    command.set_defaults(run=_report)

    options = parser.parse_args(arguments)
    try:
        print(options.run(options))
    except (FileNotFoundError, ValueError) as error:
        parser.error(str(error))
    return 0


def _replay(options: argparse.Namespace) -> str:
    build = _function(options.build)
    return replay(options.folder, build(), device=options.device).to_text()


def _report(options: argparse.Namespace) -> Path:
    columns = ("image", "high_resolution", "label", "id", "group", "root")
    named = {name: getattr(options, name) for name in columns}
    manifest = None if options.csv is None else Manifest.read_csv(options.csv, **named)
    test = None
    if options.test is not None:
        classes = None if manifest is None else manifest.classes
        test = Manifest.read_csv(options.test, classes=classes, **named)
    return write_report(
        options.folder,
        options.out,
        manifest=manifest,
        test=test,
        build=None if options.build is None else _function(options.build),
        pictures=options.pictures,
    )


def _function(name: str) -> Callable[..., Any]:
    """Return the function that ``FILE.py:FUNCTION`` or ``package.module:FUNCTION`` names."""
    place, _, function = name.rpartition(":")
    if not place:
        raise ValueError(f"`--build` must be FILE.py:FUNCTION, got {name!r}")
    if place.endswith(".py"):
        if not Path(place).is_file():
            raise FileNotFoundError(f"`--build` {place} is not a file")
        specification = importlib.util.spec_from_file_location(Path(place).stem, place)
        assert specification is not None
        assert specification.loader is not None
        module = importlib.util.module_from_spec(specification)
        sys.modules[specification.name] = module
        sys.path.insert(0, str(Path(place).resolve().parent))
        specification.loader.exec_module(module)
    else:
        sys.path.insert(0, "")
        module = importlib.import_module(place)
    if not hasattr(module, function):
        raise ValueError(f"`--build` {place} has no function {function}")
    found: Callable[..., Any] = getattr(module, function)
    return found


if __name__ == "__main__":
    sys.exit(main())
