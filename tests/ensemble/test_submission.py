from pathlib import Path

import numpy as np
import pytest

from lowres_vision.ensemble import check_sample, write_submission

CLASSES = ["Azure Tit", "Finch, amber"]


@pytest.fixture
def sample(tmp_path: Path) -> Path:
    path = tmp_path / "sample_submission.csv"
    path.write_text("ID,artist\nb,Azure Tit\na,Azure Tit\n")
    return path


def test_the_samples_order_and_header_are_kept(tmp_path: Path, sample: Path) -> None:
    path = write_submission(
        tmp_path / "out.csv",
        [[0.9, 0.1], [0.2, 0.8]],
        ids=["a", "b"],
        classes=CLASSES,
        sample=sample,
    )
    assert path.read_bytes() == b'ID,artist\nb,"Finch, amber"\na,Azure Tit\n'


def test_without_a_sample_the_given_order_is_kept(tmp_path: Path) -> None:
    path = write_submission(tmp_path / "out.csv", np.array([1, 0]), ids=["x", "y"], classes=CLASSES)
    assert path.read_text() == 'id,label\nx,"Finch, amber"\ny,Azure Tit\n'
    assert [file.name for file in tmp_path.iterdir()] == ["out.csv"]


@pytest.mark.parametrize(
    ("ids", "words"),
    [
        (["a", "c"], "asks for ids without a prediction: 'b'"),
        (["a", "b", "c"], "predictions for ids that .* does not have: 'c'"),
        (["a", "a"], "`ids` must be unique, 'a' stand more than once"),
    ],
)
def test_ids_that_do_not_fit_are_refused(
    ids: list[str], words: str, tmp_path: Path, sample: Path
) -> None:
    with pytest.raises(ValueError, match=words):
        write_submission(
            tmp_path / "out.csv", [0] * len(ids), ids=ids, classes=CLASSES, sample=sample
        )
    with pytest.raises(ValueError, match=words):
        check_sample(sample, ids=ids, classes=CLASSES)
    assert not (tmp_path / "out.csv").exists()


def test_a_sample_is_checked_before_there_are_predictions(tmp_path: Path, sample: Path) -> None:
    check_sample(sample, ids=["a", "b"], classes=CLASSES)
    with pytest.raises(FileNotFoundError, match=r"none\.csv is not a file; give the contest's, or"):
        check_sample(tmp_path / "none.csv", ids=["a", "b"], classes=CLASSES)


def test_a_sample_of_other_classes_is_refused(tmp_path: Path, sample: Path) -> None:
    with pytest.raises(ValueError, match="classes the model does not know: 'Azure Tit'"):
        write_submission(
            tmp_path / "out.csv", [0, 1], ids=["a", "b"], classes=["x", "y"], sample=sample
        )


@pytest.mark.parametrize(
    ("predictions", "words"),
    [
        ([[0.5, 0.5]], r"must be \(2, 2\) probabilities or \(2,\) class indices"),
        ([0.0, 1.0], "got float64 of shape"),
        ([0, 2], r"must be class indices in 0..1, got 0..2"),
        ([[0.5, 0.5], [np.nan, 0.5]], "must be finite"),
    ],
)
def test_predictions_that_do_not_fit_are_refused(
    predictions: object, words: str, tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match=words):
        write_submission(tmp_path / "out.csv", predictions, ids=["a", "b"], classes=CLASSES)  # type: ignore[arg-type]


def test_probabilities_lie_beside_the_submission_in_its_order(tmp_path: Path, sample: Path) -> None:
    p = [[0.9, 0.1], [0.2, 0.8]]
    write_submission(
        tmp_path / "out.csv", p, ids=["a", "b"], classes=CLASSES, sample=sample, probabilities=p
    )
    with np.load(tmp_path / "out.probabilities.npz") as beside:
        assert beside["ids"].tolist() == ["b", "a"]
        assert beside["classes"].tolist() == CLASSES
        np.testing.assert_array_equal(beside["probabilities"], np.float32(p)[::-1])


@pytest.mark.parametrize(
    ("probabilities", "words"),
    [
        ([[3.0, 1.0], [0.5, 0.5]], "are these logits"),
        ([[0.5, 0.5]], r"`probabilities` must be \(2, 2\)"),
    ],
)
def test_what_are_no_probabilities_are_refused_before_anything_is_written(
    probabilities: object, words: str, tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match=words):
        write_submission(
            tmp_path / "out.csv", [0, 1], ids=["a", "b"], classes=CLASSES,
            probabilities=probabilities,  # type: ignore[arg-type]
        )  # fmt: skip
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "must have two columns"),
        (b"\n\n", "must have two columns"),
        (b"id\na\n", "must have two columns"),
        (b"id,label\na,\xe9\n", "is neither UTF-8 nor CP949 text"),
    ],
)
def test_a_sample_that_is_no_table_is_named(content: bytes, words: str, tmp_path: Path) -> None:
    (tmp_path / "sample.csv").write_bytes(content)
    with pytest.raises(ValueError, match=rf"sample\.csv {words}"):
        write_submission(
            tmp_path / "out.csv", [0], ids=["a"], classes=CLASSES, sample=tmp_path / "sample.csv"
        )


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "cp949"])
def test_a_korean_sample_is_read_in_its_encoding(encoding: str, tmp_path: Path) -> None:
    (tmp_path / "sample.csv").write_text("번호,새\r\n가,참새\r\n", encoding=encoding)
    path = write_submission(
        tmp_path / "out.csv", [1], ids=["가"], classes=["까치", "참새"],
        sample=tmp_path / "sample.csv",
    )  # fmt: skip
    assert path.read_text(encoding="utf-8") == "번호,새\n가,참새\n"
