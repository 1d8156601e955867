"""Export to a torch.export program, which C++, AOTInductor and ExecuTorch read."""

import os
import warnings
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

from lowres_vision.export._certificate import Certificate, certify
from lowres_vision.export._trace import at_rest, check_images, varying


def export_program(
    module: nn.Module,
    path: str | os.PathLike[str],
    images: Tensor,
    *,
    dynamic_size: bool = False,
    tolerance: float = 1e-5,
    margin: float = 1e-3,
    notes: Mapping[str, str] | None = None,
) -> Certificate:
    """Write ``module`` as a ``.pt2`` program, read it back, and certify that both agree.

    As :func:`export_onnx`, for ``torch.export.load``. A program file can hold code: load those of
    your own making, and give others the ONNX file.

    Args:
        module: From a batch to ``(B, K)``, e.g. a :class:`Predictor`; exported in eval mode.
        path: The file, named ``.pt2``; ``path`` + ``.json`` gets the certificate.
        images: ``(B, C, H, W)``, B >= 2, in the dtype it will get: traced and compared with.
        dynamic_size: Let height and width vary too, where the module can (with a resize first).
        tolerance: Largest absolute difference of an output that is accepted.
        margin: Two best outputs closer than this may change places.
        notes: Kept in the certificate, e.g. class names.

    Raises:
        ValueError: If ``images`` is no batch of two or more, or the outputs differ; no file is
            left behind then.
    """
    path = Path(path)
    if path.suffix != ".pt2":
        raise ValueError(f"`path` must end in .pt2, which torch.export asks for, got {path}")
    check_images(images)
    partial = path.with_name(f"{path.stem}.{os.getpid()}.part.pt2")
    with at_rest(module):
        expected = module(images)
        program = torch.export.export(module, (images,), dynamic_shapes=varying(dynamic_size))
        try:
            with warnings.catch_warnings():
                # Of channels_last weights, as Classifier keeps them: torch calls only C-contiguous
                # ones complete, and writes the others' bytes and strides all the same.
                warnings.filterwarnings("ignore", message="No complete tensor found")
                torch.export.save(program, partial)
            loaded = torch.export.load(partial).module()
            certificate = certify(
                partial,
                loaded,
                images,
                expected,
                name=path.name,
                tolerance=tolerance,
                margin=margin,
                packages=("timm",),
                notes=dict(notes or {}),
            )
            partial.replace(path)
        finally:
            partial.unlink(missing_ok=True)
    certificate.save(path.with_name(path.name + ".json"))
    return certificate
