"""Sections that name a part of a family, such as a partition scheme, and hold its options."""

from __future__ import annotations

from collections.abc import Mapping
from types import ModuleType
from typing import Any, ClassVar

from pydantic import ConfigDict, ValidationError, model_serializer, model_validator
from pydantic_core import InitErrorDetails, PydanticCustomError

from fedsim.config.base import Section
from fedsim.config.families import Family, load_module


class Chosen(Section):
    """A section that names one part of a family, with that part's options beside its own fields.

    The part's file owns its options: `options()` is an instance of the `Options` class there.
    Several runs may share a section, so options of other parts of the family are allowed; they
    change nothing. An option that no part of the family knows is refused. Null leaves an option at
    its default.
    """

    model_config = ConfigDict(extra="allow")

    family: ClassVar[Family]
    """The parts that may be named."""
    choice: ClassVar[str]
    """The field that names one."""
    always_written: ClassVar[Mapping[str, Any]] = {}
    """Options that every dump holds, with the value they have where they are not given. Older
    versions wrote them for every part, and the names of runs depend on it. A new option does not
    belong here."""

    @classmethod
    def options_of(cls, part: str) -> type[Section]:
        """The options class of a part, by its name."""
        options: type[Section] = load_module(cls.family[part]).Options
        return options

    @property
    def part(self) -> str:
        """The chosen part's name in the family."""
        name: str = getattr(self, self.choice)
        return name

    def module(self) -> ModuleType:
        """The chosen part's file."""
        return load_module(self.family[self.part])

    def given(self) -> dict[str, Any]:
        """The options that were set, of this part and of others."""
        return dict(self.__pydantic_extra__ or {})

    def options(self) -> Any:
        """The chosen part's own settings, an instance of its `Options`."""
        return self._own(self.given())

    def unread(self) -> list[str]:
        """Names of options that were set and that the chosen part does not read."""
        own = self.options_of(self.part).model_fields
        return [name for name in self.given() if name not in own]

    @classmethod
    def parts_with(cls, option: str) -> list[str]:
        """Names of the parts that read an option."""
        return [part for part in cls.family if option in cls.options_of(part).model_fields]

    def without(self, names: list[str]) -> Any:
        """The same section without these options."""
        kept = {name: value for name, value in self.given().items() if name not in names}
        return type(self)(**{name: getattr(self, name) for name in type(self).model_fields}, **kept)

    def _own(self, given: Mapping[str, Any]) -> Section:
        kind = self.options_of(self.part)
        return kind(**{name: value for name, value in given.items() if name in kind.model_fields})

    @model_validator(mode="after")
    def _check_options(self) -> Any:
        name = self.part
        if name not in self.family:
            known = ", ".join(map(repr, self.family))
            error = PydanticCustomError("literal_error", "unknown name", {"expected": known})
            raise self._refused([InitErrorDetails(type=error, loc=(self.choice,), input=name)])
        extra = self.__pydantic_extra__
        assert extra is not None
        for key in [key for key, value in extra.items() if value is None]:
            del extra[key]
        own = self._own(extra)
        wrong = []
        for key, value in extra.items():
            if key in type(own).model_fields:
                extra[key] = getattr(own, key)
                continue
            owners = self.parts_with(key)
            if not owners:
                wrong.append(InitErrorDetails(type="extra_forbidden", loc=(key,), input=value))
            else:
                owner = self.options_of(owners[0])
                checked = owner.__pydantic_validator__.validate_assignment(
                    owner.model_construct(), key, value
                )
                extra[key] = getattr(checked, key)
        if wrong:
            raise self._refused(wrong)
        for key, value in self.always_written.items():
            if key in extra and extra[key] == value:
                del extra[key]
        return self

    def _refused(self, problems: list[InitErrorDetails]) -> ValidationError:
        return ValidationError.from_exception_data(type(self).__name__, problems)

    @model_serializer(mode="wrap")
    def _dump(self, dump: Any) -> dict[str, Any]:
        written: dict[str, Any] = dump(self)
        return written | {k: v for k, v in self.always_written.items() if k not in written}
