from pathlib import Path

import pytest

from lowres_vision.data import DataError, read_table


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "cp949"])
@pytest.mark.parametrize("separator", [",", ";", "\t"])
def test_cells_stand_as_they_are_by_column(encoding: str, separator: str, tmp_path: Path) -> None:
    file = tmp_path / "artists.csv"
    rows = [["name", "years", " genre "], ["모네", "1840 - 1926", ""], ['"A ""b"""', "", " Dada "]]
    text = "\r\n".join(separator.join(row) for row in rows)
    file.write_bytes(text.encode(encoding))
    assert read_table(str(file)) == {
        "name": ["모네", 'A "b"'],
        "years": ["1840 - 1926", ""],
        "genre": ["", " Dada "],  # of the header alone spaces are taken
    }


def test_refusals(tmp_path: Path) -> None:
    file = tmp_path / "artists.csv"
    with pytest.raises(FileNotFoundError, match=r"artists.csv is not a file; give the path of a"):
        read_table(file)
    file.write_text("name,name,genre\nMonet,Impressionism\n")
    with pytest.raises(DataError) as caught:
        read_table(file)
    assert [fault.reason for fault in caught.value.faults] == [
        "header stands twice",
        "has 2 cells, the header has 3",
    ]
