"""The page and its model without a browser: nothing is missing, and the figures on it hold."""

import hashlib
import json
import re
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

import numpy as np
import onnxruntime
import pytest

from lowres_vision.data import Manifest, MultiResolutionDataset, make_toy_folders

VOID = {"br", "img", "input", "link", "meta"}


class Document(HTMLParser):
    """Collects references, ids and what needs a name, and refuses tags that are not closed."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.references: list[str] = []
        self.ids: list[str] = []
        self.labelled: set[str] = set()
        self.inputs: set[str] = set()
        self.unnamed: list[dict[str, str | None]] = []
        self.feed(text)
        self.close()
        assert not self.open

    def handle_starttag(self, tag: str, pairs: list[tuple[str, str | None]]) -> None:
        attributes = dict(pairs)
        if tag not in VOID:
            self.open.append(tag)
        self.references += [attributes[key] or "" for key in ("href", "src") if key in attributes]
        self.ids += [attributes["id"] or ""] if "id" in attributes else []
        if tag == "label":
            self.labelled.add(attributes["for"] or "")
        if tag == "input":
            self.inputs.add(attributes["id"] or "")
        if tag == "img" and not attributes.get("alt"):
            self.unnamed.append(attributes)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


@pytest.fixture(scope="module")
def document(page: Path) -> Document:
    return Document((page / "index.html").read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def session(page: Path) -> onnxruntime.InferenceSession:
    return onnxruntime.InferenceSession(page / "model.onnx")


def test_the_page_is_whole_and_names_its_controls(document: Document) -> None:
    assert len(document.ids) == len(set(document.ids))
    assert document.inputs == document.labelled
    assert not document.unnamed


def test_what_the_page_refers_to_exists(document: Document, page: Path) -> None:
    scripts = "".join(file.read_text(encoding="utf-8") for file in page.glob("*.js"))
    imported = re.findall(r'from "\./([\w.]+)"', scripts)
    assert imported
    for reference in [*document.references, *imported]:
        parts = urlsplit(reference)
        if parts.scheme:
            continue
        if parts.path.startswith("../"):  # a page of the site
            file = (page.parents[1] / parts.path[3:]).with_suffix(".md")
        else:
            file = page / unquote(parts.path)
        assert file.is_file(), reference
    assert set(re.findall(r'part\("([\w-]+)"\)', scripts)) <= set(document.ids)


def test_the_certificate_is_of_this_file(page: Path) -> None:
    certificate = json.loads((page / "model.onnx.json").read_text())
    content = (page / "model.onnx").read_bytes()
    assert certificate["sha256"] == hashlib.sha256(content).hexdigest()
    assert certificate["largest_difference"] <= certificate["tolerance"]
    assert len(content) < 300_000


def test_the_model_knows_as_many_held_out_pictures_as_the_page_says(
    page: Path, session: onnxruntime.InferenceSession, tmp_path: Path
) -> None:
    notes = session.get_modelmeta().custom_metadata_map
    text = (page / "index.html").read_text(encoding="utf-8")
    assert f'<span id="held-out">{notes["held out"]}</span>' in text
    stated, count = map(int, notes["held out"].split(" of "))

    drawn = make_toy_folders(tmp_path, classes=10, per_class={"test": count // 10}, seed=1)
    manifest = Manifest.read_folders(drawn / "test")
    assert manifest.classes == tuple(notes["classes"].split("\n"))
    samples = [*MultiResolutionDataset(manifest)]
    images = np.stack([sample.image for sample in samples])
    (outputs,) = session.run(["outputs"], {"images": images})
    np.testing.assert_allclose(outputs.sum(1), 1, atol=1e-5)
    right = int((outputs.argmax(1) == [sample.target for sample in samples]).sum())
    assert len(samples) == count
    assert abs(right - stated) <= 1  # one, should another NumPy draw a bit otherwise


def test_the_samples_are_of_the_model_s_classes(
    page: Path, session: onnxruntime.InferenceSession
) -> None:
    names = session.get_modelmeta().custom_metadata_map["classes"].split("\n")
    samples = {file.stem for file in (page / "samples").iterdir()}
    assert len(samples) == 5
    assert samples <= set(names)
