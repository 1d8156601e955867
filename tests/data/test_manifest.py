import hashlib
import os
import posixpath
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from lowres_vision.data import DataError, Manifest
from lowres_vision.data._cells import normal_path


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name in ("a.png", "b.png", "참새 1.png"):
        (tmp_path / "img").mkdir(exist_ok=True)
        Image.new("RGB", (4, 4)).save(tmp_path / "img" / name)
    return tmp_path


def write(folder: Path, text: str, encoding: str = "utf-8") -> Path:
    path = folder / "train.csv"
    path.write_bytes(text.encode(encoding))
    return path


def reasons(error: pytest.ExceptionInfo[DataError]) -> list[str]:
    return [fault.reason for fault in error.value.faults]


def test_the_contest_layout_reads_whole(toy: Path) -> None:
    manifest = Manifest.read_csv(toy / "train.csv")
    assert len(manifest) == 36
    assert manifest.classes == ("Amber Finch", "Azure Tit", "Bronze Heron")
    assert manifest.class_counts() == dict.fromkeys(manifest.classes, 12)
    assert manifest.low[0] == "train/TRAIN_00000.png"
    assert manifest.high is not None
    assert manifest.high[0] == "upscale_train/TRAIN_00000.jpg"
    assert manifest.ids == manifest.low
    assert manifest.nulls == {"img_path": 0, "upscale_img_path": 0, "label": 0}


def test_a_test_set_is_unlabelled_and_keeps_its_ids(toy: Path) -> None:
    manifest = Manifest.read_csv(toy / "test.csv", classes=["x", "y"])
    assert not manifest.labelled
    assert manifest.high is None
    assert manifest.ids[:2] == ("TEST_00000", "TEST_00001")
    assert (manifest.labels == -1).all()
    with pytest.raises(DataError, match="has no column `label`, so its rows are unlabelled; name"):
        manifest.require_labels()


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "cp949", "utf-16"])
@pytest.mark.parametrize("separator", [",", ";", "\t"])
@pytest.mark.parametrize("newline", ["\n", "\r\n"])
def test_encodings_separators_and_newlines(
    folder: Path, encoding: str, separator: str, newline: str
) -> None:
    rows = [["img_path", "label"], [r".\img\참새 1.png", "참새"], ["./img/a.png", "까치"]]
    text = newline.join(separator.join(row) for row in rows) + newline * 2
    manifest = Manifest.read_csv(write(folder, text, encoding))
    assert manifest.low == ("img/참새 1.png", "img/a.png")
    assert manifest.classes == ("까치", "참새")
    assert manifest.labels.tolist() == [1, 0]


def test_quoted_cells_hold_separators_and_newlines(folder: Path) -> None:
    path = write(folder, 'img_path,label\nimg/a.png,"Tit, great"\nimg/b.png,"two\nlines"\n')
    assert Manifest.read_csv(path).classes == ("Tit, great", "two\nlines")


def test_other_column_names_and_groups(folder: Path) -> None:
    path = write(folder, "file,artist,series\nimg/a.png,Monet,1\nimg/b.png,Manet,2\n")
    manifest = Manifest.read_csv(path, image="file", label="artist", group="series")
    assert manifest.classes == ("Manet", "Monet")
    assert manifest.groups == ("1", "2")


def test_a_given_class_order_is_kept_and_unknown_labels_are_named(folder: Path) -> None:
    path = write(folder, "img_path,label\nimg/a.png,tit\nimg/b.png,finch\n")
    assert Manifest.read_csv(path, classes=["tit", "finch"]).labels.tolist() == [0, 1]
    with pytest.raises(DataError, match=r"class 'finch' is not among.*did you mean 'finches'"):
        Manifest.read_csv(path, classes=["tit", "finches"])


@pytest.mark.parametrize("classes", ["tit", ["tit", "rail", "tit"]])
def test_a_class_list_is_names_in_order(folder: Path, classes: Sequence[str]) -> None:
    path = write(folder, "img_path,label\nimg/a.png,tit\n")
    with pytest.raises(ValueError, match=r"`classes` must be different names in order, got"):
        Manifest.read_csv(path, classes=classes)
    with pytest.raises(ValueError, match=r"`classes` must be different names in order, got"):
        Manifest.read_folders(folder, classes=classes)


def test_a_label_in_another_form_than_a_known_class_is_named_as_such(folder: Path) -> None:
    path = write(folder, "img_path,label\nimg/a.png,cafe\u0301\nimg/b.png,Blue  tit\n")
    with pytest.raises(DataError) as error:
        Manifest.read_csv(path, classes=["caf\u00e9", "blue tit", "rail"])
    assert [reason.split("classes ")[1] for reason in reasons(error)] == [
        "(it differs from 'blue tit' only in case, spaces or Unicode form)",
        "(it differs from 'caf\u00e9' only in case, spaces or Unicode form)",
    ]
    assert [fault.row for fault in error.value.faults] == [2, 1]


def test_a_column_of_names_taken_for_labels_is_refused_at_once(folder: Path) -> None:
    rows = "".join(f"img/a.png,name {number}\n" for number in range(20_000))
    with pytest.raises(DataError) as error:
        Manifest.read_csv(write(folder, "img_path,label\n" + rows), classes=["tit", "rail"])
    assert error.value.faults[-1].reason == "has 19,000 more such faults"


def test_other_columns_are_kept_and_choose_rows(folder: Path) -> None:
    text = "img_path,label,split,genre\n" + "".join(
        f"img/{name}.png,tit,{split},{genre}\n"
        for name, split, genre in [("a", "train", "x"), ("b", "val", ""), ("a", "test", "x")]
    )
    manifest = Manifest.read_csv(write(folder, text))
    assert manifest.columns == {"split": ("train", "val", "test"), "genre": ("x", "", "x")}
    assert manifest.rows("split", "train").tolist() == [0]
    assert manifest.rows("split", "test", "train").tolist() == [0, 2]
    with pytest.raises(ValueError, match=r"`column` must be one of \['split', 'genre'\], got 'sp"):
        manifest.rows("splits", "train")
    with pytest.raises(ValueError, match=r"be among 'test', 'train', 'val', got \{'dev'\}"):
        manifest.rows("split", "dev")


@pytest.mark.parametrize(
    "cell", ["./a", "a/", "a//b", "./", ".", "a/./b", "a/../b", ".a/..b", "../a"]
)
def test_paths_are_normal(cell: str) -> None:
    for path in (cell, f"./{cell}", f" {cell}", cell.replace("/", "\\")):
        expected = posixpath.normpath(path.strip().replace("\\", "/"))
        assert normal_path(path) == expected


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "is empty"),
        ("img_path,label\n", "has a header but no rows"),
        (
            "img_pth,label\nimg/a.png,tit\n",
            "column `img_path` is missing (did you mean `img_pth`?)",
        ),
        ("img_path,label,label\nimg/a.png,tit,tit\n", "header stands twice"),
        ("img_path,label\nimg/a.png\n", "has 1 cells, the header has 2"),
        ("img_path,label\nimg/a.png,\n", "cell is empty"),
        ("img_path,label\n ,tit\n", "cell is empty"),
        ("img_path,label\nimg/c.png,tit\n", "file is missing"),
        ("img_path,label\nimg,tit\n", "is not a file"),
        ("img_path,label\n../a.png,tit\n", "leaves the data folder"),
        ("img_path,label\nimg/../../a.png,tit\n", "leaves the data folder"),
        ("img_path,label\n/etc/passwd,tit\n", "is not a relative path"),
        ("img_path,label\nC:\\img\\a.png,tit\n", "is not a relative path"),
        ("img_path,label\nhttps://x.org/a.png,tit\n", "is not a relative path"),
        ("img_path,label\n" + "a" * 300 + ".png,tit\n", "cannot be read"),
        ("img_path,label\nimg/a.png,tit\nimg/b.png,Tit\n", "'Tit' and 'tit' differ only in form"),
        ("img_path,label\nimg/a.png,tit \nimg/b.png,tit\n", "'tit' and 'tit ' differ only"),
        ("img_path,label\nimg/a.png, tit\n", "has spaces around it"),
        ("img_path,label\nimg/a.png,\u00e9\nimg/b.png,e\u0301\n", "differ only in form"),
        ("id,img_path\n1,img/a.png\n1,img/b.png\n", "id '1' stands in row 1 too"),
        ('img_path,label\n"img/a.png,tit\n', "is no valid CSV"),
    ],
)
def test_a_fault_is_named(folder: Path, text: str, words: str) -> None:
    path = write(folder, text)
    with pytest.raises(DataError) as error:
        Manifest.read_csv(path)
    assert words in str(error.value)
    assert str(path) in str(error.value)


def test_all_faults_come_at_once_with_row_column_and_remedy(folder: Path) -> None:
    text = "img_path,upscale_img_path,label\nimg/a.png,up/a.jpg,\n../x,img/b.png,tit\n"
    with pytest.raises(DataError) as error:
        Manifest.read_csv(write(folder, text))
    places = {(fault.row, fault.column) for fault in error.value.faults}
    assert places == {(1, "upscale_img_path"), (1, "label"), (2, "img_path")}
    assert all(fault.remedy for fault in error.value.faults)


def test_many_faults_are_counted_not_printed(folder: Path) -> None:
    rows = "".join(f"img/{i}.png,tit\n" for i in range(50))
    with pytest.raises(DataError, match="50 faults") as error:
        Manifest.read_csv(write(folder, "img_path,label\n" + rows))
    assert "and 30 more faults" in str(error.value)


def test_no_text_encoding_is_guessed(folder: Path) -> None:
    path = folder / "train.csv"
    path.write_bytes(b"img_path,label\nimg/a.png,\xff\xff\n")
    with pytest.raises(DataError, match="neither UTF-8 nor CP949"):
        Manifest.read_csv(path)


def test_a_named_column_must_be_there(folder: Path) -> None:
    path = write(folder, "img_path,label\nimg/a.png,tit\n")
    for argument in ("label", "id", "high_resolution", "group"):
        with pytest.raises(DataError, match="column `labels` is missing"):
            Manifest.read_csv(path, **{argument: "labels"})


@pytest.mark.skipif(os.name != "posix", reason="links")
def test_links_stay_under_the_root(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    outside = tmp_path_factory.mktemp("outside") / "x.png"
    Image.new("RGB", (4, 4)).save(outside)
    (folder / "img" / "out.png").symlink_to(outside)
    (folder / "img" / "in.png").symlink_to(folder / "img" / "a.png")
    (folder / "img" / "broken.png").symlink_to(folder / "nothing.png")
    (folder / "door").symlink_to(outside.parent)
    assert len(Manifest.read_csv(write(folder, "img_path\nimg/in.png\n"))) == 1
    text = "img_path\nimg/out.png\nimg/broken.png\ndoor/x.png\n"
    with pytest.raises(DataError) as error:
        Manifest.read_csv(write(folder, text))
    assert [reason.split(" (")[0] for reason in reasons(error)] == [
        "leaves the data folder through a link",
        "is a broken link",
        "leaves the data folder through a link",
    ]


def test_columns_of_other_names_are_named_with_their_argument(tmp_path: Path) -> None:
    path = tmp_path / "train.csv"
    path.write_text("file,class\na.png,tit\n")
    with pytest.raises(DataError, match=r"it has `file`, `class`: .* name yours with `image=`"):
        Manifest.read_csv(path)
    with pytest.raises(DataError, match="name yours with `group=`"):
        Manifest.read_csv(path, image="file", label="class", group="painting")
    path.write_text("a.PNG,tit\nb.png,tit\n")
    with pytest.raises(DataError, match=r"`a\.PNG`, `tit`, is a row already"):
        Manifest.read_csv(path)


def test_classes_that_are_numbers_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "train.csv"
    path.write_text("img_path,label\na.png,0\n")
    with pytest.raises(TypeError, match="must be names, each a string, got \\[0, 1\\]"):
        Manifest.read_csv(path, classes=[0, 1])  # type: ignore[list-item]


def test_a_folder_in_place_of_a_csv_is_told_where_to_go(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"is a folder; .* `Manifest.read_folders`"):
        Manifest.read_csv(tmp_path)


def test_a_missing_csv_is_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"nothing.csv is not a file; give the path"):
        Manifest.read_csv(tmp_path / "nothing.csv")


def test_the_digest_is_of_the_rows(folder: Path) -> None:
    first = Manifest.read_csv(write(folder, "img_path,label\nimg/a.png,tit\n")).digest()
    again = Manifest.read_csv(write(folder, "img_path;label\n./img/a.png;tit\n")).digest()
    other = Manifest.read_csv(write(folder, "img_path,label\nimg/a.png,finch\n")).digest()
    assert first == again != other
    columns = (("img/a.png",), ("img/a.png",), (), [0], ("tit",))
    assert first == hashlib.sha256(repr(columns).encode()).hexdigest()


def test_the_real_set_reads_whole(shared_data: Path) -> None:
    train = Manifest.read_csv(shared_data / "birds25" / "train.csv")
    test = Manifest.read_csv(shared_data / "birds25" / "test.csv", classes=train.classes)
    assert (len(train), len(test), len(train.classes)) == (1048, 450, 25)
    assert np.unique(train.labels).size == 25


READ = """
import resource, sys, time
from lowres_vision.data import Manifest
def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
before, began = peak(), time.process_time()
manifest = Manifest.read_csv(sys.argv[1])
manifest.digest()
print(len(manifest), time.process_time() - began, peak() - before)
"""


def read_many(folder: Path, number: int) -> tuple[float, float]:
    """Return processor seconds and bytes that a CSV of ``number`` pairs takes to read."""
    for kind in ("train", "high"):
        (folder / kind / "files").mkdir(parents=True)
        for name in range(1000):
            (folder / kind / "files" / f"TRAIN_{name:07}.jpg").touch()
        for part in range(number // 1000):  # links, so that a million paths need few files
            (folder / kind / f"{part:03}").symlink_to("files")
    with (folder / "train.csv").open("w", encoding="utf-8") as file:
        file.write("img_path,upscale_img_path,label\n")
        for row in range(number):
            place = f"{row // 1000:03}/TRAIN_{row % 1000:07}.jpg"
            file.write(f"./train/{place},./high/{place},Class {row % 25:02}\n")
    done = subprocess.run(
        [sys.executable, "-c", READ, str(folder / "train.csv")],
        capture_output=True,
        text=True,
        check=True,
    )
    rows, seconds, memory = done.stdout.split()
    assert int(rows) == number
    return float(seconds), float(memory)


@pytest.mark.skipif(os.name != "posix", reason="resource")
def test_fifty_thousand_rows_take_little(tmp_path: Path) -> None:
    seconds, memory = read_many(tmp_path, 50_000)
    assert seconds < 10
    assert memory < 25e6


@pytest.mark.slow
@pytest.mark.skipif(os.name != "posix", reason="resource")
def test_a_million_rows_take_seconds_and_less_than_500_megabytes(tmp_path: Path) -> None:
    seconds, memory = read_many(tmp_path, 1_000_000)
    assert seconds < 60
    assert memory < 350e6
