"""Files that were changed, cut off or written by somebody else are refused by name."""

import hashlib
import pickle
import random
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from lowres_vision.augment import BatchTransform
from lowres_vision.export import Predictor, TrainedModel
from lowres_vision.export._sealed import read_sealed, write_sealed
from lowres_vision.losses import CrossEntropyLoss
from lowres_vision.models import LowResClassifier


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("written") / "p.safetensors"
    model = LowResClassifier("test_vit", 3, image_size=32)
    read = BatchTransform(32, mean=(0.5,) * 3, std=(0.5,) * 3)
    member = TrainedModel(model, CrossEntropyLoss(), read)
    Predictor([member], classes=("a", "b", "c"), weights=[0.5]).save(path)
    return path


def test_what_was_written_is_read(tmp_path: Path) -> None:
    tensors = {"a": torch.arange(6.0).view(2, 3), "b": torch.tensor(True), "c": torch.zeros(0)}
    record = {"text": '"sha256": "0" \\ 새', "number": 0.1, "zeros": "0" * 64}
    write_sealed(tmp_path / "s", record, tensors)
    found, read = read_sealed(tmp_path / "s")
    assert found.items() >= record.items()
    assert read.keys() == tensors.keys()
    assert all(torch.equal(read[name], value) for name, value in tensors.items())
    first = (tmp_path / "s").read_bytes()
    write_sealed(tmp_path / "s", record, tensors)
    assert (tmp_path / "s").read_bytes() == first


def refused(path: Path, data: bytes) -> str:
    path.write_bytes(data)
    with pytest.raises(ValueError, match=r"changed\.safetensors") as caught:
        Predictor.load(path)
    return str(caught.value)


def test_any_changed_byte_is_noticed(written: Path, tmp_path: Path) -> None:
    data = written.read_bytes()
    header = 8 + int.from_bytes(data[:8], "little")
    chosen = random.Random(0)
    # Every byte of length and seal, many of the header, its padding included, many of the weights.
    places = {*range(120), *chosen.sample(range(header), 250), header - 1, len(data) - 1}
    places |= set(chosen.sample(range(header, len(data)), 250))
    for place in sorted(places):
        changed = bytearray(data)
        changed[place] ^= 1 << chosen.randrange(8)
        message = refused(tmp_path / "changed.safetensors", bytes(changed))
        assert "again" in message


def test_any_cut_is_noticed(written: Path, tmp_path: Path) -> None:
    data = written.read_bytes()
    lengths = [0, 1, 7, 8, 9, 100, *random.Random(1).sample(range(len(data)), 40), len(data) - 1]
    for length in lengths:
        assert "again" in refused(tmp_path / "changed.safetensors", data[:length])
    assert "again" in refused(tmp_path / "changed.safetensors", data + b" ")


def test_files_of_others_are_named(written: Path, tmp_path: Path) -> None:
    path = tmp_path / "changed.safetensors"
    save_file({"weight": torch.zeros(3)}, path)
    others = [path.read_bytes(), b"<html>404</html>", pickle.dumps({"weight": 1})]
    others.append(b"PK\x03\x04" + bytes(100))
    for data in others:
        assert "no predictor that `Predictor.save` wrote" in refused(path, data)
    with pytest.raises(FileNotFoundError, match="gone is not a file; give one that"):
        Predictor.load(tmp_path / "gone")
    with pytest.raises(FileNotFoundError, match="is not a file"):
        Predictor.load(tmp_path)


def rewritten(written: Path, path: Path, change: object) -> None:
    """Write the file with another record and a checksum that fits it."""
    record, tensors = read_sealed(written)
    del record["sha256"], record["format"]
    change(record, tensors)  # type: ignore[operator]
    write_sealed(path, record, tensors)


def model_of(record: dict) -> dict:
    parts = record["members"][0]["model"]["arguments"]["parts"]["mapping"]
    return parts["1"]["arguments"]


def set_model(**arguments: object) -> object:
    return lambda record, tensors: model_of(record).update(arguments)


def set_backbone(name: object) -> object:
    return set_model(backbone=name)


def set_timm(**arguments: object) -> object:
    return lambda record, tensors: model_of(record)["timm_args"].update(mapping=arguments)


def set_part(name: str, **arguments: object) -> object:
    part = {"part": name, "arguments": arguments}
    return lambda record, tensors: model_of(record).update(resizer=part)


HOSTILE = {
    "a part of python": set_part("os.system", command="touch pwned"),
    "a part of torch that is not listed": set_part("torch.nn.Bilinear", in1_features=1),
    "a part that is no text": set_part(["os.system"]),  # type: ignore[arg-type]
    "arguments that it has not": set_part("Resize", size=8, evil=1),
    "arguments out of range": set_part("LearnableResizer", size=0),
    "a type that is none": set_part("Resize", size=8, dtype={"dtype": "load"}),
    "a backbone to fetch": set_backbone("hf-hub:somebody/something"),
    "a backbone in a folder": set_backbone("local-dir:/tmp/somewhere"),
    "a backbone that is no text": set_backbone(7),
    "another backbone": set_backbone("test_resnet"),
    "another width": set_timm(embed_dim=32),
    "no members": lambda r, t: r.update(members=[]),
    "members of another kind": lambda r, t: r.update(members=7),
    "no classes": lambda r, t: r.pop("classes"),
    "no versions": lambda r, t: r.pop("versions"),
    "another vote": lambda r, t: r.update(vote="loud"),
    "weights that do not fit": lambda r, t: r.update(weights=[1, 2]),
    "a loss that is none": lambda r, t: r["members"][0].update(
        loss={"part": "torch.nn.Identity", "arguments": {}}
    ),
    "a tensor too few": lambda r, t: t.pop("vote.models.0.1.head.bias"),
    "a tensor too many": lambda r, t: t.update(more=torch.zeros(1)),
    "a tensor of another shape": lambda r, t: t.update(
        {"vote.models.0.1.head.bias": torch.zeros(4)}
    ),
    "no answers": lambda r, t: t.pop("answers"),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_a_record_of_somebody_elses_is_refused(
    name: str, written: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "changed.safetensors"
    rewritten(written, path, HOSTILE[name])
    with pytest.raises(ValueError, match=r"changed\.safetensors asks for a predictor that cannot"):
        Predictor.load(path)
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("place", [set_model, set_timm], ids=["model", "timm"])
@pytest.mark.parametrize(
    "arguments",
    [{"pretrained": True}, {"checkpoint_path": "x"}, {"pretrained_cfg_overlay": {"mapping": {}}}],
    ids=lambda arguments: next(iter(arguments)),
)
def test_a_record_brings_no_weights_from_elsewhere(
    place: Any, arguments: dict[str, object], written: Path, tmp_path: Path
) -> None:
    path = tmp_path / "changed.safetensors"
    rewritten(written, path, place(**arguments))
    with pytest.raises(ValueError, match=f"gives timm .'{next(iter(arguments))}'.*no predictor"):
        Predictor.load(path)


LARGE = {  # each would be made, in gigabytes or in hours, before its shapes were compared
    "wide layers": set_timm(embed_dim=2**14),
    "wider than can be": set_timm(embed_dim=3 * 2**40),
    "many layers": set_timm(depth=10**9),
    "wide convolutions": set_part("LearnableResizer", size=8, channels=2**14),
    "many blocks": set_part("LearnableResizer", size=8, channels=1, blocks=10**9),
    "position indices": set_model(
        backbone="beit_base_patch16_224", image_size=[2**13, 2**13], timm_args={"mapping": {}}
    ),
}


@pytest.mark.parametrize("name", LARGE)
def test_a_record_takes_no_more_memory_than_its_file_explains(
    name: str, written: Path, tmp_path: Path
) -> None:
    path = tmp_path / "changed.safetensors"
    rewritten(written, path, LARGE[name])
    with pytest.raises(ValueError, match=r"cannot be made here \(MemoryError: .* 1\.0 GiB, "):
        Predictor.load(path)


def test_a_first_answer_takes_no_more_memory_either(written: Path, tmp_path: Path) -> None:
    def change(record: dict[str, Any], tensors: dict[str, torch.Tensor]) -> None:
        record["versions"]["timm"] = "0.0.1"
        parts = record["members"][0]["model"]["arguments"]["parts"]["mapping"]
        parts["0"]["arguments"]["eval_size"] = [10**5, 10**5]

    path = tmp_path / "changed.safetensors"
    rewritten(written, path, change)
    with pytest.raises(ValueError, match=r"cannot be made here \(MemoryError: .* 1\.0 GiB, "):
        Predictor.load(path)


def test_a_later_format_is_named(written: Path, tmp_path: Path) -> None:
    path = tmp_path / "later.safetensors"
    rewritten(written, path, lambda record, tensors: record.update(format=2))
    with pytest.raises(ValueError, match=r"has format 2, this version .* reads 1; install"):
        Predictor.load(path)


@pytest.mark.parametrize(
    "record",
    [b"", b'\\"}', rb"\", \"format\": 1}", rb"\", \"format\": 1, \"nest\": " + 10**5 * b"["],
    ids=["nothing", "no format", "no tensors", "a nest"],
)
def test_a_fitting_checksum_alone_is_not_enough(record: bytes, tmp_path: Path) -> None:
    header = rb'{"__metadata__": {"lowres_vision": "{\"sha256\": \"' + b"0" * 64 + record
    header += b'"}, "a": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}}'
    data = len(header).to_bytes(8, "little") + header
    digest = hashlib.sha256(data).hexdigest().encode()
    path = tmp_path / "changed.safetensors"
    assert "cannot be read" in refused(path, data.replace(b"0" * 64, digest))


def test_a_killed_save_leaves_the_file_that_was_there(
    written: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "p.safetensors"
    shutil.copy(written, path)

    def no_space(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", no_space)
    with pytest.raises(OSError, match="No space"):
        Predictor.load(path).save(path)
    assert list(tmp_path.iterdir()) == [path]
    assert Predictor.load(path).classes == ("a", "b", "c")
