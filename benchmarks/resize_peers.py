"""What :mod:`bench_resize` compares with: the work, and everyone who can do it."""

import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor
from torchvision.transforms import v2

from lowres_vision.ops import Mix

SIZE = 224
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
Candidates = dict[str, Callable[[], object]]


class Work(NamedTuple):
    """One batch and what is to become of it; pixels are stored (B, H, W, C), as decoders do."""

    name: str
    images: Tensor  # (B, C, H, W) uint8, channels_last in memory
    boxes: Tensor | None
    flip: Tensor | None
    mix: Mix | None

    @property
    def arguments(self) -> dict[str, object]:
        """Return the keywords of `resize`."""
        return {"boxes": self.boxes, "flip": self.flip, "mix": self.mix, "mean": MEAN, "std": STD}


def peer_candidates(work: Work) -> Candidates:
    """Return what else does this work and is installed; the first is the one to compare with."""
    images = work.images.contiguous()
    device = images.device
    if work.boxes is not None and work.flip is not None:
        peers = cropping_peers(work)
        if work.mix is not None:
            peers = {
                f"{name}, mix": partial(mix_up, call, work.mix) for name, call in peers.items()
            }
        return peers
    whole = v2.Compose(
        [v2.Resize(SIZE, antialias=True), v2.ToDtype(torch.float32, scale=True),
         v2.Normalize(MEAN, STD)]
    )  # fmt: skip
    float_first = v2.Compose(
        [v2.ToDtype(torch.float32, scale=True), v2.Resize(SIZE, antialias=True),
         v2.Normalize(MEAN, STD)]
    )  # fmt: skip
    std = torch.tensor(STD, device=device)[:, None, None]
    mean = torch.tensor(MEAN, device=device)[:, None, None]
    compiled = torch.compile(composition)
    peers: Candidates = {
        "torchvision v2": lambda: whole(images),
        "torchvision v2, channels_last": lambda: whole(work.images),
        "torchvision v2, float first": lambda: float_first(images),
        "torchvision v2, per image": lambda: torch.stack([whole(image) for image in images]),
        "interpolate": lambda: composition(images, mean, std),
        "interpolate, torch.compile": lambda: compiled(images, mean, std),
    }
    if device.type == "cpu":
        peers["Pillow, per image"] = partial(pillow, work)
    add_optional_peers(peers, work)
    return peers


def composition(images: Tensor, mean: Tensor, std: Tensor) -> Tensor:
    """Normalise the small images, then resize, in plain torch."""
    small = images.float() * (1 / (255 * std)) - mean / std
    return F.interpolate(small, (SIZE, SIZE), mode="bilinear", antialias=True)


def pillow(work: Work) -> Tensor:
    """Resize through Pillow, as most loaders do."""
    results = []
    for index, pixels in enumerate(work.images.permute(0, 2, 3, 1).numpy()):
        image = Image.fromarray(pixels)
        if work.boxes is not None and work.flip is not None:
            top, left, height, width = work.boxes[index].tolist()
            image = image.crop((left, top, left + width, top + height))
            if work.flip[index]:
                image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        image = image.resize((SIZE, SIZE), Image.Resampling.BILINEAR)
        tensor = v2.functional.to_dtype(v2.functional.pil_to_tensor(image), scale=True)
        results.append(v2.functional.normalize(tensor, MEAN, STD))
    return torch.stack(results)


def cropping_peers(work: Work) -> Candidates:
    """Return peers for a crop and a flip per image."""
    images = work.images.contiguous()
    boxes, flips = work.boxes.long().tolist(), work.flip.tolist()

    def torchvision() -> Tensor:
        results = []
        for image, box, flip in zip(images, boxes, flips, strict=True):
            image = v2.functional.resized_crop(image, *box, [SIZE, SIZE], antialias=True)
            image = v2.functional.horizontal_flip(image) if flip else image
            image = v2.functional.to_dtype(image, torch.float32, scale=True)
            results.append(v2.functional.normalize(image, MEAN, STD))
        return torch.stack(results)

    def sampled() -> Tensor:
        side = images.shape[-1]
        scale = (
            work.boxes[:, 2:].flip(1)
            / side
            * torch.where(work.flip, -1, 1)[:, None] ** (torch.tensor([1, 0], device=images.device))
        )
        centre = (2 * work.boxes[:, :2] + work.boxes[:, 2:]).flip(1) / side - 1
        theta = torch.cat([torch.diag_embed(scale), centre[:, :, None]], -1)
        grid = F.affine_grid(theta, [len(images), 3, SIZE, SIZE], align_corners=False)
        std = torch.tensor(STD, device=images.device)[:, None, None]
        mean = torch.tensor(MEAN, device=images.device)[:, None, None]
        small = images.float() * (1 / (255 * std)) - mean / std
        return F.grid_sample(small, grid, padding_mode="border", align_corners=False)

    peers: Candidates = {"torchvision v2, per image": torchvision, "grid_sample": sampled}
    if images.device.type == "cpu":
        peers["Pillow, per image"] = partial(pillow, work)
        add_albumentations(peers, work)
    add_dali(peers, work)
    return peers


def mix_up(call: Callable[[], Tensor], mix: Mix) -> Tensor:
    """Mix a finished batch."""
    result, lam = call(), mix.lam[:, None, None, None]
    return lam * result + (1 - lam) * result[mix.partner]


def add_optional_peers(peers: Candidates, work: Work) -> None:
    """Add what resizes whole images where it is installed."""
    images = work.images.contiguous()
    pixels = work.images.permute(0, 2, 3, 1)  # (B, H, W, C)
    mean, std = (torch.tensor(value, device=images.device) for value in (MEAN, STD))
    try:
        import kornia

        def with_kornia() -> Tensor:
            small = kornia.enhance.normalize(images.float() / 255, mean, std)
            return kornia.geometry.resize(small, (SIZE, SIZE), align_corners=False, antialias=True)

        peers["kornia"] = with_kornia
    except ImportError:
        pass
    add_dali(peers, work)
    if images.device.type != "cpu":
        return
    try:
        from kornia_rs.pipeline import resize_normalize_to_tensor_batch

        arrays = list(pixels.numpy())
        peers["kornia_rs, stacked"] = lambda: torch.from_numpy(
            np.stack(resize_normalize_to_tensor_batch(arrays, (SIZE, SIZE), MEAN, STD))
        )
    except ImportError:
        pass
    add_albumentations(peers, work)
    try:
        import onnxruntime

        peers["onnxruntime"] = onnx_session(onnxruntime, work)
    except ImportError:
        pass


def add_albumentations(peers: Candidates, work: Work) -> None:
    """Add albumentations, one transform an image, on as many threads as torch has."""
    os.environ["NO_ALBUMENTATIONS_UPDATE"] = "1"
    try:
        import albumentations
    except ImportError:
        return
    last = [albumentations.Resize(SIZE, SIZE), albumentations.Normalize(MEAN, STD)]
    jobs = []
    for index, pixels in enumerate(work.images.permute(0, 2, 3, 1).numpy()):
        first = []
        if work.boxes is not None and work.flip is not None:
            top, left, height, width = work.boxes[index].int().tolist()
            first.append(albumentations.Crop(left, top, left + width, top + height))
            if work.flip[index]:
                first.append(albumentations.HorizontalFlip(p=1))
        jobs.append((albumentations.Compose([*first, *last]), pixels))
    executor = ThreadPoolExecutor(torch.get_num_threads())

    def transform(job: tuple[Callable[..., dict[str, np.ndarray]], np.ndarray]) -> np.ndarray:
        compose, pixels = job
        return compose(image=pixels)["image"]

    peers["albumentations, per image"] = lambda: torch.from_numpy(
        np.stack(list(executor.map(transform, jobs)))
    ).permute(0, 3, 1, 2)


def add_dali(peers: Candidates, work: Work) -> None:
    """Add DALI's operators, run to the end within the call; crops are its regions."""
    try:
        from nvidia.dali import fn, pipeline_def, types
    except ImportError:
        return
    on_gpu = work.images.is_cuda
    stored = work.images.permute(0, 2, 3, 1)  # (B, H, W, C)
    pixels = list(stored if on_gpu else stored.numpy())

    @pipeline_def(
        batch_size=len(pixels),
        num_threads=torch.get_num_threads(),
        device_id=0 if on_gpu else None,
        prefetch_queue_depth=1,
        exec_async=False,
        exec_pipelined=False,
    )
    def pipeline() -> object:
        images = fn.external_source(
            lambda: pixels, layout="HWC", no_copy=True, device="gpu" if on_gpu else "cpu"
        )
        region, mirror = {}, 0
        if work.boxes is not None and work.flip is not None:
            boxes = work.boxes.cpu()
            start, end = boxes[:, :2], boxes[:, :2] + boxes[:, 2:]
            region = {
                "roi_start": fn.external_source(lambda: list(start.numpy())),
                "roi_end": fn.external_source(lambda: list(end.numpy())),
            }
            mirror = fn.external_source(lambda: list(work.flip.int().cpu().numpy()))
        resized = fn.resize(
            images, size=(SIZE, SIZE), interp_type=types.INTERP_LINEAR, antialias=True, **region
        )
        return fn.crop_mirror_normalize(
            resized,
            mirror=mirror,
            dtype=types.FLOAT,
            output_layout="CHW",
            mean=[255 * value for value in MEAN],
            std=[255 * value for value in STD],
        )

    built = pipeline()
    built.build()
    if on_gpu:
        peers["DALI on the GPU"] = lambda: torch.from_dlpack(built.run()[0].as_tensor())
    else:
        peers["DALI on the CPU"] = lambda: torch.from_numpy(np.asarray(built.run()[0].as_tensor()))


def onnx_session(onnxruntime: object, work: Work) -> Callable[[], Tensor]:
    """Return a graph of Cast, Mul, Add and ONNX's own Resize."""
    from onnx import TensorProto, helper, numpy_helper

    gain = (1 / (255 * np.array(STD))).astype(np.float32).reshape(3, 1, 1)
    bias = (-np.array(MEAN) / np.array(STD)).astype(np.float32).reshape(3, 1, 1)
    shape = np.array([len(work.images), 3, SIZE, SIZE])
    constants = {"gain": gain, "bias": bias, "shape": shape}
    graph = helper.make_graph(
        [
            helper.make_node("Cast", ["images"], ["floats"], to=TensorProto.FLOAT),
            helper.make_node("Mul", ["floats", "gain"], ["scaled"]),
            helper.make_node("Add", ["scaled", "bias"], ["small"]),
            helper.make_node(
                "Resize", ["small", "", "", "shape"], ["result"], mode="linear", antialias=1
            ),
        ],
        "resize",
        [helper.make_tensor_value_info("images", TensorProto.UINT8, list(work.images.shape))],
        [helper.make_tensor_value_info("result", TensorProto.FLOAT, shape.tolist())],
        [numpy_helper.from_array(value, name) for name, value in constants.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    session = onnxruntime.InferenceSession(
        model.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    feed = {"images": work.images.contiguous().numpy()}
    return lambda: torch.from_numpy(session.run(None, feed)[0])
