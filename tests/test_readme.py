"""The README's code runs, and `.ci/run` finds its two commands."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
pytestmark = pytest.mark.skipif(
    not (ROOT / "README.md").is_file(), reason="the README is in the checkout only"
)


@pytest.mark.parametrize("page", ["README.md", "docs/index.md"])
def test_the_first_example_runs(page: str) -> None:
    code = re.search(r"```python\n(.*?)```", (ROOT / page).read_text(), re.DOTALL)
    assert code is not None
    names: dict[str, object] = {}
    exec(code[1], names)
    assert names["logits"].shape == (4, 25)  # type: ignore[attr-defined]


@pytest.mark.parametrize("name", ["main job", "test"])
def test_the_two_commands_are_marked_for_ci(name: str) -> None:
    block = rf"<!-- command: {name} -->\n```sh\n(pip install -e \S+ && python .+)\n```"
    assert re.search(block, (ROOT / "README.md").read_text())
