import json
import os
import shutil
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from lowres_vision.data import AuditReport, Manifest, audit, linked_rows
from lowres_vision.data.__main__ import main
from lowres_vision.data._audit_pool import _PROGRAM, inspect_files
from lowres_vision.data._audit_worker import Inspection

TRAP = (
    _PROGRAM.rpartition("from ")[0]
    + """
import os, time
from lowres_vision.data import _audit_worker as worker
inspect = worker.inspect
def trapped(path, **options):
    name = os.path.basename(path)
    if name == "crash.png":
        os.abort()
    if name == "hang.png":
        time.sleep(60)
    return inspect(path, **options)
worker.inspect = trapped
worker.serve()
"""
)


@pytest.fixture(scope="module")
def folder(toy: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The toy set with a flaw in each of its first rows."""
    folder = shutil.copytree(toy, tmp_path_factory.mktemp("audit") / "set")
    rows = [line.split(",") for line in (folder / "train.csv").read_text().splitlines()[1:]]
    low, high = ([folder / row[column] for row in rows] for column in (0, 1))
    labels = [row[2] for row in rows]
    high[0].write_bytes(high[0].read_bytes()[:2000])  # row 1: half a file
    shutil.copy(high[11], high[1])  # row 2: another picture at high resolution
    rows[2][:2] = rows[2][1::-1]  # row 3: low and high swapped
    other = next(row for row in range(7, 36) if labels[row] != labels[3])
    shutil.copy(low[3], low[other])  # row 4 and that one: one picture, two labels
    shutil.copy(high[3], high[other])
    Image.open(low[4]).save(low[4], "JPEG", quality=95)  # row 5: JPEG called .png
    Image.new("RGB", (64, 64), "green").save(low[5])  # row 6: flat
    rows[6][0] = "train/none.png"  # row 7: missing
    lines = ["img_path,upscale_img_path,label", *(",".join(row) for row in rows)]
    (folder / "train.csv").write_text("\n".join(lines))
    return folder


@pytest.fixture(scope="module")
def report(folder: Path) -> AuditReport:
    return audit(folder / "train.csv", workers=1)


def reasons(report: AuditReport, row: int, kind: str = "faults") -> list[str]:
    return [finding.reason for finding in getattr(report, kind) if finding.row == row]


@pytest.mark.parametrize(
    ("row", "words"),
    [
        (1, "cannot be decoded"),
        (2, "shows another picture than its `upscale_img_path`"),
        (3, "is 256 x 256, larger than its `upscale_img_path`, 64 x 64"),
        (7, "file is missing"),
    ],
)
def test_a_fault_is_named(row: int, words: str, report: AuditReport) -> None:
    (reason,) = reasons(report, row)
    assert words in reason


def test_one_file_under_two_labels_is_a_fault(report: AuditReport) -> None:
    (fault,) = [fault for fault in report.faults if "and the same file" in fault.reason]
    assert "in row 4" in fault.reason
    (note,) = [note for note in report.notes if "is the same file as" in note.reason]
    assert (note.row, note.reason) == (4, f"is the same file as row {fault.row}")
    assert report.groups[3] == report.groups[int(fault.row or 0) - 1]


def test_notes_are_no_faults(report: AuditReport) -> None:
    assert reasons(report, 5) == reasons(report, 6) == []
    assert reasons(report, 5, "notes") == ["is JPEG by content, not .png"]
    assert reasons(report, 6, "notes") == ["is flat in colour"]
    assert len(report.faults) == 5


def test_every_row_is_counted(report: AuditReport) -> None:
    assert (report.rows, report.files) == (36, 71)
    assert sum(report.class_counts.values()) == 36
    assert report.sizes["img_path"] == {(64, 64): 34, (256, 256): 1}


def test_text_and_json_say_the_same(report: AuditReport) -> None:
    content = json.loads(report.to_json())
    assert len(content["faults"]) == 5
    assert content["faults"][0]["row"] == 1
    assert content["sizes"]["img_path"] == [[64, 64, 34], [256, 256, 1]]
    text = report.to_text()
    assert all(str(finding) in text for finding in (*report.faults, *report.notes))
    assert "... and 4 more faults" in report.to_text(limit=1)


def test_a_clean_set_has_no_fault_and_the_command_says_so(
    toy: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "report.json"
    assert main(["audit", str(toy / "train.csv"), "--workers", "1", "--json", str(file)]) == 0
    assert "36 rows, 72 files, 3 classes; 0 faults" in capsys.readouterr().out
    groups = json.loads(file.read_text(encoding="utf-8"))["groups"]
    assert linked_rows(Manifest.read_csv(toy / "train.csv"), groups=groups).tolist() == groups


def test_the_command_ends_with_2_on_faults(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "train.csv").write_text("img_path\nnone.png\n")
    assert main(["audit", str(tmp_path / "train.csv")]) == 2
    assert "row 1, column `img_path`, none.png: file is missing" in capsys.readouterr().out
    with pytest.raises(SystemExit, match="2"):
        main(["audit", str(tmp_path / "nothing.csv")])


@pytest.mark.skipif(os.name != "posix", reason="names that differ in case or form only")
def test_names_that_another_system_would_merge_are_noted(tmp_path: Path) -> None:
    names = ["a.png", "A.png", "\uac00.png", "\u1100\u1161.png", "b.png"]
    for name in names:
        Image.new("RGB", (16, 16)).save(tmp_path / name)
    (tmp_path / "test.csv").write_text("\n".join(["img_path", *names]), encoding="utf-8")
    notes = audit(tmp_path / "test.csv", workers=1).notes
    assert [(note.row, note.reason) for note in notes if "form only" in note.reason] == [
        (2, "differs from a.png in row 1 in case or Unicode form only"),
        (4, "differs from \uac00.png in row 3 in case or Unicode form only"),
    ]


@pytest.fixture
def folders(tmp_path: Path) -> Path:
    """Two trees of three classes, four images each, of noise."""
    random = np.random.default_rng(0)
    for name in ("tit", "rail", "hoopoe"):
        for kind in ("low", "high"):
            (tmp_path / kind / name).mkdir(parents=True)
        for number in range(4):
            small = random.integers(0, 256, (8, 8, 3), dtype=np.uint8).repeat(4, 0).repeat(4, 1)
            Image.fromarray(small).save(tmp_path / "low" / name / f"{number}.png")
            large = Image.fromarray(small).resize((64, 64), Image.Resampling.NEAREST)
            large.save(tmp_path / "high" / name / f"{number}.jpg", quality=95)
    return tmp_path


def test_folders_are_audited_like_a_table(
    folders: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    low, high = folders / "low", folders / "high"
    shutil.copy(high / "tit/0.jpg", high / "tit/1.jpg")
    (low / "rail/2.png").write_bytes(b"<html>")
    (low / "hoopoe/notes.txt").write_text("seen in May")
    report = audit(low, high_resolution=str(high), workers=1)
    assert (report.rows, report.files) == (12, 24)
    assert [(fault.row, fault.path) for fault in report.faults] == [
        (7, "low/rail/2.png"),
        (10, "low/tit/1.png"),
    ]
    assert "shows another picture than its `high_resolution`" in report.faults[1].reason
    assert [note.path for note in report.notes] == ["low/hoopoe/notes.txt"]
    assert report.class_counts == {"hoopoe": 4, "rail": 4, "tit": 4}
    assert report.sizes["high_resolution"] == {(64, 64): 12}
    assert main(["audit", str(high), "--workers", "1"]) == 0
    assert "12 rows, 12 files, 3 classes; 0 faults, 1 notes" in capsys.readouterr().out


def test_folds_are_dealt_and_verified_by_command(
    folders: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    low, file = folders / "low", folders / "folds.json"
    both = [str(low), str(file), "--high-resolution", str(folders / "high")]
    assert main(["deal", *both, "--splits", "2", "--seed", "3"]) == 0
    assert capsys.readouterr().out.splitlines() == [
        "        fold 0  fold 1",
        "hoopoe       2       2",
        "rail         2       2",
        "tit          2       2",
    ]
    assert main(["verify", *both]) == 0
    assert "is what" in capsys.readouterr().out
    (low / "tit/0.png").write_bytes(b"another picture")
    assert main(["verify", *both]) == 2
    assert "low/tit/0.png: low-resolution file has changed" in capsys.readouterr().err
    assert main(["deal", str(folders / "high"), str(file), "--share", "0.25"]) == 0
    assert capsys.readouterr().out.splitlines()[1] == "hoopoe           3         1"
    for wrong in (["--splits", "9"], ["--share", "0.01", "--label", "x"]):
        code = main(["deal", str(folders / "high"), str(file), *wrong])
        assert code == (2 if "9" in wrong else 0)
    with pytest.raises(SystemExit, match="2"):
        main(["deal", str(folders / "high"), str(file), "--share", "2"])
    with pytest.raises(SystemExit, match="2"):  # a folder where the file should be
        main(["deal", str(folders / "high"), str(folders / "high"), "--splits", "2"])
    assert "Is a directory" in capsys.readouterr().err


def test_crash_and_hang_cost_one_file_each(tmp_path: Path) -> None:
    names = ["a.png", "crash.png", "b.png", "hang.png", "c.png"]
    for name in names:
        Image.fromarray(np.eye(16, dtype=np.uint8) * 255).save(tmp_path / name)
    began = time.monotonic()
    found = inspect_files(
        [str(tmp_path / name) for name in names],
        max_pixels=2**24,
        time_limit=1.0,
        workers=1,
        program=TRAP,
    )
    assert time.monotonic() - began < 60
    assert [type(answer) for answer in found[::2]] == [Inspection] * 3
    assert str(found[1]).startswith("kills its decoder (SIGABRT)")
    assert str(found[3]).startswith("takes too long to decode")


def test_the_processes_do_without_pytorch(tmp_path: Path) -> None:
    Image.new("RGB", (16, 16)).save(tmp_path / "a.png")
    program = _PROGRAM.replace("serve()\n", "assert 'torch' not in sys.modules\nserve()\n")
    assert program != _PROGRAM
    (found,) = inspect_files(
        [str(tmp_path / "a.png")], max_pixels=2**24, time_limit=10, workers=1, program=program
    )
    assert isinstance(found, Inspection)


def test_a_process_that_does_not_start_says_why() -> None:
    with pytest.raises(RuntimeError, match=r"did not start \(exit code 1\)[\s\S]*no such luck"):
        inspect_files(
            ["a.png"],
            max_pixels=1,
            time_limit=1,
            workers=1,
            program="raise OSError('no such luck')",
        )


@pytest.mark.parametrize("name", ["min_side", "max_aspect", "max_pixels", "time_limit", "workers"])
def test_refusals(name: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=f"`{name}` must be"):
        audit(tmp_path / os.devnull, **{name: 0})
