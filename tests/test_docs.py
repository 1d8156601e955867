"""Every code block of the README and the documentation runs, or says why it does not.

A page's Python and shell blocks run one after another, the Python ones in one namespace, in a folder
that holds generated data, on a machine without a network. Comments that readers do not see steer it:

    <!-- not run: REASON -->     before a block: it is counted and skipped
    <!-- command: NAME -->       before a block: `.ci/run` runs it
    <!-- smaller: A -> B -->     anywhere: A is replaced by B in the page's blocks
    <!-- before: CODE -->        anywhere: Python that runs before the first block
"""

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import pytest
import timm

import lowres_vision.models
from lowres_vision.data import make_toy_pairs

ROOT = Path(__file__).parents[1]
pytestmark = pytest.mark.skipif(
    not (ROOT / "README.md").is_file(), reason="the documentation is in the checkout only"
)
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
SKIPPED_AT_MOST = 25  # one more is a reason to think


class Block(NamedTuple):
    """A fenced block: its language, code, line number, and why it is not run."""

    language: str
    code: str
    line: int
    reason: str | None


def blocks_of(page: Path) -> list[Block]:
    """Return the page's Python and shell blocks."""
    text = page.read_text(encoding="utf-8")
    swaps = re.findall(r"<!-- smaller: (.*?) -> (.*?) -->", text)
    found = []
    pattern = r"(?:<!-- (?:not run|command): ([^>]*) -->\n)?```(python|sh)\n(.*?)\n```"
    for match in re.finditer(pattern, text, re.DOTALL):
        reason, language, code = match.groups()
        for long, short in swaps:
            code = code.replace(long, short)
        found.append(Block(language, code, text[: match.start()].count("\n") + 1, reason))
    return found


def relative(page: Path) -> str:
    """Return the page's path as it is spoken of."""
    return page.relative_to(ROOT).as_posix()


@pytest.fixture
def work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with data as the pages name it, and no way to fetch weights."""
    make_toy_pairs(tmp_path / "birds", classes=3, per_class=15, test_per_class=3)
    (tmp_path / "examples").symlink_to(ROOT / "examples")
    create = timm.create_model

    def untrained(name: str, **options: object) -> object:
        return create(name, **{**options, "pretrained": False})

    monkeypatch.setattr(lowres_vision.models.timm, "create_model", untrained)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def run_shell(block: Block, page: Path) -> None:
    """Run the commands of a shell block, all of which must be Python's."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "MPLBACKEND": "agg"}
    for line in block.code.replace("\\\n", " ").splitlines():
        command = shlex.split(line, comments=True)
        if command[:1] == ["python"]:
            done = subprocess.run(
                [sys.executable, *command[1:]], env=environment, capture_output=True, text=True
            )
            assert done.returncode == 0, f"{relative(page)}:{block.line} {line}\n{done.stderr}"
        else:
            assert not command, f"{relative(page)}:{block.line} mark {line!r} as not run"


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize("page", [page for page in PAGES if blocks_of(page)], ids=relative)
def test_blocks_run(page: Path, work: Path) -> None:
    names: dict[str, object] = {"__name__": "docs"}
    for code in re.findall(r"<!-- before:(.*?)-->", page.read_text(encoding="utf-8"), re.DOTALL):
        exec(code, names)
    for block in blocks_of(page):
        if block.reason is None and block.language == "python":
            exec(compile("\n" * block.line + block.code, str(page), "exec"), names)
        elif block.reason is None:
            run_shell(block, page)


def test_few_blocks_are_left_out() -> None:
    skipped = [
        f"{relative(page)}:{block.line} {block.reason}"
        for page in PAGES
        for block in blocks_of(page)
        if block.reason
    ]
    print("\n".join(skipped))
    assert len(skipped) <= SKIPPED_AT_MOST
