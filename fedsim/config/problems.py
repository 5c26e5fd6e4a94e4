"""Pydantic's findings in the words of a study's author: place, problem, what to do."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, TypeVar, get_args

from pydantic import BaseModel, ValidationError

from fedsim.config.base import Section
from fedsim.config.chosen import Chosen
from fedsim.config.experiment import Experiment
from fedsim.config.tree import flatten
from fedsim.errors import ConfigError, did_you_mean

SECTIONS: dict[str, type[Section]] = {
    name: field.annotation
    for name, field in Experiment.model_fields.items()
    if isinstance(field.annotation, type) and issubclass(field.annotation, Section)
}
"""The blocks of an experiment by name."""

Loc = tuple[int | str, ...]
SomeSection = TypeVar("SomeSection", bound=Section)

_AUTO = str(("literal['auto']",))

_MUST_BE = {
    "int_type": "a whole number",
    "int_from_float": "a whole number",
    "float_type": "a number",
    "finite_number": "a finite number",
    "bool_type": "true or false",
    "string_type": "text",
    "dict_type": "a mapping of names to values",
    "model_type": "a mapping of settings to values",
    "model_attributes_type": "a mapping of settings to values",
    "tuple_type": "a list in brackets, such as [a, b]",
    "literal_error": "{expected}",
    "greater_than": "above {gt:g}",
    "greater_than_equal": "at least {ge:g}",
    "less_than": "below {lt:g}",
    "less_than_equal": "at most {le:g}",
    "string_pattern_mismatch": "made of letters, digits, '_', '.' and '-', beginning with a letter "
    "or digit",
}
"""Pydantic's kinds of findings in the words of a study's author."""


def section_of(kind: type[SomeSection], **given: Any) -> SomeSection:
    """A section from arguments of a function, which may be paths and numbers of NumPy.

    Raises:
        ConfigError: Listing all that is wrong with them.
    """
    for name, value in given.items():
        if isinstance(value, Path):
            given[name] = str(value)
        elif getattr(value, "ndim", None) == 0:
            given[name] = value.item()
    try:
        return kind(**given)
    except ValidationError as error:
        raise ConfigError(messages(error, kind)) from error


def messages(
    error: ValidationError,
    model: type[BaseModel],
    extra: Iterable[str] = (),
    axes: Mapping[str, Mapping[str, Any]] | None = None,
) -> list[str]:
    """Pydantic's findings as one line each: place, problem, what to do.

    Args:
        error: The findings.
        model: What was checked.
        extra: Names that are known beside the model's own.
        axes: Where settings may come from -> those settings; the first that has one is named.
    """
    items = error.errors()
    # A value that may also be 'auto' is refused once per alternative: say it once.
    choices = {item["loc"][:-1] for item in items if str(item["loc"][-1:]) == _AUTO}
    lines = dict[str, None]()
    for item in items:
        loc = item["loc"]
        if str(loc[-1:]) == _AUTO or (item["type"] == "too_short" and item["input"]):
            continue  # the alternative, or the entry that is wrong, tells it
        either = loc[:-1] in choices
        if item["type"] == "extra_forbidden":
            line = f"unknown setting {_dots(loc)!r}; {_near_setting(loc, model, extra)}"
        elif either:
            line = f"{_message(item, loc[:-1])} or 'auto'"
        else:
            line = _message(item, loc)
        origin = _origin(loc, axes or {})
        lines[f"{origin}: {line}" if origin else line] = None
    return list(lines)


def _message(item: Any, loc: Loc) -> str:
    kind, value, context, where = item["type"], item["input"], item.get("ctx", {}), _dots(loc)
    if kind == "missing":
        return f"{where} is missing"
    if kind == "value_error":
        message = item["msg"].removeprefix("Value error, ")
        return f"{where}: {message}" if where else message
    if kind == "option_missing":
        said = "{choice} {part!r} needs ".format(**context) + _dots((*loc, context["option"]))
        return f"{where}: {said}: set it" if where else f"{said}: set it"
    if kind == "too_short":
        return f"{where} is empty: give at least one"
    if kind == "literal_error" and isinstance(value, str):
        known = re.findall(r"'([^']*)'", context["expected"])
        return f"unknown {where} {value!r}; {did_you_mean(value, known)}"
    if loc[-1:] == ("[key]",):
        where = f"a name in {_dots(loc[:-2])}"
    wanted = _MUST_BE.get(kind)
    if wanted is None:
        return f"{where}: {item['msg']} (got {shown(value)})"
    return f"{where} is {shown(value)}: it must be {wanted.format(**context)}"


def _near_setting(loc: Loc, model: type[BaseModel], extra: Iterable[str]) -> str:
    """The setting that was probably meant: a near name there, or the same name elsewhere."""
    if loc[0] == "options":
        return "a method's options are given as methods.NAME.options"
    owner: Any = model
    for part in loc[:-1]:
        owner = getattr(owner, "model_fields", {}).get(part)
        owner = getattr(owner, "annotation", None)
        # `EarlyStopping | None` stands for the block.
        owner = next((kind for kind in get_args(owner) if hasattr(kind, "model_fields")), owner)
    last = str(loc[-1])
    names = set(_settings(owner)) - {"shared", "source"}
    names |= set(extra) if owner is model else set()
    same = [f"{name}.{last}" for name, section in SECTIONS.items() if last in _settings(section)]
    hint = did_you_mean(last, names)
    if same and not hint.startswith("did"):
        return "did you mean " + " or ".join(map(repr, same)) + "?"
    return hint


def _settings(owner: Any) -> Iterable[str]:
    """Names of the settings of a block, with the options of every part that it may name."""
    if isinstance(owner, type) and issubclass(owner, Chosen):
        return owner.known()
    return getattr(owner, "model_fields", {})


def _origin(loc: Loc, axes: Mapping[str, Mapping[str, Any]]) -> str:
    """Which axis a setting comes from, '' for the shared sections."""
    place = f"{_dots(loc)}."
    for where, settings in axes.items():
        given = [f"{key}." for key, _ in flatten(settings)]
        if any(place.startswith(key) or key.startswith(place) for key in given):
            return where
    return ""


def _dots(loc: Loc) -> str:
    return ".".join(str(part) for part in loc)


def shown(value: Any) -> str:
    """A value as YAML writes it, not too long."""
    if value is None or isinstance(value, bool):
        return str(value).lower() if value is not None else "empty (null)"
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
