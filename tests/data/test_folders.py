"""Folders per class: what becomes a row, what a fault and what a note."""

import os
import unicodedata
from pathlib import Path

import pytest
from PIL import Image

from lowres_vision.data import DataError, Manifest, MultiResolutionDataset

SPARROW = "참새"
ACCENT = "\u00e9"


def draw(root: Path, *names: str, size: int = 8) -> Path:
    """Write an image under each name."""
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (size, size)).save(root / name)
    return root


def refusal(root: Path, **options: object) -> list[str]:
    with pytest.raises(DataError) as error:
        Manifest.read_folders(root, **options)
    assert str(root) in str(error.value)
    assert all(fault.reason and fault.remedy for fault in error.value.faults)
    return [f"{fault.path}: {fault.reason}" for fault in error.value.faults]


def test_classes_and_rows_are_in_the_order_of_their_names(tmp_path: Path) -> None:
    draw(tmp_path, "tit/b.png", "tit/a.jpg", "Hoopoe/z.webp", f"{SPARROW}/1.bmp")
    manifest = Manifest.read_folders(tmp_path)
    assert manifest.classes == ("Hoopoe", "tit", SPARROW)
    assert manifest.low == ("Hoopoe/z.webp", "tit/a.jpg", "tit/b.png", f"{SPARROW}/1.bmp")
    assert manifest.labels.tolist() == [0, 1, 1, 2]
    assert manifest.ids == manifest.low
    assert (manifest.high, manifest.groups, manifest.notes) == (None, None, ())
    assert MultiResolutionDataset(manifest)[3].target == 2


def test_what_is_no_row_is_noted(tmp_path: Path) -> None:
    draw(tmp_path, "tit/a.png", "tit/.hidden.png", ".cache/x.png", "__MACOSX/._a.png")
    (tmp_path / "tit" / "Thumbs.db").write_bytes(b"\xd0\xcf\x11\xe0")
    (tmp_path / "tit" / "notes.txt").write_text("seen in May")
    (tmp_path / "tit" / "empty").touch()
    (tmp_path / "README.md").write_text("# Birds")
    manifest = Manifest.read_folders(tmp_path)
    assert manifest.low == ("tit/a.png",)
    assert {(note.path, note.reason) for note in manifest.notes} == {
        (".cache", "was left out: is hidden"),
        ("tit/.hidden.png", "was left out: is hidden"),
        ("__MACOSX", "was left out: is a system's own"),
        ("tit/Thumbs.db", "was left out: is a system's own"),
        ("tit/notes.txt", "was left out: is no image"),
        ("tit/empty", "was left out: is no image"),
        ("README.md", "was left out: is no image"),
    }


def test_a_damaged_image_is_a_row_for_the_audit_to_name(tmp_path: Path) -> None:
    draw(tmp_path, "tit/a.png")
    (tmp_path / "tit" / "b.png").touch()
    assert len(Manifest.read_folders(tmp_path)) == 2


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("loose.png", "loose.png: lies beside the class folders"),
        ("tit/deep/a.png", "tit/deep: is a folder within a class folder"),
        ("Tit/a.png", "None: 'Tit' and 'tit' differ only in form"),
        ("tit /a.png", "None: 'tit' and 'tit ' differ only in form"),
        (" rail/a.png", "None: ' rail' has spaces around it"),
        ("tit/icon.ico", "tit/icon.ico: is a picture of a kind that is not read (.ico)"),
    ],
)
def test_what_cannot_be_a_row_is_a_fault(name: str, words: str, tmp_path: Path) -> None:
    draw(tmp_path, "tit/a.png", name)
    assert refusal(tmp_path) == [words]


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("tit/phone.HEIC", b"ftypheic", "is a picture of a kind that is not read (.heic)"),
        ("tit/drawing.svg", b"<svg/>", "is a picture of a kind that is not read (.svg)"),
        ("tit/bird", None, "is an image by content but not by name"),
        ("tit/bird.png.part", None, "is an image by content but not by name"),
        ("bird.txt", None, "is an image by content but not by name"),
    ],
)
def test_no_picture_is_left_out_for_its_name(
    name: str, content: bytes | None, words: str, tmp_path: Path
) -> None:
    draw(tmp_path, "tit/a.png")
    picture = (tmp_path / "tit" / "a.png").read_bytes()
    (tmp_path / name).write_bytes(picture if content is None else content)
    assert refusal(tmp_path) == [f"{name}: {words}"]


def test_a_name_that_is_no_text_is_a_fault(tmp_path: Path) -> None:
    """It could be opened, but not written to a fold file, a shard or a report."""
    draw(tmp_path, "tit/a.png", "tit/b.png")
    strange = os.fsencode(tmp_path) + b"/tit/caf\xe9.png"
    try:
        os.rename(tmp_path / "tit/b.png", strange)  # noqa: PTH104
    except OSError:
        pytest.skip("this system has no such names")
    assert refusal(tmp_path) == ["tit/caf\\udce9.png: has a name that is no UTF-8 text"]


def test_empty_folders_are_named(tmp_path: Path) -> None:
    assert refusal(tmp_path) == ["None: holds no image"]
    draw(tmp_path, "tit/a.png")
    (tmp_path / "rail").mkdir()
    assert refusal(tmp_path) == ["rail: class folder holds no image"]
    manifest = Manifest.read_folders(tmp_path, classes=["rail", "tit"])
    assert manifest.class_counts() == {"rail": 0, "tit": 1}
    assert [note.path for note in manifest.notes] == ["rail"]
    with pytest.raises(FileNotFoundError, match="is not a folder; give one with a folder per"):
        Manifest.read_folders(tmp_path / "nothing")


def test_all_faults_come_at_once(tmp_path: Path) -> None:
    draw(tmp_path, "tit/a.png", "tit/deep/a.png", "loose.png", "Tit/b.png")
    (tmp_path / "rail").mkdir()
    assert len(refusal(tmp_path)) == 4


def test_a_known_class_order_is_kept_and_others_are_named(tmp_path: Path) -> None:
    draw(tmp_path, "tit/a.png", "rail/a.png", "rail/b.png")
    given = Manifest.read_folders(tmp_path, classes=["tit", "hoopoe", "rail"])
    assert given.labels.tolist() == [2, 2, 0]
    assert refusal(tmp_path, classes=["tit", "rails"]) == [
        "rail: class 'rail' is not among the 2 known classes (did you mean 'rails'?); 2 images here"
    ]


@pytest.mark.skipif(os.name != "posix", reason="names that differ in case or form only")
def test_names_that_another_system_would_merge_are_noted(tmp_path: Path) -> None:
    decomposed = unicodedata.normalize("NFD", ACCENT)
    draw(tmp_path, "tit/a.png", "tit/A.png", f"tit/{ACCENT}.png", f"tit/{decomposed}.png")
    if len([*(tmp_path / "tit").iterdir()]) < 4:
        pytest.skip("this file system merges such names")
    manifest = Manifest.read_folders(tmp_path)
    assert len(manifest) == 4
    assert [note.reason.split(" in ")[1] for note in manifest.notes] == [
        "case or Unicode form only"
    ] * 2


def test_class_names_are_composed_whatever_the_file_system_keeps(tmp_path: Path) -> None:
    decomposed = unicodedata.normalize("NFD", SPARROW)
    draw(tmp_path, f"{decomposed}/1.png")
    manifest = Manifest.read_folders(tmp_path, classes=[SPARROW])
    assert manifest.classes == (SPARROW,)
    assert MultiResolutionDataset(manifest)[0].target == 0
    draw(tmp_path, f"{SPARROW}/2.png")
    if len([*tmp_path.iterdir()]) == 2:
        (reason,) = refusal(tmp_path)
        assert "is another folder's name in another Unicode form" in reason


@pytest.mark.skipif(os.name != "posix", reason="links")
def test_links_stay_under_the_root(tmp_path: Path) -> None:
    outside = draw(tmp_path / "outside", "x.png")
    root = draw(tmp_path / "root", "tit/a.png")
    (root / "tit" / "in.png").symlink_to(root / "tit" / "a.png")
    assert len(Manifest.read_folders(root)) == 2
    (root / "tit" / "out.png").symlink_to(outside / "x.png")
    (root / "tit" / "broken.png").symlink_to(root / "nothing.png")
    (root / "door").symlink_to(outside)
    reasons = refusal(root)
    assert reasons[0] == "door: leaves the data folder through a link"
    assert reasons[1].startswith("tit/broken.png: is a broken link")
    assert reasons[2:] == ["tit/out.png: leaves the data folder through a link"]


def test_a_folder_without_class_folders_is_unlabelled(tmp_path: Path) -> None:
    draw(tmp_path, "b.png", "a.png")
    manifest = Manifest.read_folders(tmp_path, classes=["tit", "rail"])
    assert manifest.low == ("a.png", "b.png")
    assert manifest.labels.tolist() == [-1, -1]
    assert manifest.classes == ("tit", "rail")
    with pytest.raises(DataError, match="has no class folders, so its rows are unlabelled"):
        manifest.require_labels()


def test_the_root_holds_the_folder(tmp_path: Path) -> None:
    draw(tmp_path, "a/tit/1.png", "b/tit/1.png")
    manifest = Manifest.read_folders(tmp_path / "a" / ".." / "b", root=tmp_path)
    assert manifest.low == ("b/tit/1.png",)
    with pytest.raises(ValueError, match=r"`root` must hold .*a, got .*b"):
        Manifest.read_folders(tmp_path / "a", root=tmp_path / "b")
    with pytest.raises(ValueError, match=r"`root` must hold .*b, got .*a"):
        Manifest.read_folders(tmp_path / "a", high_resolution=tmp_path / "b", root=tmp_path / "a")


class TestPairs:
    def test_two_trees_are_matched_by_class_and_name(self, tmp_path: Path) -> None:
        composed, decomposed = ACCENT, unicodedata.normalize("NFD", ACCENT)
        draw(
            tmp_path, "low/tit/a.png", f"low/tit/{composed}.png", "low/rail/a.png", "low/rail/B.png"
        )
        draw(tmp_path, "high/rail/a.jpg", "high/tit/a.jpg", f"high/tit/{decomposed}.jpg", size=16)
        draw(tmp_path, "high/rail/b.jpg", size=16)
        manifest = Manifest.read_folders(tmp_path / "low", high_resolution=tmp_path / "high")
        assert manifest.root == tmp_path
        assert manifest.high is not None
        assert list(zip(manifest.low, manifest.high, strict=True)) == [
            ("low/rail/B.png", "high/rail/b.jpg"),
            ("low/rail/a.png", "high/rail/a.jpg"),
            ("low/tit/a.png", "high/tit/a.jpg"),
            (f"low/tit/{composed}.png", f"high/tit/{decomposed}.jpg"),
        ]
        pair = MultiResolutionDataset(manifest, resolution="pair")[1]
        assert (pair[0].shape, pair[1].shape) == ((3, 8, 8), (3, 16, 16))

    def test_the_same_suffix_decides_between_two(self, tmp_path: Path) -> None:
        draw(tmp_path, "low/tit/a.png", "low/tit/a.jpg", "high/tit/a.jpg", "high/tit/a.png")
        manifest = Manifest.read_folders(tmp_path / "low", high_resolution=tmp_path / "high")
        assert manifest.high == ("high/tit/a.jpg", "high/tit/a.png")

    def test_images_without_counterpart_are_faults_of_either_tree(self, tmp_path: Path) -> None:
        draw(tmp_path, "low/tit/a.png", "low/tit/b.png", "low/rail/c.png", "low/rail/d.png")
        draw(tmp_path, "high/tit/a.png", "high/tit/c.png", "high/rail/d.jpg", "high/rail/d.webp")
        low, high = tmp_path / "low", tmp_path / "high"
        assert refusal(low, high_resolution=high) == [
            f"low/rail/c.png: has no counterpart in {high}",
            f"low/rail/d.png: has no counterpart in {high}",
            f"low/tit/b.png: has no counterpart in {high}",
            f"high/rail/d.jpg: has no counterpart in {low}",
            f"high/rail/d.webp: has no counterpart in {low}",
            f"high/tit/c.png: has no counterpart in {low}",
        ]


class TestSplits:
    def test_all_have_the_classes_of_the_first(self, tmp_path: Path) -> None:
        draw(tmp_path, "train/tit/a.png", "train/rail/a.png", "train/hoopoe/a.png")
        draw(tmp_path, "val/tit/a.png", "val/tit/b.png", "test/x.png")
        (tmp_path / "README.md").write_text("# Birds")
        splits = Manifest.read_splits(tmp_path)
        assert list(splits) == ["train", "val", "test"]
        assert {split.classes for split in splits.values()} == {("hoopoe", "rail", "tit")}
        assert splits["val"].labels.tolist() == [2, 2]
        assert splits["val"].low == ("val/tit/a.png", "val/tit/b.png")
        assert splits["test"].labels.tolist() == [-1]
        assert [note.path for note in splits["train"].notes] == ["README.md"]

    def test_other_names_must_be_given(self, tmp_path: Path) -> None:
        draw(tmp_path, "train/tit/a.png", "valid/tit/a.png", "more/tit/a.png", ".git/x.png")
        with pytest.raises(DataError) as error:
            Manifest.read_splits(tmp_path)
        assert [str(fault) for fault in error.value.faults] == [
            f"{name}: is none of train, val, test; name the splits with `splits=`"
            for name in ("more", "valid")
        ]
        splits = Manifest.read_splits(tmp_path, splits=["train", "valid"])
        assert list(splits) == ["train", "valid"]
        assert [note.path for note in splits["train"].notes] == [".git", "more"]
        for wrong in ("train", []):
            with pytest.raises(ValueError, match="`splits` must be names of folders, got"):
                Manifest.read_splits(tmp_path, splits=wrong)

    def test_a_class_that_only_validation_has_is_named(self, tmp_path: Path) -> None:
        draw(tmp_path, "train/tit/a.png", "val/tit/a.png", "val/rail/a.png", "val/tits/a.png")
        with pytest.raises(DataError) as error:
            Manifest.read_splits(tmp_path)
        assert {fault.path: fault.reason for fault in error.value.faults} == {
            "val/rail": "class 'rail' is not among the 1 known classes; 1 image here",
            "val/tits": "class 'tits' is not among the 1 known classes (did you mean 'tit'?); "
            "1 image here",
        }

    def test_pairs_may_stop_at_validation(self, tmp_path: Path) -> None:
        draw(tmp_path, "low/train/tit/a.png", "low/val/tit/b.png", "high/train/tit/a.jpg")
        splits = Manifest.read_splits(tmp_path / "low", high_resolution=tmp_path / "high")
        assert splits["train"].high == ("high/train/tit/a.jpg",)
        assert splits["val"].high is None
        with pytest.raises(FileNotFoundError, match="train is not a folder"):
            Manifest.read_splits(tmp_path / "low", high_resolution=tmp_path / "none")

    def test_splits_read_as_classes_are_seen_through(self, tmp_path: Path) -> None:
        draw(tmp_path, "train/tit/a.png", "val/tit/a.png")
        with pytest.raises(
            DataError, match=r"folders train, val and test use `Manifest\.read_splits`"
        ):
            Manifest.read_folders(tmp_path)
        with pytest.raises(FileNotFoundError, match="is not a folder"):
            Manifest.read_splits(tmp_path / "nothing")
        with pytest.raises(FileNotFoundError, match="train is not a folder"):
            Manifest.read_splits(tmp_path / "train")


def test_the_real_folders_read_whole(shared_data: Path) -> None:
    campus = Manifest.read_splits(shared_data / "campus6", splits=("day", "night"))
    assert (len(campus["day"]), len(campus["night"])) == (169, 48)
    assert campus["day"].classes == campus["night"].classes
    table = Manifest.read_csv(shared_data / "campus6" / "labels.csv")
    day = table.rows("split", "day")
    assert {table.low[row] for row in day} == set(campus["day"].low)
    assert table.classes == campus["day"].classes
