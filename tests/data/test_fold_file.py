import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lowres_vision.data import DataError, Manifest, StratifiedFolds


@pytest.fixture
def folder(toy: Path, tmp_path: Path) -> Path:
    """A copy of the toy pairs with ids, series and one Korean label, to be written."""
    shutil.copytree(toy, tmp_path, dirs_exist_ok=True)
    header, *lines = (tmp_path / "train.csv").read_text().splitlines()
    rows = [
        f"{line.replace('Azure Tit', '박새')},R{row},{row // 2}" for row, line in enumerate(lines)
    ]
    write(tmp_path, [f"{header},id,series", *rows])
    return tmp_path


def write(folder: Path, lines: list[str]) -> None:
    (folder / "train.csv").write_text("\n".join(lines) + "\n", encoding="utf-8")


def lines_of(folder: Path) -> list[str]:
    return (folder / "train.csv").read_text(encoding="utf-8").splitlines()


def read(folder: Path, **columns: Any) -> Manifest:
    return Manifest.read_csv(folder / "train.csv", **columns)


def saved(folder: Path, **columns: Any) -> StratifiedFolds:
    StratifiedFolds(4, seed=3).save(folder / "folds.json", read(folder, **columns))
    return StratifiedFolds.load(folder / "folds.json")


def told(folds: StratifiedFolds, manifest: Manifest, **arguments: Any) -> list[str]:
    with pytest.raises(DataError, match=r"train\.csv against .*folds\.json") as error:
        folds.verify(manifest, **arguments)
    assert all(fault.remedy for fault in error.value.faults)
    with pytest.raises(DataError):
        folds.assign(manifest, **arguments)
    return [str(fault).split("; ")[0] for fault in error.value.faults]


def test_what_is_loaded_is_what_was_saved(folder: Path) -> None:
    manifest = read(folder, group="series")
    dealt = StratifiedFolds(4, seed=3, shuffle=True).save(folder / "folds.json", manifest)
    assert np.array_equal(dealt, StratifiedFolds(4, seed=3).assign(manifest))
    folds = StratifiedFolds.load(folder / "folds.json")
    assert (folds.n_splits, folds.seed, folds.shuffle) == (4, 3, True)
    folds.verify(manifest)
    assert np.array_equal(folds.assign(manifest), dealt)
    assert np.array_equal(folds.save(folder / "copy.json", manifest), dealt)
    assert (folder / "copy.json").read_bytes() == (folder / "folds.json").read_bytes()


def test_the_same_seed_writes_the_same_bytes(folder: Path) -> None:
    paths = [folder / f"{number}.json" for number in range(3)]
    for path, seed in zip(paths, (0, 0, 1), strict=True):
        StratifiedFolds(3, seed=seed).save(path, read(folder))
    first, again, other = (path.read_bytes() for path in paths)
    assert first == again != other
    assert "박새".encode() in first
    assert len(first.splitlines()) == 36 + 17
    assert not list(folder.glob(".*"))


def test_rows_may_move_and_files_too(folder: Path) -> None:
    folds = saved(folder)
    before = folds.assign(read(folder))
    header, *lines = lines_of(folder)
    order = np.random.default_rng(0).permutation(36)
    (folder / "train").rename(folder / "moved")
    write(folder, [header, *(lines[row].replace("./train/", "moved/") for row in order)])
    assert np.array_equal(folds.assign(read(folder)), before[order])


def test_all_changes_are_named_at_once(folder: Path) -> None:
    folds = saved(folder, group="series")
    header, *lines = lines_of(folder)
    label = read(folder).classes[read(folder).labels[2]]
    lines[2] = lines[2].replace(label, "Wren")
    lines[4] = lines[4].removesuffix(",2") + ",99"
    lines[6] = lines[6].replace(",R6,", ",X6,")
    write(folder, [header, *lines[:-1]])
    (folder / "train/TRAIN_00008.png").write_bytes(b"another picture")
    (folder / "upscale_train/TRAIN_00009.jpg").write_bytes(b"yet another")
    assert told(folds, read(folder, group="series")) == [
        f"row 3: label was {label!r}, is 'Wren'",
        "row 5: group was '2', is '99'",
        "row 7: id 'X6' is new",
        "row 9, train/TRAIN_00008.png: low-resolution file has changed",
        "row 10, upscale_train/TRAIN_00009.jpg: high-resolution file has changed",
        "id 'R6' is gone",
        "id 'R35' is gone",
    ]


def test_columns_that_come_and_go_are_changes(folder: Path) -> None:
    grouped, plain = saved(folder, group="series"), saved(folder)
    assert told(grouped, read(folder))[0] == "row 1: group was '0', is None"
    assert told(plain, read(folder, group="series"))[0] == "row 1: group was None, is '0'"
    write(
        folder, [line.split(",", 2)[0] + "," + line.split(",", 2)[2] for line in lines_of(folder)]
    )
    assert told(plain, read(folder)) == [
        f"row {row}: high-resolution file is gone" for row in range(1, 37)
    ]
    alone = saved(folder)
    write(
        folder,
        [line.replace("img_path", "img_path,upscale_img_path") for line in lines_of(folder)[:1]]
        + [f"{line.split(',')[0]},{line}" for line in lines_of(folder)[1:]],
    )
    assert "row 1, train/TRAIN_00000.png: high-resolution file is new" in told(alone, read(folder))


def test_a_missing_file_is_named(folder: Path) -> None:
    folds, manifest = saved(folder), read(folder)
    (folder / "train/TRAIN_00007.png").unlink()
    with pytest.raises(DataError, match=r"row 8, train/TRAIN_00007\.png: cannot be read \(No such"):
        folds.verify(manifest)


def test_groups_found_later_are_checked(folder: Path) -> None:
    folds, manifest = saved(folder), read(folder)
    fold_of = folds.assign(manifest)
    apart = np.flatnonzero(fold_of != fold_of[0])[0]
    groups = np.arange(36)
    groups[apart] = 0
    assert told(folds, manifest, groups=groups) == [
        f"rows 1, {apart + 1} are of one group and in folds "
        f"{', '.join(map(str, sorted((fold_of[0], fold_of[apart]))))}"
    ]
    folds.verify(manifest, groups=fold_of)
    with pytest.raises(ValueError, match="`groups` must have one entry per row: 1 for 36"):
        StratifiedFolds(3).assign(manifest, groups=[0])
    with pytest.raises(ValueError, match="`groups` must have one entry per row: 3 for 36"):
        folds.verify(manifest, groups=[0, 1, 2])


def test_a_path_that_stands_twice_keeps_both_rows(folder: Path) -> None:
    header, *lines = lines_of(folder)
    write(folder, [header.replace(",id,", ",number,"), *lines, lines[0]])
    manifest = read(folder)
    dealt = StratifiedFolds(4).save(folder / "folds.json", manifest)
    assert dealt[0] == dealt[36]
    assert np.array_equal(StratifiedFolds.load(folder / "folds.json").assign(manifest), dealt)


def test_fresh_folds_have_nothing_to_verify(folder: Path) -> None:
    with pytest.raises(ValueError, match=r"only folds from `StratifiedFolds\.load` can be"):
        StratifiedFolds().verify(read(folder))
    with pytest.raises(DataError, match="unlabelled"):
        StratifiedFolds().save(folder / "folds.json", Manifest.read_csv(folder / "test.csv"))
    assert not (folder / "folds.json").exists()


def test_a_failed_write_leaves_the_old_file(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    saved(folder)
    before = (folder / "folds.json").read_bytes()

    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(OSError, match="No space left"):
        StratifiedFolds(3).save(folder / "folds.json", read(folder))
    assert (folder / "folds.json").read_bytes() == before
    assert not list(folder.glob(".*"))


def swap_folds(found: dict[str, Any]) -> None:
    found["rows"][0][-1], found["rows"][1][-1] = 1 - found["rows"][0][-1], 3


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (swap_folds, "its rows are not those it was written with"),
        (lambda found: found["rows"].pop(), "its rows are not those"),
        (lambda found: found["rows"][0].pop(), "missing 1 required"),
        (lambda found: found.update(version=2), "its version is 2, not 1"),
        (lambda found: found.update(format="other"), "its format is 'other'"),
        (lambda found: found.pop("rows"), "lacks 'rows'"),
        (lambda found: found.update(n_splits=3), r"in folds \[0, 1, 2, 3\], not 0\.\.2"),
        (lambda found: found.update(n_splits="4"), "its n_splits is '4'"),
        (lambda found: found.update(shuffle=1), "its shuffle is 1"),
        (lambda found: found.update(seed=-1), "its seed is -1"),
        (lambda found: found.update(share=0.2), r"not -1\.\.0"),
        (lambda found: found.update(share="a"), "its share is 'a'"),
    ],
)
def test_a_damaged_file_is_refused(folder: Path, damage: Any, words: str) -> None:
    saved(folder)
    path = folder / "folds.json"
    found = json.loads(path.read_text(encoding="utf-8"))
    damage(found)
    path.write_text(json.dumps(found), encoding="utf-8")
    with pytest.raises(DataError, match=rf"folds\.json: is no file of saved folds: .*{words}"):
        StratifiedFolds.load(path)


@pytest.mark.parametrize("content", [b"", b"[1]", b"{", b"\xff\xfe", b"null"])
def test_other_files_are_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "folds.json").write_bytes(content)
    with pytest.raises(DataError, match="is no file of saved folds"):
        StratifiedFolds.load(tmp_path / "folds.json")
    with pytest.raises(FileNotFoundError, match="is not a file; give the path of saved folds"):
        StratifiedFolds.load(tmp_path)


def test_a_file_cut_anywhere_is_refused(folder: Path) -> None:
    saved(folder)
    whole = (folder / "folds.json").read_bytes()
    for length in range(0, len(whole) - 2, 97):
        (folder / "folds.json").write_bytes(whole[:length])
        with pytest.raises(DataError, match="is no file of saved folds"):
            StratifiedFolds.load(folder / "folds.json")


@pytest.mark.parametrize("share", [0.25, 0.5])
def test_a_hold_out_is_saved_and_verified_like_folds(folder: Path, share: float) -> None:
    manifest = read(folder, group="series")
    path = folder / "folds.json"
    dealt = StratifiedFolds(seed=3).save(path, manifest, share=share)
    assert set(dealt) == {-1, 0}
    assert np.array_equal(StratifiedFolds(seed=3).assign(manifest, share=share), dealt)
    held_out = np.flatnonzero(dealt == 0)
    names = np.array(manifest.classes)[manifest.labels]
    linked = [int(series) for series in manifest.groups or ()]
    expected = StratifiedFolds(seed=3).hold_out(names, linked, share=share)[1]
    assert np.array_equal(held_out, expected)
    assert abs(len(held_out) - 36 * share) <= 2

    folds = StratifiedFolds.load(path)
    folds.verify(manifest)
    assert np.array_equal(folds.assign(manifest), dealt)
    assert np.array_equal(folds.assign(manifest, share=share), dealt)
    folds.save(folder / "copy.json", manifest)
    assert (folder / "copy.json").read_bytes() == path.read_bytes()
    assert json.loads(path.read_text(encoding="utf-8"))["share"] == share
    with pytest.raises(ValueError, match=rf"`share` must be that of the loaded folds, {share}, g"):
        folds.assign(manifest, share=0.1)
    (folder / "train/TRAIN_00008.png").write_bytes(b"another picture")
    assert told(folds, manifest) == [
        "row 9, train/TRAIN_00008.png: low-resolution file has changed"
    ]


def test_a_share_is_checked_before_files_are_read(folder: Path) -> None:
    manifest = read(folder)
    shutil.rmtree(folder / "train")
    for share in (0, 1, float("nan")):
        with pytest.raises(ValueError, match="`share` must be"):
            StratifiedFolds().assign(manifest, share=share)
