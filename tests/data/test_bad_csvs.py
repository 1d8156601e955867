"""Hand-made bad CSVs, each with the verdict that is expected of it, and generated ones."""

import codecs
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from lowres_vision.data import DataError, Manifest, audit

HEADER = "img_path,label\n"
GOOD = HEADER + "a.png,tit\nb.png,finch\n"

CSVS: dict[str, tuple[bytes | str, str]] = {
    # No table
    "empty": ("", "is empty"),
    "byte order mark only": (codecs.BOM_UTF8, "is empty"),
    "blank first line": ("\n" + GOOD, "is empty"),
    "blank lines": ("\n\n\r\n", "is empty"),
    "header only": (HEADER, "has a header but no rows"),
    "header and blank lines": (HEADER + "\n\n", "has a header but no rows"),
    "Latin-1": (HEADER.encode() + b"a.png,\xe9\n", "is neither UTF-8 nor CP949 text"),
    "a lone byte": (HEADER.encode() + b"a.png,\xff\n", "is neither UTF-8 nor CP949 text"),
    "an image": (b"\x89PNG\r\n\x1a\n" + bytes(64), "is neither UTF-8 nor CP949 text"),
    "NUL in a cell": (HEADER + "a.png\0,tit\n", "is neither UTF-8 nor CP949 text"),
    "UTF-16 without mark": (GOOD.encode("utf-16-le"), "is neither UTF-8 nor CP949 text"),
    "UTF-16 cut": (codecs.BOM_UTF16_LE + GOOD.encode("utf-16-le")[:-1], "is neither UTF-8 nor"),
    "open quote": (HEADER + '"a.png,tit\n', "is no valid CSV"),
    "text after a quote": (HEADER + '"a.png"x,tit\n', "is no valid CSV"),
    "a cell without end": (HEADER + "a" * 200_000 + ",tit\n", "is no valid CSV"),
    "markup": ("<html><body>Log in</body></html>\n<p>\n", "column `img_path` is missing"),
    # Columns
    "misspelt": ("img_pth,label\na.png,tit\n", "did you mean `img_pth`?"),
    "other case": ("IMG_PATH,label\na.png,tit\n", "column `img_path` is missing"),
    "no header": ("a.png,tit\nb.png,finch\n", "column `img_path` is missing"),
    "other separator": ("img_path|label\na.png|tit\n", "column `img_path` is missing"),
    "twice": ("img_path,label,label\na.png,tit,tit\n", "header stands twice"),
    "twice with spaces": ("img_path, img_path\na.png,b.png\n", "header stands twice"),
    # Shape
    "short row": (HEADER + "a.png\nb.png,tit\n", "row 1: has 1 cells, the header has 2"),
    "long row": (HEADER + "a.png,tit\nb.png,tit,7\n", "row 2: has 3 cells, the header has 2"),
    "comma in a name": (HEADER + "a.png,tit, great\n", "row 1: has 3 cells"),
    "row of a space": (HEADER + "a.png,tit\n \n", "row 2: has 1 cells"),
    "other separator below": (HEADER + "a.png;tit\n", "row 1: has 1 cells"),
    # Cells
    "no path": (HEADER + ",tit\n", "row 1, column `img_path`: cell is empty"),
    "blank path": (HEADER + "  ,tit\n", "row 1, column `img_path`: cell is empty"),
    "no label": (HEADER + "a.png,\n", "row 1, column `label`: cell is empty"),
    "no high": (
        "img_path,upscale_img_path\na.png,\n",
        "row 1, column `upscale_img_path`: cell is empty",
    ),
    "no id": ("id,img_path\n,a.png\n", "row 1, column `id`: cell is empty"),
    # Paths
    "missing file": (HEADER + "c.png,tit\n", "c.png: file is missing"),
    "other extension": (HEADER + "a.jpg,tit\n", "a.jpg: file is missing (did you mean `a.png`?)"),
    "other case of a path": (HEADER + "A.PNG,tit\n", "file is missing (did you mean `a.png`?)"),
    "other form of a path": (
        HEADER + "\u1100\u1161.png,tit\n",
        "file is missing (the same name in another Unicode form is there)",
    ),
    "no extension": (HEADER + "a,tit\n", "a: file is missing"),
    "folder": (HEADER + "img,tit\n", "img: is not a file"),
    "this folder": (HEADER + "./,tit\n", "is not a file"),
    "a file as folder": (HEADER + "a.png/b.png,tit\n", "cannot be read"),
    "parent": (HEADER + "../a.png,tit\n", "leaves the data folder"),
    "parent on the way": (HEADER + "img/../../a.png,tit\n", "leaves the data folder"),
    "Windows parent": (HEADER + "..\\..\\etc\\passwd,tit\n", "leaves the data folder"),
    "absolute": (HEADER + "/etc/hostname,tit\n", "is not a relative path"),
    "drive": (HEADER + "C:\\img\\a.png,tit\n", "is not a relative path"),
    "drive with slash": (HEADER + "d:/img/a.png,tit\n", "is not a relative path"),
    "share": (HEADER + "\\\\server\\img\\a.png,tit\n", "is not a relative path"),
    "address": (HEADER + "https://birds.example/a.png,tit\n", "is not a relative path"),
    "bucket": (HEADER + "s3://birds/a.png,tit\n", "is not a relative path"),
    "data in the cell": (HEADER + '"data:image/png;base64,iVBO",tit\n', "is not a relative path"),
    "home": (HEADER + "~/a.png,tit\n", "file is missing"),
    "long name": (HEADER + "a" * 300 + ".png,tit\n", "cannot be read"),
    "long path": (HEADER + "a/" * 3000 + "b.png,tit\n", "cannot be read"),
    "line break": (HEADER + '"a.png\n.png",tit\n', "file is missing"),
    "missing high": (
        "img_path,upscale_img_path\na.png,c.png\n",
        "column `upscale_img_path`, c.png",
    ),
    # Labels and ids
    "case": (HEADER + "a.png,Tit\nb.png,tit\n", "'Tit' and 'tit' differ only in form"),
    "space behind": (HEADER + "a.png,tit \nb.png,tit\n", "differ only in form"),
    "space within": (HEADER + "a.png,blue  tit\nb.png,blue tit\n", "differ only in form"),
    "no-break space": (HEADER + "a.png,blue\xa0tit\nb.png,blue tit\n", "differ only in form"),
    "accents": (HEADER + "a.png,caf\u00e9\nb.png,cafe\u0301\n", "differ only in form"),
    "sharp s": (HEADER + "a.png,Stra\u00dfe\nb.png,STRASSE\n", "differ only in form"),
    "space before": (HEADER + "a.png, tit\nb.png,finch\n", "' tit' has spaces around it"),
    "id twice": ("id,img_path\n1,a.png\n1,b.png\n", "row 2, column `id`: id '1' stands in row 1"),
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("csv")
    (folder / "img").mkdir()
    for name in ("a.png", "b.png", "\uac00.png"):
        Image.new("RGB", (8, 8)).save(folder / name)
    return folder


def write(folder: Path, content: bytes | str) -> Path:
    path = folder / "train.csv"
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


def test_there_are_enough() -> None:
    assert len(CSVS) >= 50


def test_the_one_without_a_flaw_reads(folder: Path) -> None:
    assert Manifest.read_csv(write(folder, GOOD)).class_counts() == {"finch": 1, "tit": 1}


@pytest.mark.parametrize("name", CSVS)
def test_the_manifest_names_it(name: str, folder: Path) -> None:
    content, words = CSVS[name]
    path = write(folder, content)
    with pytest.raises(DataError) as error:
        Manifest.read_csv(path)
    assert words in str(error.value)
    assert str(path) in str(error.value)
    assert all(fault.reason and fault.remedy for fault in error.value.faults)


@pytest.mark.parametrize("name", ["empty", "misspelt", "short row"])
def test_the_audit_of_no_table_is_its_fault(name: str, folder: Path) -> None:
    content, words = CSVS[name]
    report = audit(write(folder, content))
    assert (report.rows, report.files, len(report.faults)) == (0, 0, 1)
    assert words in str(report.faults[0])


def test_form_feeds_and_line_separators_do_not_split_a_row(folder: Path) -> None:
    path = write(folder, HEADER + "a.png,blue\x0ctit\nb.png,blue\u2028finch\n")
    assert Manifest.read_csv(path).classes == ("blue\x0ctit", "blue\u2028finch")


def test_faults_beyond_a_thousand_are_counted(folder: Path) -> None:
    path = write(folder, HEADER + "".join(f"c{row}.png,tit\n" for row in range(1_234)))
    with pytest.raises(DataError) as error:
        Manifest.read_csv(path)
    assert len(error.value.faults) == 1_001
    assert error.value.faults[-1].reason == "has 234 more such faults"


CELLS = st.one_of(
    st.sampled_from(["a.png", "./b.png", ".\\a.png", "c.png", "..", "img", "tit", "Tit", "", " "]),
    st.text(max_size=12),
)
HEADERS = st.sampled_from(["img_path", "label", "id", "upscale_img_path", "other", ""])


def accept_or_name(folder: Path, content: bytes) -> None:
    path = write(folder, content)
    try:
        manifest = Manifest.read_csv(path)
    except DataError as error:
        if not error.faults or not all(fault.reason and fault.remedy for fault in error.faults):
            raise
        return
    assert len(manifest) > 0
    assert len(manifest.labels) == len(manifest.low) == len(manifest.ids)
    assert all((folder / path).is_file() for path in (*manifest.low, *(manifest.high or ())))


RELAXED = settings(
    max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


@RELAXED
@given(
    header=st.lists(HEADERS, min_size=1, max_size=4),
    rows=st.lists(st.lists(CELLS, min_size=1, max_size=4), max_size=6),
    separator=st.sampled_from(",;\t"),
    newline=st.sampled_from(["\n", "\r\n", "\r"]),
    encoding=st.sampled_from(["utf-8", "utf-8-sig", "utf-16", "cp949"]),
)
def test_any_table_loads_or_is_named(
    folder: Path,
    header: list[str],
    rows: list[list[str]],
    separator: str,
    newline: str,
    encoding: str,
) -> None:
    text = newline.join(separator.join(cells) for cells in [header, *rows])
    accept_or_name(folder, text.encode(encoding, "replace" if encoding == "cp949" else "ignore"))


@RELAXED
@given(tail=st.binary(max_size=60), start=st.sampled_from([b"", HEADER.encode(), GOOD.encode()]))
def test_any_bytes_load_or_are_named(folder: Path, start: bytes, tail: bytes) -> None:
    accept_or_name(folder, start + tail)
