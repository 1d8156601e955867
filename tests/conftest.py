"""Data that several tests read."""

import os
from pathlib import Path

# Before torch is imported: on tensors as small as these a second thread only spins, for four times
# the processor time. Tests of several threads ask for them.
os.environ.setdefault("OMP_NUM_THREADS", "1")

import pytest

from lowres_vision.data import make_toy_pairs


@pytest.fixture(scope="session")
def toy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Generated pairs of three classes, twelve each, in the contest's layout; not to be written."""
    folder = tmp_path_factory.mktemp("toy")
    return make_toy_pairs(folder, classes=3, per_class=12, test_per_class=4)


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The real test data, where there is some."""
    folder = os.environ.get("LOWRES_VISION_DATA")
    if not folder:
        pytest.skip("LOWRES_VISION_DATA names no folder of real test data")
    return Path(folder)
