"""Export to ONNX, with the resize and all else in the graph."""

import logging
import os
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import Tensor, nn

from lowres_vision._optional import require
from lowres_vision.export._certificate import Certificate, certify
from lowres_vision.export._trace import at_rest, check_images, varying


def export_onnx(
    module: nn.Module,
    path: str | os.PathLike[str],
    images: Tensor,
    *,
    dynamic_size: bool = False,
    tolerance: float = 1e-4,
    margin: float = 1e-3,
    view: nn.Module | None = None,
    notes: Mapping[str, str] | None = None,
) -> Certificate:
    """Write ``module`` as ONNX, run it with ONNX Runtime, and certify that both agree.

    The graph has one input ``images`` and one output ``outputs``, with a batch of any size; with
    ``view``, a second one.
    Exported is the resize's reference, two products with tap matrices: ONNX Runtime's own resize
    with antialias is another one (.06 to .31 away on images in [0, 1]).

    Args:
        module: From a batch to ``(B, K)``, e.g. a :class:`Predictor`; exported in eval mode.
        path: The file; ``path`` + ``.json`` gets the certificate.
        images: ``(B, C, H, W)``, B >= 2, in the dtype it will get. It is traced and compared
            with: real images say more than noise.
        dynamic_size: Let height and width vary too, where the module can (with a resize first).
        tolerance: Largest absolute difference of an output that is accepted.
        margin: Two best outputs closer than this may change places.
        view: From the same batch to ``(B, 3, h, w)`` in [0, 1], e.g. the
            :class:`~lowres_vision.resizer.Resize` to the size the model reads. It becomes a second
            output ``views``, for those who show what the model sees.
        notes: Kept in the file's metadata and the certificate, e.g.
            ``{"classes": json.dumps(classes)}``; a :class:`Predictor`'s classes always are.

    Raises:
        ValueError: If ``images`` is no batch of two or more, or the outputs differ; no file is
            left behind then.
        ModuleNotFoundError: If onnx, onnxscript or onnxruntime is missing.

    Example:
        >>> import tempfile, pathlib
        >>> model = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(3, 2))
        >>> folder = pathlib.Path(tempfile.mkdtemp())
        >>> certificate = export_onnx(model, folder / "model.onnx", torch.rand(4, 3, 8, 8))
        >>> certificate.images, certificate.largest_difference < 1e-4
        (4, True)
    """
    for name in ("onnx", "onnxscript", "onnxruntime"):
        require(name, extra="export")
    import onnxruntime

    check_images(images)
    path = Path(path)
    notes = dict(notes or {})
    if "classes" not in notes and hasattr(module, "classes"):
        notes["classes"] = "\n".join(module.classes)  # type: ignore[arg-type]
    partial = path.with_name(f"{path.name}.{os.getpid()}.part")
    exporting = module if view is None else _Viewed(module, view)
    with at_rest(exporting), _quiet():
        expected = module(images)
        exported = torch.onnx.export(
            exporting,
            (images,),
            dynamo=True,
            dynamic_shapes=varying(dynamic_size),
            input_names=["images"],
            output_names=["outputs"] if view is None else ["outputs", "views"],
            verbose=False,
        )
        assert exported is not None
        exported.model.metadata_props.update(notes)
        for node in exported.model.graph.all_nodes():
            node.metadata_props.clear()  # stack traces, with the paths of this machine
        try:
            exported.save(partial, external_data=False)
            session = onnxruntime.InferenceSession(partial, providers=["CPUExecutionProvider"])

            def run(batch: Tensor) -> Tensor:
                return torch.from_numpy(session.run(["outputs"], {"images": batch.numpy()})[0])

            if view is not None:
                (seen,) = session.run(["views"], {"images": images.numpy()})
                difference = float((torch.from_numpy(seen) - view(images)).abs().max())
                if not difference <= tolerance:
                    raise ValueError(
                        f"the exported `view` differs from the Module by up to {difference:.2g} "
                        f"(`tolerance` {tolerance:g}); nothing was written"
                    )
            certificate = certify(
                partial,
                run,
                images,
                expected,
                name=path.name,
                tolerance=tolerance,
                margin=margin,
                packages=("timm", "onnx", "onnxscript", "onnxruntime"),
                notes=notes,
            )
            partial.replace(path)
        finally:
            partial.unlink(missing_ok=True)
    certificate.save(path.with_name(path.name + ".json"))
    return certificate


class _Viewed(nn.Module):
    """A Module's outputs, and a picture of what it reads."""

    def __init__(self, module: nn.Module, view: nn.Module) -> None:
        super().__init__()
        self.module, self.view = module, view

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        return self.module(images), self.view(images)


@contextmanager
def _quiet() -> Iterator[None]:
    """Hold back the exporter's news of its own internals."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", category=DeprecationWarning)
        warnings.simplefilter("ignore", category=FutureWarning)
        try:
            yield
        finally:
            logger.setLevel(level)
