"""Commands: ``python -m lowres_vision ensemble RUNS...`` blends what cross-validations left."""

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import get_args


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command that ``arguments``, by default those of the process, name."""
    parser = argparse.ArgumentParser(prog="python -m lowres_vision", description=__doc__)
    _add_ensemble(parser.add_subparsers(required=True, metavar="COMMAND"))
    options = parser.parse_args(arguments)
    try:
        options.run(options)
    except (OSError, ValueError) as error:
        parser.exit(2, f"{parser.prog}: {error}\n")


def _add_ensemble(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    from lowres_vision.ensemble import summarise
    from lowres_vision.ensemble._scores import Metric

    def run(options: argparse.Namespace) -> None:
        summary = summarise(
            options.runs, metric=options.metric, merged=options.merged, seed=options.seed
        )
        print(summary.table(), end="")
        if options.picture is not None:
            from lowres_vision.plots import ensemble_table

            ensemble_table(summary, options.picture)
        if options.submission is not None:
            summary.write_submission(options.submission, sample=options.sample)

    parser = commands.add_parser(
        "ensemble",
        help="blend runs of cross_validate by their out-of-fold predictions",
        description="Print members, votes, the selected blend and what to expect of it on new "
        "data; write its submission and a picture where asked to.",
    )
    parser.add_argument("runs", nargs="+", type=Path, help="folders that cross_validate wrote")
    parser.add_argument("--metric", choices=get_args(Metric), default="macro_f1")
    parser.add_argument("--merged", type=Path, help="folder for the merged ledger")
    parser.add_argument("--picture", type=Path, help="picture of the table to write")
    parser.add_argument("--submission", type=Path, help="CSV of the test predictions to write")
    parser.add_argument("--sample", type=Path, help="the contest's sample submission, to check by")
    parser.add_argument("--seed", type=int, default=0, help="of bootstrap and dealt folds")
    parser.set_defaults(run=run)


if __name__ == "__main__":
    main()
