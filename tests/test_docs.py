"""What the documentation promises, as far as it can be checked in seconds.

Blocks are run in tests/docs/test_blocks.py.
"""

import ast
import importlib.util
import re
import shlex
from functools import cache
from pathlib import Path
from types import ModuleType

import pytest
import yaml

from fedsim.config import Experiment
from fedsim.config.base import Section
from fedsim.config.families import SCHEMES
from fedsim.config.study_file import load_study, parse_study
from fedsim.methods import METHODS
from tests.conftest import ROOT
from tests.docs.blocks import RUN, SHOWN, TAKES_SETTINGS, Block, blocks, pages

PAGES = pages()
BLOCKS = [block for page in PAGES for block in blocks(page)]
LINK = re.compile(r"(?<!\!)\[[^\]]*\]\(([^)\s]+)\)")
HEADING = re.compile(r"^#+ (.+)$", re.MULTILINE)


@cache
def generate() -> ModuleType:
    spec = importlib.util.spec_from_file_location("docs_generate", ROOT / "docs" / "generate.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def prose(page: Path) -> str:
    """A page without its fenced blocks."""
    return re.sub(r"^```.*?^```$", "", page.read_text(encoding="utf-8"), flags=re.M | re.S)


def anchors(page: Path) -> set[str]:
    """What a link may name within a page."""
    titles = (re.sub(r"[^\w\- ]", "", title.lower()) for title in HEADING.findall(prose(page)))
    return {title.strip().replace(" ", "-") for title in titles}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_somewhere(page: Path):
    broken = []
    for link in LINK.findall(prose(page)):
        if link.startswith("https://"):
            continue
        name, _, anchor = link.partition("#")
        target = (page.parent / name).resolve() if name else page
        if not target.exists() or (anchor and anchor not in anchors(target)):
            broken.append(link)
    assert broken == []


def test_every_page_can_be_reached_from_the_readme():
    reached, todo = set[Path](), [ROOT / "README.md"]
    while todo:
        page = todo.pop()
        if page in reached or not page.is_file():
            continue
        reached.add(page)
        links = (link.partition("#")[0] for link in LINK.findall(prose(page)))
        todo += [(page.parent / link).resolve() for link in links if link.endswith(".md")]
    assert set(PAGES) - reached == set()


@pytest.mark.parametrize("name", ["cli.md", "configuration.md", "tables.md"])
def test_generated_pages_are_current(name: str):
    current = (ROOT / "docs" / name).read_text(encoding="utf-8")
    assert current == generate().pages()[name], "run: python docs/generate.py"


def test_every_setting_has_a_meaning():
    meanings = {found.key: found.meaning for found in generate().settings()}
    sections = {
        f"{section}.{name}"
        for section, field in Experiment.model_fields.items()
        if isinstance(field.annotation, type) and issubclass(field.annotation, Section)
        for name in field.annotation.model_fields
    } - {"models.classifier"}  # a block of its own
    assert sections | {"models.classifier.name"} <= set(meanings)
    assert [key for key, meaning in meanings.items() if not meaning] == []
    readers = [found.parts for found in generate().settings() if found.key == "distill.layer"]
    assert readers == [("vae",), ("FILE.py:FUNCTION",)], "options are told part by part"
    assert set(generate().MEANINGS) <= set(meanings), "a setting that is gone is still described"


def test_every_command_and_option_is_explained_and_shown():
    text = "\n".join(page.read_text() for page in PAGES if page.name != "cli.md")
    for name, (told, parameters) in generate().commands().items():
        assert len(told.strip()) > 20, name
        assert re.search(rf"^fedsim {name}\b", text, re.M), f"no page shows fedsim {name}"
        for p in parameters:
            assert p.help, f"{name} {p.name} has no help"
            assert not p.name.startswith("-") or f" {p.name}" in text, f"no page shows {p.name}"


def test_every_method_has_its_page():
    assert {path.stem for path in (ROOT / "docs" / "methods").glob("*.md")} == set(METHODS)


def test_every_scheme_is_described():
    text = (ROOT / "docs" / "how-to" / "partitions.md").read_text(encoding="utf-8")
    schemes = [line.split("`")[1] for line in text.splitlines() if line.startswith("| `")]
    assert sorted(schemes) == sorted(SCHEMES)


def test_decisions_are_listed():
    folder = ROOT / "docs" / "decisions"
    index = (folder / "README.md").read_text(encoding="utf-8")
    numbers = [path.name for path in sorted(folder.glob("0*.md"))]
    assert numbers == re.findall(r"\((\d{4}-[\w-]+\.md)\)", index)
    assert [name[:4] for name in numbers] == [f"{n:04}" for n in range(1, len(numbers) + 1)]


@pytest.mark.parametrize("block", BLOCKS, ids=str)
def test_every_block_can_be_read(block: Block):
    assert block.language in (*RUN, *SHOWN), f"say what it is: {', '.join(RUN)} or text"
    if block.language == "python":
        ast.parse(block.text)
    elif block.language == "yaml":
        tree = yaml.safe_load(block.text)
        study = parse_study({"study": "docs", "methods": ["zero_shot"], **tree}, source=str(block))
        study.experiments(METHODS)
        for name, axes in study.tune.grid.items():
            for key in axes:
                assert key.split(".")[0] in (*Experiment.model_fields, "options"), f"{name}: {key}"
    elif block.language == "bash":
        for command in block.commands():
            assert shlex.split(command, comments=True), command


def test_commands_of_skipped_blocks_exist():
    known = generate().commands()
    for block in BLOCKS:
        for name in re.findall(r"^fedsim (\w+)", block.text, re.M):
            assert name in known, f"{block}: fedsim {name}"


def test_settings_of_shown_commands_can_be_read():
    """Also of blocks that are not run: every study of the repository with its overrides."""
    seen = 0
    for block in BLOCKS:
        for command in block.commands() if block.language == "bash" else ():
            words = shlex.split(command, comments=True)
            if words[:1] != ["fedsim"] or words[1] not in TAKES_SETTINGS:
                continue
            file, *rest = words[2:]
            if not (ROOT / file).is_file():
                continue
            overrides = [word for word in rest if "=" in word and not word.startswith("-")]
            study = load_study(ROOT / file, overrides)
            assert study.experiments(METHODS), f"{block}: {command}"
            seen += 1
    assert seen > 20


def test_figures_name_their_study():
    """Every block of figures is closed, so that `docs/fill_tables.py` can fill it."""
    for page in PAGES:
        text = page.read_text(encoding="utf-8")
        kinds = "table|matrix|differences|reach|domains|clients|costs"
        opened = re.findall(rf"<!-- ([\w-]+-(?:{kinds}))(?: \w+)* -->", text)
        assert opened == re.findall(rf"<!-- /([\w-]+-(?:{kinds})) -->", text), page
