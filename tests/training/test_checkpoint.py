import contextlib
import errno
import hashlib
import io
import os
import random
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from lowres_vision.training._checkpoint import (
    PlainCheckpoints,
    read_checkpoint,
    write_checkpoint,
)
from lowres_vision.training._writer import Writer


def state() -> dict[str, Any]:
    """Return what a training state looks like: an optimiser's, with counters and names."""
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), torch.nn.BatchNorm2d(4))
    model = model.to(memory_format=torch.channels_last)
    optimizer = torch.optim.AdamW(model.parameters())
    model(torch.rand(2, 3, 5, 5)).square().sum().backward()
    optimizer.step()
    return {
        "state_dict": model.state_dict(),
        "optimizer": optimizer.state_dict(),
        "half": torch.rand(3, dtype=torch.bfloat16),
        "nothing": torch.empty(0, 2),
        "best": float("-inf"),
        "kept": [(0.1 + 0.2, 3), (1e-300, 0)],
        "wörds": ["a", None, True, -(2**70)],
    }


def assert_equal(found: Any, expected: Any) -> None:
    if isinstance(expected, torch.Tensor):
        assert found.dtype == expected.dtype
        assert found.stride() == expected.stride()
        assert torch.equal(found, expected)
    elif isinstance(expected, dict):
        assert list(found) == list(expected)
        for key in expected:
            assert_equal(found[key], expected[key])
    elif isinstance(expected, list | tuple):
        assert type(found) is type(expected)
        for one, other in zip(found, expected, strict=True):
            assert_equal(one, other)
    else:
        assert type(found) is type(expected)
        assert found == expected


def test_a_state_comes_back_bit_for_bit_in_its_memory_format(tmp_path: Path) -> None:
    write_checkpoint(tmp_path / "c", state())
    assert_equal(read_checkpoint(tmp_path / "c"), state())
    assert [path.name for path in tmp_path.iterdir()] == ["c"]


plain = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: (
        st.lists(inner)
        | st.lists(inner).map(tuple)
        | st.dictionaries(st.text() | st.integers(), inner)
    ),
    max_leaves=20,
)


@given(value=plain)
def test_plain_values_come_back_as_they_are(
    value: Any, tmp_path_factory: pytest.TempPathFactory
) -> None:
    path = tmp_path_factory.getbasetemp() / "plain"
    write_checkpoint(path, value)
    assert_equal(read_checkpoint(path), value)


def test_tied_weights_are_kept_twice(tmp_path: Path) -> None:
    tied = torch.rand(3)
    write_checkpoint(tmp_path / "c", {"a": tied, "b": tied[:2]})
    assert_equal(read_checkpoint(tmp_path / "c"), {"a": tied, "b": tied[:2].clone()})


@pytest.mark.parametrize("value", [print, {1, 2}, object(), torch.float32, b"bytes"])
def test_what_is_not_plain_is_refused_by_place(value: object, tmp_path: Path) -> None:
    with pytest.raises(TypeError, match=r"state\['callbacks'\]\[1\] is a .*; a checkpoint holds"):
        write_checkpoint(tmp_path / "c", {"callbacks": [0, value]})
    assert not list(tmp_path.iterdir())


class Bomb:
    """What a pickle can do: on loading, this runs a command."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return Path.touch, (self.path,)


def mutants(data: bytes, count: int, bomb: bytes) -> Any:
    """Yield ``count`` damaged or hostile versions of ``data``."""
    rng = random.Random(0)
    for _ in range(count):
        place, length = rng.randrange(len(data)), rng.randint(1, 64)
        noise = rng.randbytes(length)
        yield rng.choice(
            [
                data[:place],
                data[:place] + bytes([data[place] ^ (1 << rng.randrange(8))]) + data[place + 1 :],
                data[:place] + noise + data[place:],
                data[:place] + data[place + length :],
                data[:place] + b"\xff" * 8 + data[place + 8 :] + b"\xff",
                bomb,
                data[:place] + bomb,
                data[:27] + bomb,
                data[:27] + hashlib.sha256(bomb).hexdigest().encode() + b"\n" + bomb,
            ]
        )


@pytest.mark.parametrize("count", [100, pytest.param(1000, marks=pytest.mark.slow)])
def test_no_mutant_is_accepted_or_runs_code(count: int, tmp_path: Path) -> None:
    path, target = tmp_path / "c", tmp_path / "pwned"
    bomb = io.BytesIO()
    torch.save(Bomb(target), bomb)
    write_checkpoint(path, state())
    data = path.read_bytes()
    for mutant in mutants(data, count, bomb.getvalue()):
        assert mutant != data
        path.write_bytes(mutant)
        with pytest.raises(ValueError, match=r"delete it to train|holds no training state"):
            read_checkpoint(path)
    assert not target.exists()
    torch.load(io.BytesIO(bomb.getvalue()), weights_only=False)
    assert target.exists(), "the bomb is no bomb"


@pytest.mark.parametrize("count", [100, pytest.param(1000, marks=pytest.mark.slow)])
def test_a_forged_digest_opens_a_file_that_can_only_be_read(count: int, tmp_path: Path) -> None:
    """Whoever can write the file can sign it: then it is what it says, or an error, never code."""
    path, target = tmp_path / "c", tmp_path / "pwned"
    bomb = io.BytesIO()
    torch.save(Bomb(target), bomb)
    write_checkpoint(path, state())
    archive = path.read_bytes()[92:]
    for mutant in mutants(archive, count, bomb.getvalue()):
        digest = hashlib.sha256(mutant).hexdigest().encode()
        path.write_bytes(b"lowres-vision checkpoint 1\n" + digest + b"\n" + mutant)
        with contextlib.suppress(ValueError):
            read_checkpoint(path)
    assert not target.exists()


def test_a_full_disk_leaves_the_last_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_checkpoint(tmp_path / "c", {"step": 1})

    def full(handle: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        write_checkpoint(tmp_path / "c", {"step": 2})
    assert read_checkpoint(tmp_path / "c") == {"step": 1}
    assert [path.name for path in tmp_path.iterdir()] == ["c"]


def test_lightning_reads_and_writes_through_it(tmp_path: Path) -> None:
    writer = Writer()
    checkpoints = PlainCheckpoints(writer)
    weight = torch.zeros(3)
    checkpoints.save_checkpoint({"epoch": 3, "weight": weight}, tmp_path / "c")
    weight += 1  # training goes on, and the file holds what was
    writer.wait()
    found = checkpoints.load_checkpoint(tmp_path / "c")
    assert (found["epoch"], found["weight"].tolist()) == (3, [0, 0, 0])
    checkpoints.remove_checkpoint(tmp_path / "c")
    checkpoints.remove_checkpoint(tmp_path / "c")
    with pytest.raises(FileNotFoundError):
        read_checkpoint(tmp_path / "c")
