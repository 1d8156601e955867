"""The command ``python -m lowres_vision.data audit train.csv``."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from lowres_vision.data import audit


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; return 0 if no fault was found, 2 otherwise."""
    parser = argparse.ArgumentParser(prog="python -m lowres_vision.data")
    commands = parser.add_subparsers(required=True)
    command = commands.add_parser("audit", help="name everything wrong with a CSV of images")
    command.add_argument("csv", type=Path, help="the CSV")
    command.add_argument("--json", type=Path, metavar="FILE", help="write the report there too")
    command.add_argument("--image", default="img_path", metavar="COLUMN")
    command.add_argument("--high-resolution", default="upscale_img_path", metavar="COLUMN")
    command.add_argument("--label", default="label", metavar="COLUMN")
    command.add_argument("--id", default="id", metavar="COLUMN")
    command.add_argument("--group", metavar="COLUMN")
    command.add_argument("--root", type=Path, help="folder of the paths; default the CSV's")
    command.add_argument("--workers", type=int, help="decoding processes; default one per CPU")
    command.add_argument("--time-limit", type=float, default=10.0, help="seconds for one file")
    options = vars(parser.parse_args(arguments))
    csv, json = options.pop("csv"), options.pop("json")
    try:
        report = audit(csv, **options)
    except (FileNotFoundError, ValueError) as error:
        parser.error(str(error))
    print(report.to_text())
    if json:
        json.write_text(report.to_json(), encoding="utf-8")
    return 2 if report.faults else 0


if __name__ == "__main__":
    sys.exit(main())
