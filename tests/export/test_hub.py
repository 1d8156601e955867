"""The Hub's methods over the one file: folders, the Hub's cache, and uploads that go nowhere."""

import json
from pathlib import Path

import pytest
import torch
from huggingface_hub import HfApi, ModelCard

from lowres_vision.augment import BatchTransform
from lowres_vision.export import Predictor, TrainedModel
from lowres_vision.losses import CrossEntropyLoss
from lowres_vision.models import LowResClassifier
from lowres_vision.resizer import LearnableResizer

CARD = {
    "license": "cc-by-nc-4.0",
    "data": "25 species, 1,048 photos; five folds.",
    "metrics": {"macro-F1, out of fold": 0.71},
    "limits": "Birds that it has never seen get a name too.",
}


@pytest.fixture(scope="module")
def predictor() -> Predictor:
    torch.manual_seed(0)
    model = LowResClassifier("test_resnet.r160_in1k", 2, resizer=LearnableResizer(160))
    read = BatchTransform(32, mean=(0.5,) * 3, std=(0.5,) * 3)
    return Predictor([TrainedModel(model, CrossEntropyLoss(), read)], classes=("heron", "rail"))


def assert_same(found: Predictor, expected: Predictor) -> None:
    assert isinstance(found, Predictor)
    assert found.classes == expected.classes
    batch = torch.arange(2 * 3 * 9 * 9).to(torch.uint8).view(2, 3, 9, 9)
    with torch.no_grad():
        assert torch.equal(found(batch), expected(batch))


def test_a_folder_and_back(predictor: Predictor, tmp_path: Path) -> None:
    folder = tmp_path / "birds"
    predictor.save_pretrained(folder, model_card_kwargs=CARD)
    assert {file.name for file in folder.iterdir()} == {
        "README.md",
        "config.json",
        "model.safetensors",
    }
    assert_same(Predictor.from_pretrained(folder), predictor)
    assert_same(Predictor.load(folder / "model.safetensors"), predictor)
    record = json.loads((folder / "config.json").read_text())["record"]
    assert record["classes"] == ["heron", "rail"]


def test_the_card_says_what_it_was_given_and_what_not(predictor: Predictor) -> None:
    card = predictor.generate_model_card(**CARD)
    assert card.data.license == "cc-by-nc-4.0"
    assert card.data.library_name == "lowres-vision"
    assert card.data.pipeline_tag == "image-classification"
    for text in (*list(CARD.values())[1::2], "| macro-F1, out of fold | 0.71 |", "1. rail"):
        assert text in card.text
    assert "LearnableResizer, `test_resnet.r160_in1k` at 160 x 160" in card.text
    assert "under this name: apache-2.0" in card.text
    bare = ModelCard(str(predictor.generate_model_card(license="mit")))
    assert bare.data.license == "mit"
    assert bare.text.count("Not stated.") == 2
    assert "## Scores\n\nNone." in bare.text


def test_no_licence_no_page(
    predictor: Predictor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []
    monkeypatch.setattr(HfApi, "create_repo", lambda *a, **k: asked.append(k))
    for options in ({}, {"model_card_kwargs": {"data": "birds"}}):
        with pytest.raises(ValueError, match="must state its licence; give it by the Hub's short"):
            predictor.push_to_hub("somebody/birds", **options)
    assert not asked
    with pytest.raises(ValueError, match="must state its licence"):
        predictor.save_pretrained(tmp_path / "birds")


def test_a_push_uploads_the_folder(
    predictor: Predictor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: dict[str, dict] = {}

    class Made:
        repo_id = "somebody/birds"

    def create_repo(self: HfApi, **options: object) -> Made:
        calls["create"] = options
        return Made()

    def upload_folder(self: HfApi, **options: object) -> str:
        calls["upload"] = options
        for file in Path(str(options["folder_path"])).iterdir():
            (tmp_path / file.name).write_bytes(file.read_bytes())
        return "https://hub/commit/1"

    monkeypatch.setattr(HfApi, "create_repo", create_repo)
    monkeypatch.setattr(HfApi, "upload_folder", upload_folder)
    url = predictor.push_to_hub("somebody/birds", private=True, model_card_kwargs=CARD)
    assert url == "https://hub/commit/1"
    assert calls["create"]["private"] is True
    assert calls["upload"]["repo_id"] == "somebody/birds"
    assert ModelCard.load(tmp_path / "README.md").data.license == "cc-by-nc-4.0"
    assert_same(Predictor.from_pretrained(tmp_path), predictor)


def test_a_page_in_the_hubs_cache_is_loaded(predictor: Predictor, tmp_path: Path) -> None:
    page, commit = tmp_path / "models--somebody--birds", "0" * 40
    predictor.save_pretrained(page / "snapshots" / commit, model_card_kwargs=CARD)
    (page / "refs").mkdir()
    (page / "refs" / "main").write_text(commit)
    options = {"cache_dir": tmp_path, "local_files_only": True}
    assert_same(Predictor.from_pretrained("somebody/birds", **options), predictor)


def test_other_arguments_are_refused(predictor: Predictor, tmp_path: Path) -> None:
    predictor.save_pretrained(tmp_path, model_card_kwargs=CARD)
    with pytest.raises(TypeError, match="takes no map_location: all settings are in the file"):
        Predictor.from_pretrained(tmp_path, map_location="cpu")


def test_a_config_of_somebody_elses_changes_nothing(predictor: Predictor, tmp_path: Path) -> None:
    predictor.save_pretrained(tmp_path, model_card_kwargs=CARD)
    (tmp_path / "config.json").write_text('{"classes": ["evil"], "vote": "hard", "members": 7}')
    assert_same(Predictor.from_pretrained(tmp_path), predictor)


def test_a_folder_without_the_file_is_named(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(FileNotFoundError, match=r"model\.safetensors is not a file; give one that"):
        Predictor.from_pretrained(tmp_path)
