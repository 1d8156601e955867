"""Every code block of the README and the documentation runs, or says why it does not.

A page's Python and shell blocks run one after another, the Python ones in one namespace, in a
folder that holds generated data, on a machine without a network. Comments that readers do not see
steer it:

    <!-- not run: REASON -->     before a block: it is counted and skipped
    <!-- command: NAME -->       before a block: `.ci/run` runs it
    <!-- smaller: A -> B -->     anywhere: A is replaced by B in the page's blocks
    <!-- before: CODE -->        anywhere: Python that runs before the first block
    <!-- after: CODE -->         anywhere: Python that runs after the last one, to check its numbers
"""

import ast
import importlib
import inspect
import pkgutil
import re
import shlex
from pathlib import Path
from typing import NamedTuple

import pytest
import timm

import lowres_vision
import lowres_vision.models
from lowres_vision.data import make_toy_pairs

ROOT = Path(__file__).parents[1]
pytestmark = pytest.mark.skipif(
    not (ROOT / "README.md").is_file(), reason="the documentation is in the checkout only"
)
PAGES = [*ROOT.glob("README.md"), *sorted((ROOT / "docs").rglob("*.md"))]
SKIPPED_AT_MOST = 28  # one more is a reason to think


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
    """Run the commands of a shell block, all of which must be this package's, in this process."""
    for line in block.code.replace("\\\n", " ").splitlines():
        command = shlex.split(line, comments=True)
        if command[:2] == ["python", "-m"] and command[2].startswith("lowres_vision"):
            main = importlib.import_module(f"{command[2]}.__main__").main
            assert not main(command[3:]), f"{relative(page)}:{block.line} {line}"
        else:
            assert not command, f"{relative(page)}:{block.line} mark {line!r} as not run"


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize("page", [page for page in PAGES if blocks_of(page)], ids=relative)
def test_blocks_run(page: Path, work: Path) -> None:
    names: dict[str, object] = {"__name__": "docs"}
    text = page.read_text(encoding="utf-8")
    for code in re.findall(r"<!-- before:(.*?)-->", text, re.DOTALL):
        exec(code, names)
    for block in blocks_of(page):
        if block.reason is None and block.language == "python":
            exec(compile("\n" * block.line + block.code, str(page), "exec"), names)
        elif block.reason is None:
            run_shell(block, page)
    for code in re.findall(r"<!-- after:(.*?)-->", text, re.DOTALL):
        exec(code, names)


def test_few_blocks_are_left_out() -> None:
    skipped = [
        f"{relative(page)}:{block.line} {block.reason}"
        for page in PAGES
        for block in blocks_of(page)
        if block.reason
    ]
    print("\n".join(skipped))
    assert len(skipped) <= SKIPPED_AT_MOST


def test_every_module_has_a_page_with_all_its_names() -> None:
    parts = [part.name for part in pkgutil.iter_modules(lowres_vision.__path__)]
    public = {name for name in parts if not name.startswith("_")}
    pages = {page.stem: page.read_text() for page in (ROOT / "docs/api").glob("*.md")}
    assert set(pages) == public
    for part, text in pages.items():
        module = importlib.import_module(f"lowres_vision.{part}")
        assert f".. automodule:: {module.__name__}\n   :members:\n" in text
        for name in module.__all__:
            value = getattr(module, name)
            assert inspect.getdoc(value), f"{part}.{name}"
            if not (inspect.isclass(value) or inspect.isroutine(value)):
                assert f".. autodata:: {module.__name__}.{name}\n" in text


def test_every_page_is_in_a_table_of_contents() -> None:
    listed = set()
    for page in PAGES:
        for contents in re.findall(r"```{toctree}\n(.*?)```", page.read_text(), re.DOTALL):
            entries = [line for line in contents.splitlines() if line and line[0] != ":"]
            listed |= {(page.parent / f"{entry}.md").resolve() for entry in entries}
    pages = {page for page in PAGES if page.name not in ("README.md", "index.md")}
    assert pages <= listed


def test_the_catalogue_leads_to_pages_and_to_every_picture() -> None:
    text = (ROOT / "docs/catalogue.md").read_text(encoding="utf-8")
    rows = [line.strip("| ").split(" | ") for line in text.splitlines() if "](" in line]
    assert len(rows) > 30
    for part, _, page, *_ in rows:
        assert "](" in page, part
        module, *others = re.findall(r"`([\w.]+)`", part) or [""]
        if "." in module:
            home, first = module.split(".")
            names = vars(importlib.import_module(f"lowres_vision.{home}"))
            assert {first, *others} <= names.keys(), part
    scripts = {script.stem for script in (ROOT / "docs/gallery").glob("*.py")}
    assert set(re.findall(r"\(pictures/(\w+)\.rst\)", text)) == scripts


def text_of(node: ast.expr) -> str | None:
    """Return a string's text with … where a value is filled in; None of another expression."""
    if isinstance(node, ast.JoinedStr):
        parts = (part.value if isinstance(part, ast.Constant) else "…" for part in node.values)
        return "".join(map(str, parts))
    return node.value if isinstance(node, ast.Constant) and isinstance(node.value, str) else None


def texts_in_code() -> tuple[set[str], set[str]]:
    """Return all texts of the package, and those that an error or a fault says first."""
    texts, errors = set(), set()
    for file in (ROOT / "lowres_vision").rglob("*.py"):
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.expr) and (text := text_of(node)):
                texts.add(text)
            call = node.exc if isinstance(node, ast.Raise) else node
            if not (isinstance(call, ast.Call) and call.args):
                continue
            name = ast.unparse(call.func)
            says = name == "Fault" if call is node else name not in ("DataError", "SystemExit")
            if says and (text := text_of(call.args[0])) and " " in text:
                errors.add(text)
    return texts, errors


def fits(quote: str, text: str) -> bool:
    """Whether a text is what the page quotes, which may leave out the end of a long one."""
    if len(quote.replace("…", "")) < 15:
        return quote == text
    at = 0
    for part in re.split("…+", quote):
        at = text.find(part, at) + len(part)
        if at < len(part):
            return False
    return True


def test_the_errors_page_has_what_the_code_says() -> None:
    rows = (ROOT / "docs/errors.md").read_text(encoding="utf-8").split("\n| ")[1:]
    cells = [row.split(" | ")[0] + " " for row in rows]
    quotes = [quote.strip() for cell in cells for quote in re.findall(r"``(?!`)(.+?)``", cell)]
    texts, errors = texts_in_code()
    assert not [quote for quote in quotes if not any(fits(quote, text) for text in texts)]
    # What says what an argument must be is its own cure.
    bare = {text for text in errors if "must" not in text}
    assert len(bare) > 100
    assert not [text for text in bare if not any(fits(quote, text) for quote in quotes)]


def test_the_tests_that_the_docs_name_exist() -> None:
    for page in PAGES:
        for name in re.findall(r"tests/[\w/]+\.py", page.read_text(encoding="utf-8")):
            assert (ROOT / name).is_file(), f"{relative(page)} names {name}"
