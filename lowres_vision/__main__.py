"""Commands: ``python -m lowres_vision COMMAND``.

``ensemble RUNS...`` blends what cross-validations left; ``doctor`` looks at the installation, a
model and a data set for damage that says nothing.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import get_args


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command that ``arguments``, by default those of the process, name."""
    parser = argparse.ArgumentParser(prog="python -m lowres_vision", description=__doc__)
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    _add_ensemble(commands)
    _add_doctor(commands)
    options = parser.parse_args(arguments)
    try:
        options.run(options)
    except (OSError, ValueError, ModuleNotFoundError) as error:
        parser.exit(2, f"{parser.prog}: {error}\n")


def _add_ensemble(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    from lowres_vision.ensemble import summarise
    from lowres_vision.ensemble._scores import Metric
    from lowres_vision.ensemble._summarise import Views, Weights

    def run(options: argparse.Namespace) -> None:
        if options.sample is not None and options.submission is None:
            parser.error("--sample is to check --submission by, which is missing")
        summary = summarise(
            options.runs,
            metric=options.metric,
            weights=options.weights,
            views=options.views,
            merged=options.merged,
            seed=options.seed,
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
        description="Print members, votes, the blend and what to expect of it on new "
        "data; write its submission and a picture where asked to.",
    )
    parser.add_argument("runs", nargs="+", type=Path, help="folders that cross_validate wrote")
    parser.add_argument("--metric", choices=get_args(Metric), default="macro_f1")
    parser.add_argument(
        "--weights", choices=get_args(Weights), default="selected", help="of the blend"
    )
    parser.add_argument(
        "--views", choices=get_args(Views), default="selected", help="of each member, test-time"
    )
    parser.add_argument("--merged", type=Path, help="folder for the merged ledger")
    parser.add_argument("--picture", type=Path, help="picture of the table to write")
    parser.add_argument("--submission", type=Path, help="CSV of the test predictions to write")
    parser.add_argument("--sample", type=Path, help="the contest's sample submission, to check by")
    parser.add_argument("--seed", type=int, default=0, help="of bootstrap and dealt folds")
    parser.set_defaults(run=run)


def _add_doctor(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    def run(options: argparse.Namespace) -> None:
        from lowres_vision import _doctor

        findings = [*_doctor.installation()]
        if options.model is not None:
            from lowres_vision.models import LowResClassifier

            try:
                model = LowResClassifier(options.model, 2, image_size=options.size)
                findings += _doctor.unread_pixels(model, model.image_size)
            except ValueError as error:
                if "unread" not in str(error):  # else it is what is looked for
                    raise
                findings.append(_doctor.Finding("fault", f"{options.model}: {error}"))
            findings += _doctor.weights(options.model, mean=options.mean, std=options.std)
        if options.predictor is not None:
            from lowres_vision.export import Predictor

            for part in Predictor.load(options.predictor).vote.models:
                findings += _doctor.member(part)
        if options.csv is not None:
            from lowres_vision.data import Manifest, MultiResolutionDataset

            manifest = Manifest.read_csv(options.csv)
            dataset = MultiResolutionDataset(manifest, rows=range(min(len(manifest), 64)))
            first = [dataset[index] for index in range(len(dataset))]
            findings += _doctor.images([sample[0] for sample in first])
            findings.append(_doctor.Finding("note", f"{options.csv}: {len(manifest)} rows"))
        if options.batch is not None:
            import numpy as np
            import torch

            findings += _doctor.images(torch.from_numpy(np.load(options.batch)))
        for finding in findings:
            print(f"{finding.level}: {finding.words}")
        if any(finding.level == "fault" for finding in findings):
            raise SystemExit(1)
        print("no fault found")

    parser = commands.add_parser(
        "doctor",
        help="look for damage that says nothing",
        description="Print versions, what resizes here and what extras lack; with a model, or "
        "a saved predictor, the licence of its weights, pixels that it never reads and a "
        "normalisation that is not its weights'; with a CSV, or a batch of your own loader, images "
        "that were damaged on their way: floats cast to uint8, scaled twice or not at all. Ends "
        "with code 1 if there is a fault.",
    )
    parser.add_argument("--model", help="name of a timm model")
    parser.add_argument("--size", type=int, help="side of the images that reach the model")
    parser.add_argument("--mean", type=float, nargs="+", help="in [0, 1] units")
    parser.add_argument("--std", type=float, nargs="+", help="in [0, 1] units")
    parser.add_argument("--predictor", type=Path, help="file that Predictor.save wrote")
    parser.add_argument("--csv", type=Path, help="CSV of images, of which the first 64 are read")
    parser.add_argument("--batch", type=Path, help="images (B, C, H, W), written by numpy.save")
    parser.set_defaults(run=run)


if __name__ == "__main__":
    main()
