"""Sections that name a part of a family, such as a partition scheme, and hold its options."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Mapping
from types import ModuleType
from typing import Any, ClassVar

from pydantic import ConfigDict, ValidationError, create_model, model_serializer, model_validator
from pydantic_core import InitErrorDetails, PydanticCustomError

from fedsim.config.base import Section
from fedsim.config.families import Family, load_module
from fedsim.errors import ConfigError

_NEEDS = "{choice} '{part}' needs {option}: set it"
_DETAILS = ("type", "loc", "input", "ctx")


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
    """Options that every dump holds, and their values where they are not given. Older versions
    wrote them for every part, and the names of runs depend on them. Add no new option here."""

    @classmethod
    def options_of(cls, part: str) -> type[Section]:
        """The options class of a part, by its name."""
        options: type[Section] = getattr(load_module(cls.family[part]), "Options", Section)
        if not (isinstance(options, type) and issubclass(options, Section)):
            raise ConfigError(f"{cls.family[part]}: Options is no subclass of Section")
        if taken := sorted(options.model_fields.keys() & cls.model_fields.keys()):
            raise ConfigError(
                f"{cls.family[part]}: Options has {taken[0]!r}, which is a setting of every "
                f"{cls.choice}: choose another name"
            )
        return options

    @classmethod
    def known(cls) -> dict[str, type[Section]]:
        """Every setting the section may hold -> the class it belongs to; options of all parts."""
        kinds: list[type[Section]] = [cls]
        for part in cls.family:
            with contextlib.suppress(ConfigError):  # a broken part is told where it is chosen
                kinds.append(cls.options_of(part))
        return {name: kind for kind in reversed(kinds) for name in kind.model_fields}

    @classmethod
    def part_named(cls, name: str) -> str:
        """The part that a value of `choice` means; a file may stand for one."""
        return name

    @property
    def part(self) -> str:
        """The chosen part's name in the family."""
        return self.part_named(getattr(self, self.choice))

    def module(self) -> ModuleType:
        """The chosen part's file."""
        return load_module(self.family[self.part])

    @classmethod
    def parts_with(cls, option: str) -> list[str]:
        """Names of the parts that read an option."""
        return [part for part in cls.family if option in cls.options_of(part).model_fields]

    def given(self) -> dict[str, Any]:
        """The options that were set, of this part and of others."""
        return dict(self.__pydantic_extra__ or {})

    def options(self) -> Any:
        """The chosen part's own settings, an instance of its `Options`."""
        kind = self.options_of(self.part)
        return kind(**{k: v for k, v in self.given().items() if k in kind.model_fields})

    def unread(self) -> list[str]:
        """Names of options that were set and that the chosen part does not read."""
        own = self.options_of(self.part).model_fields
        return [name for name in self.given() if name not in own]

    def without(self, names: list[str]) -> Any:
        """The same section without these options."""
        kept = {name: value for name, value in self.given().items() if name not in names}
        return type(self)(**{name: getattr(self, name) for name in type(self).model_fields}, **kept)

    @model_validator(mode="wrap")
    @classmethod
    def _check_options(cls, given: Any, check: Any) -> Any:
        """Check the section's own fields and the options, and tell all problems at once."""
        found, made = list[InitErrorDetails](), None
        try:
            made = check(given)
            name, extra = getattr(made, cls.choice), made.__pydantic_extra__
        except ValidationError as error:
            if not isinstance(given, Mapping):
                raise
            found += [cls._details(e) for e in error.errors() if e["loc"] != (cls.choice,)]
            name = given.get(cls.choice, cls.model_fields[cls.choice].default)
            extra = {key: given[key] for key in given if key not in cls.model_fields}
        found += cls._settle(name, extra)
        if found:
            raise ValidationError.from_exception_data(cls.__name__, found)
        own = cls.options_of(cls.part_named(name)).model_fields
        for key, value in cls.always_written.items():
            default = own[key].default if key in own else value
            if key in extra and extra[key] == value == default:
                del extra[key]
        return made

    @classmethod
    def _settle(cls, name: Any, extra: dict[str, Any]) -> list[InitErrorDetails]:
        """Replace options by their checked values; returns the problems found."""
        if not isinstance(name, str) or cls.part_named(name) not in cls.family:
            known = ", ".join(map(repr, cls.family))
            unknown = PydanticCustomError("literal_error", "unknown name", {"expected": known})
            return [InitErrorDetails(type=unknown, loc=(cls.choice,), input=name)]
        for key in [key for key, value in extra.items() if value is None]:
            del extra[key]
        found, kind = list[InitErrorDetails](), cls.options_of(cls.part_named(name))
        foreign = [key for key in extra if key not in kind.model_fields]
        owners = cls.known() if foreign else {}
        misspelt = [key for key in foreign if key not in owners]
        for key in misspelt:
            found.append(InitErrorDetails(type="extra_forbidden", loc=(key,), input=extra[key]))
        alone = [(_alone(owners[key], key), [key]) for key in foreign if key in owners]
        for checked, keys in [(kind, [key for key in extra if key not in foreign]), *alone]:
            try:
                own = checked(**{key: extra[key] for key in keys})
                extra.update({key: getattr(own, key) for key in keys})
            except ValidationError as error:
                for problem in error.errors():
                    if problem["type"] != "missing":
                        found.append(cls._details(problem))
                    elif not misspelt:
                        needs = {"choice": cls.choice, "part": name, "option": problem["loc"][-1]}
                        missing = PydanticCustomError("option_missing", _NEEDS, needs)
                        found.append(InitErrorDetails(type=missing, loc=(), input=name))
        return found

    @staticmethod
    def _details(problem: Any) -> InitErrorDetails:
        found: InitErrorDetails = {key: problem.get(key, {}) for key in _DETAILS}  # type: ignore
        return found

    @model_serializer(mode="wrap")
    def _dump(self, dump: Any) -> dict[str, Any]:
        written: dict[str, Any] = dump(self)
        return written | {k: v for k, v in self.always_written.items() if k not in written}


@functools.cache
def _alone(kind: type[Section], name: str) -> type[Section]:
    """A class with one option of a part, to check it without the part's other options."""
    field = kind.model_fields[name]
    fields: dict[str, Any] = {name: (field.annotation, field)}
    return create_model(kind.__name__, __base__=Section, **fields)
