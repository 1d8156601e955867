"""What a release is made of agrees with itself."""

import tomllib
from pathlib import Path

import pytest
import yaml

import lowres_vision

ROOT = Path(__file__).parents[1]
pytestmark = pytest.mark.skipif(
    not (ROOT / "setup.py").is_file(), reason="what is released is in the checkout only"
)


def test_one_version_and_licence_everywhere() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert project["version"] == citation["version"] == lowres_vision.__version__
    assert project["license"] == citation["license"] == "MIT"
    assert project["name"] == citation["title"] == "lowres-vision"
    assert (ROOT / "LICENSE").read_text().startswith("MIT License")
