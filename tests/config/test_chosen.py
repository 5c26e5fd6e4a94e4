"""A section that names a part: its options, which of them are read, and what is refused."""

from pathlib import Path
from typing import Any, ClassVar

import pytest
from pydantic import ValidationError

from fedsim.config.chosen import Chosen
from fedsim.config.families import SERVER_OPTIMISERS, Family
from fedsim.config.sections import ServerConfig
from fedsim.errors import ConfigError

ONE = """
from pydantic import Field, model_validator
from fedsim.config.base import Section

class Options(Section):
    speed: float = Field(gt=0)
    depth: int = 3

    @model_validator(mode="after")
    def _together(self):
        if self.depth > self.speed:
            raise ValueError("depth is above speed")
        return self
"""
TWO = """
from fedsim.config.base import Section

class Options(Section):
    words: tuple[str, ...] = ()
"""


@pytest.fixture
def block(tmp_path: Path) -> type[Chosen]:
    (tmp_path / "one.py").write_text(ONE)
    (tmp_path / "two.py").write_text(TWO)

    class Block(Chosen):
        family: ClassVar[Family] = {n: str(tmp_path / f"{n}.py") for n in ("one", "two")}
        choice: ClassVar[str] = "name"
        always_written: ClassVar[dict[str, Any]] = {"depth": 3}

        name: str = "one"
        size: int = 1

    return Block


def problems(kind: type[Chosen], **given: Any) -> list[tuple[str, tuple[int | str, ...]]]:
    with pytest.raises(ValidationError) as caught:
        kind.model_validate(given)
    return [(problem["type"], problem["loc"]) for problem in caught.value.errors()]


def test_options_are_checked_by_the_part_that_owns_them(block: type[Chosen]):
    assert block(speed=9, depth=4).options().model_dump() == {"speed": 9.0, "depth": 4}
    assert problems(block, speed=0.0) == [("greater_than", ("speed",))]
    assert problems(block, speed=2, depth=4) == [("value_error", ())]
    assert problems(block, name="two", speed=0.0) == [("greater_than", ("speed",))]
    # Options of another part are checked one by one: that part may need more.
    assert block(name="two", depth=4).given() == {"depth": 4}


def test_a_missing_option_says_which_part_needs_it(block: type[Chosen]):
    with pytest.raises(ValidationError, match="name 'one' needs speed: set it"):
        block()
    assert problems(block, sped=2) == [("extra_forbidden", ("sped",))]  # the cause, not the effect


def test_all_problems_are_told_at_once(block: type[Chosen]):
    found = problems(block, size="x", speed=-1, words=3, nosuch=1)
    places = {("size",), ("speed",), ("words",), ("nosuch",)}
    assert {loc for _, loc in found} == places
    assert problems(block, name="three", size="x") == [
        ("int_type", ("size",)),
        ("literal_error", ("name",)),
    ]
    assert problems(block, name=3, speed=1) == [("literal_error", ("name",))]


def test_options_that_are_not_read_can_be_left_out(block: type[Chosen]):
    shared = block(name="two", speed=2.0, words=())
    assert shared.unread() == ["speed"]
    assert shared.without(shared.unread()) == block(name="two", words=())


def test_a_dump_holds_what_it_always_held(block: type[Chosen]):
    dump = {"name": "one", "size": 1, "speed": 9.0, "depth": 3}
    assert block(speed=9).model_dump() == block(speed=9, depth=3).model_dump() == dump
    assert block(speed=9, depth=None) == block(speed=9, depth=3) == block.model_validate(dump)
    assert block(name="two").model_dump() == {"name": "two", "size": 1, "depth": 3}
    assert "words" not in block(name="two", words=None).model_dump()


def test_a_given_option_reaches_a_part_with_another_default(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """`server.momentum` is always written as 0.9. A part whose default is 0 is still given it."""
    (tmp_path / "mine.py").write_text(
        "from fedsim.config.base import Section\n\n\nclass Options(Section):\n"
        "    momentum: float = 0.0\n"
    )
    monkeypatch.setitem(SERVER_OPTIMISERS, "mine", str(tmp_path / "mine.py"))
    assert ServerConfig(optimizer="mine", momentum=0.9).options().momentum == 0.9
    assert ServerConfig(optimizer="mine").options().momentum == 0.0


def test_an_option_with_the_name_of_a_setting_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    (tmp_path / "mine.py").write_text(
        "from fedsim.config.base import Section\n\n\nclass Options(Section):\n    lr: float = 0.0\n"
    )
    monkeypatch.setitem(SERVER_OPTIMISERS, "mine", str(tmp_path / "mine.py"))
    with pytest.raises(ConfigError, match="Options has 'lr'"):
        ServerConfig(optimizer="mine")


def test_a_broken_part_is_told_only_where_it_is_chosen(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    (tmp_path / "broken.py").write_text("1 / 0\n")
    monkeypatch.setitem(SERVER_OPTIMISERS, "broken", str(tmp_path / "broken.py"))
    assert ServerConfig(momentum=0.5).given() == {"momentum": 0.5}
    with pytest.raises(ConfigError, match="fails to import"):
        ServerConfig(optimizer="broken")
