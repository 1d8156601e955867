"""Time augmented batches: 64 px images to 224 px, random crop, flip, normalised float32.

    python benchmarks/bench_loader.py --batch-sizes 64 256 --output loader.json
    python benchmarks/bench_loader.py --device cuda --batch-sizes 256 --output loader_cuda.json

Every candidate gets the images already decoded, in its own most convenient form: uint8 memory, PIL
images in memory for timm, raw pixels in tar files for webdataset. The crop is torchvision's
RandomResizedCrop with scale (0.08, 1), bilinear; half of the images are flipped.

``timm`` is ``timm.data.create_loader`` with crop, flip and normalisation and without colour
jitter, with its prefetcher and without; ``torchvision`` is transforms v2 on uint8 tensors, one by
one, ``webdataset`` the same on PIL images; each with 0, 1, 2 and 4 workers, of which the best in a
first turn goes on to the rounds. ``dali`` is nvidia-dali on the CPU. Peers that are not installed
are left out.

All candidates run in one process, in an order drawn anew in each round. A turn starts the
loader's workers, takes as many batches as they read ahead and two more, times a number of
batches, and stops the workers, so that none is at work in another's turn or before the clock
starts. Reported are quartiles of images per second, and the median over rounds of ours, resident,
over the candidate: above 1, ours is faster.

With ``--device cuda`` the images of ours, resident, lie on the GPU and are cropped there, ours from
the cache are cropped there, and all others' batches are sent there when they are finished.
"""

import argparse
import itertools
import random
import statistics
import tempfile
import time
import warnings
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from _results import installed, write_result
from PIL import Image
from timm.data import create_loader
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, RandomSampler, default_collate
from torchvision.transforms import v2

from lowres_vision.augment import BatchTransform
from lowres_vision.data import Manifest, MultiResolutionDataset, ResidentLoader, collate
from lowres_vision.ops import resize_implementation

SIZE = 224
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
WORKERS = (0, 1, 2, 4)


class Candidate(NamedTuple):
    """How to start giving batches, and how many are then read ahead of those that are asked for."""

    start: Callable[[], Iterator[Tensor]]
    ahead: int = 0


class Decoded(Dataset[tuple[Any, int]]):
    """Decoded images over and over, so that no epoch ends within a turn."""

    def __init__(self, images: list[Any], labels: list[int], transform: Any = None) -> None:
        self.images, self.labels, self.transform = images, labels, transform

    def __len__(self) -> int:
        """Return many times the number of images."""
        return 16 * len(self.images)

    def __getitem__(self, index: int) -> tuple[Any, int]:
        """Return an image, transformed if there is a transform, and its label."""
        index %= len(self.images)
        image = self.images[index]
        return (image if self.transform is None else self.transform(image)), self.labels[index]


def first_fields(loader: Iterable[Any], workers: int) -> Candidate:
    """Return a candidate that gives the images of a loader's batches."""
    return Candidate(lambda: (batch[0] for batch in loader), 2 * workers)


def ours(dataset: MultiResolutionDataset, batch: int, target: str) -> dict[str, Candidate]:
    """Return our loaders: images in memory, and from the cache through a DataLoader."""
    transform = BatchTransform(SIZE, mean=MEAN, std=STD).train()
    resident = ResidentLoader(dataset, batch_size=batch, shuffle=True, device=target)
    count = len(dataset) // batch * batch

    def epochs() -> Iterator[Tensor]:
        for epoch in itertools.count():
            resident.set_epoch(epoch)
            for images, *_ in resident:
                yield transform(images)

    def loader(workers: int) -> Candidate:
        sampler = RandomSampler(dataset, replacement=True, num_samples=16 * count)
        batches = DataLoader(
            dataset, batch, sampler=sampler, num_workers=workers, collate_fn=collate
        )
        return Candidate(lambda: (transform(x.to(target)) for x, *_ in batches), 2 * workers)

    cached = {f"ours, cache, {workers} workers": loader(workers) for workers in (0, 2)}
    return {"ours, resident": Candidate(epochs), **cached}


def timm_style(images: list[Image.Image], labels: list[int], batch: int) -> dict[str, Candidate]:
    """Return timm's loader for each number of workers, with its prefetcher and without."""
    found = {}
    for workers, prefetcher in itertools.product(WORKERS, (False, True)):
        loader = create_loader(
            Decoded(images, labels),
            (3, SIZE, SIZE),
            batch,
            is_training=True,
            use_prefetcher=prefetcher,
            scale=(0.08, 1.0),
            hflip=0.5,
            color_jitter=None,
            interpolation="bilinear",
            mean=MEAN,
            std=STD,
            num_workers=workers,
            pin_memory=False,
            device=torch.device("cpu"),
            persistent_workers=False,
        )
        kind = "prefetcher, " if prefetcher else ""
        # The prefetcher holds one batch back.
        name = f"timm, {kind}{workers} workers"
        found[name] = first_fields(loader, workers)._replace(ahead=2 * workers + prefetcher)
    return found


def torchvision_style(images: Tensor, labels: list[int], batch: int) -> dict[str, Candidate]:
    """Return torchvision's v2 transforms on tensors, for each number of workers."""
    transform = v2.Compose(
        [
            v2.RandomResizedCrop(SIZE, antialias=True),
            v2.RandomHorizontalFlip(),
            v2.ToDtype(torch.float32, scale=True),
            v2.Normalize(MEAN, STD),
        ]
    )
    dataset = Decoded(list(images), labels, transform)
    return {
        f"torchvision, {workers} workers": first_fields(
            DataLoader(dataset, batch, shuffle=True, num_workers=workers), workers
        )
        for workers in WORKERS
    }


def webdataset_style(
    images: list[Image.Image], labels: list[int], batch: int, folder: Path
) -> dict[str, Candidate]:
    """Return webdataset over raw pixels, with torchvision's v2 transforms on PIL images."""
    import webdataset

    transform = v2.Compose(
        [
            v2.RandomResizedCrop(SIZE),
            v2.RandomHorizontalFlip(),
            v2.PILToTensor(),
            v2.ToDtype(torch.float32, scale=True),
            v2.Normalize(MEAN, STD),
        ]
    )
    shards = folder / f"batch-{batch}-%03d.tar"
    with webdataset.ShardWriter(str(shards), maxcount=len(images) // 8, verbose=0) as writer:
        for number, (image, label) in enumerate(zip(images, labels, strict=True)):
            pixels = np.asarray(image).tobytes()
            writer.write({"__key__": f"{number:06}", "rgb": pixels, "cls": str(label).encode()})

    def read(sample: dict[str, bytes]) -> tuple[Tensor, int]:
        image = Image.frombuffer("RGB", images[0].size, sample["rgb"], "raw", "RGB", 0, 1)
        return transform(image), int(sample["cls"])

    def loader(workers: int) -> Iterable[Any]:
        urls = [str(path) for path in sorted(folder.glob(f"batch-{batch}-*.tar"))]
        source = webdataset.WebDataset(urls, shardshuffle=8).repeat().shuffle(1000)
        batches = source.map(read).batched(batch, collation_fn=default_collate, partial=False)
        return webdataset.WebLoader(batches, batch_size=None, num_workers=workers)

    return {
        f"webdataset, {workers} workers": first_fields(loader(workers), workers)
        for workers in WORKERS
    }


def dali_style(images: Tensor, batch: int, threads: int) -> dict[str, Candidate]:
    """Return a DALI pipeline on the CPU, fed from memory."""
    from nvidia.dali import fn, pipeline_def, types

    pixels = images.permute(0, 2, 3, 1).contiguous().numpy()  # (N, H, W, C)
    draws = np.random.default_rng(0)

    @pipeline_def(batch_size=batch, num_threads=threads, device_id=None, prefetch_queue_depth=2)
    def pipeline() -> Any:
        image = fn.external_source(
            source=lambda: pixels[draws.integers(0, len(pixels), batch)],
            layout="HWC",
            dtype=types.UINT8,
            batch=True,
        )
        image = fn.random_resized_crop(
            image,
            size=SIZE,
            random_area=(0.08, 1.0),
            random_aspect_ratio=(3 / 4, 4 / 3),
            interp_type=types.INTERP_LINEAR,
        )
        return fn.crop_mirror_normalize(
            image,
            dtype=types.FLOAT,
            output_layout="CHW",
            mean=[255 * value for value in MEAN],
            std=[255 * value for value in STD],
            mirror=fn.random.coin_flip(),
        )

    built = pipeline()
    built.build()

    def batches() -> Iterator[Tensor]:
        while True:
            (output,) = built.run()
            yield torch.from_dlpack(output.as_tensor())  # valid until the next one is asked for

    return {"dali": Candidate(batches, ahead=3)}


def check(name: str, images: Tensor, batch: int) -> None:
    """Raise unless a batch is what was asked for, in the range that normalised images have."""
    assert images.shape == (batch, 3, SIZE, SIZE), (name, images.shape)
    assert images.dtype == torch.float32, (name, images.dtype)
    lowest = min(-mean / std for mean, std in zip(MEAN, STD, strict=True))
    highest = max((1 - mean) / std for mean, std in zip(MEAN, STD, strict=True))
    assert lowest - 1e-3 <= images.min() < -1 < 1 < images.max() <= highest + 1e-3, name


def moved(candidate: Candidate, target: str) -> Candidate:
    """Return a candidate whose batches end on the device."""
    return candidate._replace(start=lambda: (batch.to(target) for batch in candidate.start()))


def rate(candidate: Candidate, seconds: float) -> float:
    """Return images per second of one turn."""
    batches = candidate.start()
    for _ in range(candidate.ahead + 1):
        next(batches)
    wait = torch.cuda.synchronize if next(batches).is_cuda else lambda: None
    wait()
    images, start, now = 0, time.perf_counter(), 0.0
    # As long as what was read ahead, once more: what workers did before the clock then counts
    # no more than what they leave undone when it stops.
    for turn in itertools.count():
        images += len(next(batches))
        wait()
        now = time.perf_counter()
        if now - start >= seconds and turn >= candidate.ahead:
            break
    return images / (now - start)


def main() -> None:
    """Run the benchmark and write the result."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--batch-sizes", type=int, nargs="+", default=[64, 256])
    parser.add_argument("--images", type=int, default=8192)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--seconds", type=float, default=0.5, help="least length of a turn")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", type=Path)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    torch.manual_seed(arguments.seed)
    warnings.filterwarnings("ignore", message="This DataLoader will create")

    results = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        manifest = draw_images(folder, arguments.images, arguments.seed)
        dataset = MultiResolutionDataset(manifest, cache=folder / "cache")
        labels = manifest.labels.tolist()
        pixels = torch.stack([dataset[row].image for row in range(len(dataset))])  # type: ignore[union-attr]
        pictures = [Image.fromarray(image.permute(1, 2, 0).numpy()) for image in pixels]
        for batch in arguments.batch_sizes:
            own = ours(dataset, batch, arguments.device)
            families = [{name: candidate} for name, candidate in own.items()]
            families.append(timm_style(pictures, labels, batch))
            families.append(torchvision_style(pixels, labels, batch))
            if installed("webdataset"):
                families.append(webdataset_style(pictures, labels, batch, folder))
            if installed("nvidia-dali-cuda120"):
                families.append(dali_style(pixels, batch, arguments.threads))
            there = [
                {name: moved(candidate, arguments.device) for name, candidate in family.items()}
                for family in families
            ]
            results.append(time_all(there, batch, arguments))
    write_result(
        arguments.output,
        __file__,
        columns="rate: quartiles of images/s; ratio: median over rounds of ours, resident / it; "
        "first_turns: images/s in the one turn that chose the number of workers",
        kernel=resize_implementation(),
        threads=arguments.threads,
        rounds=arguments.rounds,
        images=arguments.images,
        seed=arguments.seed,
        kind=arguments.device,
        packages=("torchvision", "timm", "pillow", "webdataset", "nvidia-dali-cuda120"),
        results=results,
    )


def draw_images(folder: Path, count: int, seed: int) -> Manifest:
    """Write smooth random images of 64 x 64 pixels and their CSV."""
    draws = np.random.default_rng(seed)
    lines = ["img_path,label"]
    for number in range(count):
        coarse = draws.integers(0, 256, (4, 4, 3), dtype=np.uint8)
        Image.fromarray(coarse).resize((64, 64)).save(folder / f"{number}.bmp")
        lines.append(f"{number}.bmp,{number % 25}")
    (folder / "train.csv").write_text("\n".join(lines))
    return Manifest.read_csv(folder / "train.csv")


def time_all(
    families: list[dict[str, Candidate]], batch: int, arguments: argparse.Namespace
) -> dict[str, Any]:
    """Time the best of each family in rounds, print a table and return it."""
    first_turns, chosen = {}, {}
    for family in families:
        rates = {name: rate(it, arguments.seconds) for name, it in family.items()}
        first_turns.update({name: round(value) for name, value in rates.items()})
        best = max(rates, key=lambda name: rates[name])
        chosen[best] = family[best]
        check(best, next(family[best].start()), batch)
    turns: dict[str, list[float]] = {name: [] for name in chosen}
    order = random.Random(arguments.seed)
    for _ in range(arguments.rounds):
        for name in order.sample(list(chosen), len(chosen)):
            turns[name].append(rate(chosen[name], arguments.seconds))
    base = next(iter(chosen))
    print(f"{f'batch {batch}':32}{'images/s':>26}{base + ' / it':>22}")
    rows = []
    for name, found in turns.items():
        ratio = statistics.median(x / y for x, y in zip(turns[base], found, strict=True))
        quartiles = [round(value) for value in statistics.quantiles(found, n=4)]
        rows.append({"candidate": name, "rate": quartiles, "ratio": round(ratio, 2)})
        words = " / ".join(f"{value:,}" for value in quartiles)
        print(f"{name:32}{words:>26}{ratio:22.2f}", flush=True)
    return {"batch": batch, "first_turns": first_turns, "candidates": rows}


if __name__ == "__main__":
    main()
