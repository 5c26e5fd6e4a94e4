"""Every command and every Python block of the documentation, run."""

from pathlib import Path

import pytest

from tests.conftest import ROOT, SHARED
from tests.docs.blocks import Shell, blocks, pages

DATA = SHARED


def _pages() -> list:
    found = []
    for page in pages():
        run = [b for b in blocks(page) if not b.skip and b.language in ("bash", "python")]
        if run:
            marks = [pytest.mark.slow]
            marks += [pytest.mark.ray] if any(b.ray for b in run) else []
            found.append(pytest.param(page, id=str(page.relative_to(ROOT)), marks=marks))
    return found


@pytest.mark.parametrize("page", _pages())
def test_every_block_of_a_page_runs(
    page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    todo = [block for block in blocks(page) if not block.skip]
    if any(block.needs_data for block in todo) and not DATA.is_dir():
        pytest.skip("no shared/data beside the repository")
    monkeypatch.chdir(tmp_path)
    for name in ("experiments", "docs"):
        (tmp_path / name).symlink_to(ROOT / name)
    shell = Shell(tmp_path, DATA)
    for block in todo:
        try:
            shell.run(block)
        except BaseException as error:
            error.add_note(f"in the block at {block}")
            raise
