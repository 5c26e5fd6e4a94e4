"""Writes the reference pages that follow from the code: cli.md, configuration.md, tables.md.

Run `python docs/generate.py` to write them; with `--check` it only names those not current.
"""

from __future__ import annotations

import ast
import inspect
import itertools
import json
import sys
import types
import typing
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

from fedsim.config import Experiment
from fedsim.config.base import Section
from fedsim.config.chosen import Chosen
from fedsim.config.study_file import StudyFile
from fedsim.config.tune import EarlyStopping, TuneConfig
from fedsim.results.tables.schema import TABLES

DOCS = Path(__file__).parent

# What a field means, where its docstring in the code does not say it.
MEANINGS = {
    "data.classnames": "Names in label order, instead of those in the data",
    "data.image_column": "Key or column of images or features, if not called as usual",
    "data.label_column": "Key or column of labels",
    "data.client_column": "Key or column of recorded clients",
    "data.domain_column": "Key or column of domains",
    "data.train_split": "Which split of the source clients train on; never `test`",
    "data.val_fraction": "Share of train carved out as val where the source has none",
    "data.test_fraction": "Share of train carved out as test where the source has none",
    "data.max_train_samples": "Training samples in all, at most; class shares are kept",
    "partition.scheme": "The law of the partition, see [partitions](how-to/partitions.md)",
    "partition.num_clients": "Simulated clients; `train.cohort_size` take part in a round",
    "partition.classes_per_client": "Classes each client holds under `pathological`",
    "partition.min_samples": "Smallest client; met by moving samples from the largest ones",
    "models.generator_steps": "Denoising steps; by default the generator's own",
    "models.generator_guidance": "Classifier-free guidance; by default the generator's own",
    "train.rounds": "Communication rounds",
    "train.local_epochs": "Passes over a client's own data per round",
    "train.batch_size": "Samples per local step",
    "train.optimizer": "Of local steps; a new one each round. `adamw` has eps 1e-4",
    "train.lr": "Learning rate of the clients' local steps",
    "train.momentum": "Of `sgd`",
    "train.weight_decay": "Of either optimiser",
    "engine.backend": "`ray`, or `local`: all in this process, with equal results",
    "resources.cpus_per_client": "CPUs of one client actor",
    "resources.num_actors": "Client actors of a run; auto: as many as help",
    "failures.policy": "End the run, try the client again, or go on without it",
    "failures.retries": "How often `retry` tries again",
    "evaluation.batch_size": "Samples per step of evaluation; memory only",
    "report.reference_method": "Whom the others are compared with; by default the first `fedavg*`",
    "study": "Name of the study, and of its folder of results",
    "output": "Folder of studies, or its URL on object storage",
    "seeds": "One run per method, partition and seed",
}


class Setting(NamedTuple):
    """One setting of a study."""

    key: str
    """Its dotted name."""
    kind: str
    """Its type in words."""
    default: str
    meaning: str
    parts: tuple[str, ...] = ()
    """Of a part's option: the parts that have this very option, such as `("convnet", "vit")`."""


def settings() -> Iterator[Setting]:
    """Every setting of a study; after a section's own, those of the parts that it may name."""
    for model, prefix in _models():
        yield from _fields(model, prefix)
        if issubclass(model, Chosen):
            yield from _options(model, prefix)


def _fields(model: type[Section], prefix: str) -> Iterator[Setting]:
    said = _docstrings(model)
    for name, field in model.model_fields.items():
        if _section(field.annotation) or (prefix, name) in _HIDDEN:
            continue
        key = f"{prefix}{name}"
        kind = _type(field.annotation) + _limits(field.metadata)
        if issubclass(model, Chosen) and name == model.choice:
            kind = _quoted(model.family)
        yield Setting(key, kind, _default(field, key), MEANINGS.get(key) or said.get(name, ""))


def _options(model: type[Chosen], prefix: str) -> Iterator[Setting]:
    """Options of all parts; parts that have the same one share a row."""
    rows: dict[Setting, list[str]] = {}
    for part in model.family:
        for found in _fields(model.options_of(part), prefix):
            rows.setdefault(found, []).append(part)
    for found, parts in rows.items():
        yield found._replace(parts=tuple(parts))


def _quoted(names: Iterable[str]) -> str:
    return ", ".join(f"`{name}`" for name in names)


_HIDDEN = {("", "shared"), ("", "source"), ("", "tune")}


def _models() -> Iterator[tuple[type[Section], str]]:
    yield StudyFile, ""
    yield TuneConfig, "tune."
    yield EarlyStopping, "tune.early_stopping."
    yield from _sections(Experiment, "")


def _sections(model: type[Section], prefix: str) -> Iterator[tuple[type[Section], str]]:
    """The blocks of a model, and those within them."""
    for name, field in model.model_fields.items():
        if section := _section(field.annotation):
            yield section, f"{prefix}{name}."
            yield from _sections(section, f"{prefix}{name}.")


def _section(annotation: Any) -> type[Section] | None:
    is_section = inspect.isclass(annotation) and issubclass(annotation, Section)
    return annotation if is_section else None


def _docstrings(model: type[Section]) -> dict[str, str]:
    """The string under each attribute of a class and of the sections it extends."""
    base = model.__base__
    found = _docstrings(base) if base is not None and issubclass(base, Section) else {}
    tree = ast.parse(inspect.getsource(sys.modules[model.__module__]))
    body = next(
        n.body for n in tree.body if isinstance(n, ast.ClassDef) and n.name == model.__name__
    )
    for before, after in itertools.pairwise(body):
        is_text = isinstance(after, ast.Expr) and isinstance(after.value, ast.Constant)
        if isinstance(before, ast.AnnAssign) and isinstance(before.target, ast.Name) and is_text:
            found[before.target.id] = " ".join(str(after.value.value).split()).rstrip(".")
    return found


_WORDS = {str: "text", int: "whole number", float: "number", bool: "true, false", dict: "mapping"}
_BOUNDS = {"gt": "above", "ge": "at least", "lt": "below", "le": "at most"}


def _type(annotation: Any) -> str:
    """A type in words."""
    origin, inside = typing.get_origin(annotation), typing.get_args(annotation)
    if origin is typing.Annotated:
        return _type(inside[0]) + _limits(inside[1:])
    if origin is typing.Literal:
        return ", ".join(f"`{value}`" for value in inside)
    if origin in (types.UnionType, typing.Union):
        return " or ".join("null" if part is type(None) else _type(part) for part in inside)
    if origin is tuple:
        return f"list of {_type(inside[0])}"
    if origin is dict:
        return f"mapping to {_type(inside[1])}"
    if _section(annotation):
        return "block"
    return _WORDS.get(annotation, "any value")


def _limits(metadata: Any) -> str:
    found = []
    for item in metadata:
        parts = getattr(item, "metadata", None) or [item]
        for part in parts:
            found += [
                f"{word} {getattr(part, name):g}"
                for name, word in _BOUNDS.items()
                if getattr(part, name, None) is not None
            ]
    return f" ({', '.join(found)})" if found else ""


def _default(field: FieldInfo, key: str) -> str:
    if key == "study":
        return "the file's name"
    if field.default is PydanticUndefined:
        return "required"
    value = field.default
    return f"`{json.dumps(list(value) if isinstance(value, tuple) else value)}`"


def configuration_page() -> str:
    """Every setting, by section."""
    lines = [
        "# Settings",
        "",
        "Generated by `python docs/generate.py`. Sections and keys of a study file. On the command",
        "line a setting is written with a dot, `train.lr=0.1`; in a study `train: {lr: 0.1}` and",
        "`train.lr: 0.1` are the same.",
        "",
        "Under `methods`, each name holds the method's own settings: `use` (a method of",
        "[the README's list](../README.md#documentation), or `FILE.py` or `FILE.py:CLASS`; by",
        "default the name itself), `options` (what that method alone knows, see its page), and any",
        "setting of a section below, which then holds for this method only.",
    ]
    titles = {prefix: (model.__doc__ or "").splitlines()[0] for model, prefix in _models()}
    shown = None
    for found in settings():
        prefix = found.key.rpartition(".")[0]
        if (prefix, bool(found.parts)) != shown:
            if found.parts:
                lines += ["", "| option | read by | type | default | meaning |"]
            else:
                title = titles[f"{prefix}." if prefix else ""]
                lines += ["", f"## {prefix or 'A study'}", "", title]
                lines += ["", "| key | type | default | meaning |"]
            lines.append("|---|---|---|---|" + "---|" * bool(found.parts))
            shown = prefix, bool(found.parts)
        read_by = f"{_quoted(found.parts)} | " * bool(found.parts)
        kind = found.kind.replace("|", "\\|")
        lines.append(f"| `{found.key}` | {read_by}{kind} | {found.default} | {found.meaning} |")
    return "\n".join(lines) + "\n"


class Parameter(NamedTuple):
    """An argument or option of a command."""

    name: str
    """`CONFIG`, or `--address`."""
    takes: str
    """What follows an option; empty for flags and arguments."""
    required: bool
    help: str
    many: bool = False


def commands() -> dict[str, tuple[str, list[Parameter]]]:
    """The command line's commands: name -> help and parameters."""
    from fedsim.cli.app import app

    found = {}
    for command in app.registered_commands:
        assert command.callback is not None
        hints = typing.get_type_hints(command.callback, include_extras=True)
        signature = inspect.signature(command.callback).parameters
        parameters = [_parameter(hints[name], p) for name, p in signature.items()]
        found[command.callback.__name__] = (str(command.callback.__doc__), parameters)
    return found


def _parameter(hint: Any, parameter: inspect.Parameter) -> Parameter:
    kind, info = typing.get_args(hint)[:2]
    required = parameter.default is inspect.Parameter.empty
    if type(info).__name__ == "ArgumentInfo":
        many = "list" in str(kind)
        return Parameter(parameter.name.upper(), "", required, info.help or "", many)
    names = [n for n in (info.default, *(info.param_decls or ())) if isinstance(n, str)]
    name = next((n for n in names if n.startswith("--")), f"--{parameter.name.replace('_', '-')}")
    takes = "" if kind is bool else "PATH" if "Path" in str(kind) else "TEXT"
    return Parameter(name, takes, required, info.help or "")


def cli_page() -> str:
    """Every command with its arguments and options."""
    from fedsim.cli.app import app

    lines = [
        "# Commands",
        "",
        "Generated by `python docs/generate.py`; `fedsim --help` says the same.",
    ]
    lines += ["", *_text(str(app.info.help))]
    for name, (text, parameters) in commands().items():
        words = ["[OPTIONS]"] if any(p.name.startswith("-") for p in parameters) else []
        for p in parameters:
            if not p.name.startswith("-"):
                words.append((p.name if p.required else f"[{p.name}]") + "..." * p.many)
        lines += [
            "",
            f"## fedsim {name}",
            "",
            f"    fedsim {name} {' '.join(words)}",
            "",
            *_text(text),
        ]
        lines += ["", "| argument or option | meaning |", "|---|---|"]
        for p in parameters:
            lines.append(f"| `{' '.join(filter(None, [p.name, p.takes]))}` | {p.help} |")
    return "\n".join(lines) + "\n"


def _text(text: str) -> list[str]:
    return inspect.cleandoc(text).replace("\f", "").splitlines()


def tables() -> str:
    """The reference page of all tables of a study."""
    parts = [_TABLES]
    for table in TABLES.values():
        parts += [f"## {table.name}\n", table.doc + "\n"]
        parts += ["| column | type | unit | kind | meaning |", "|---|---|---|---|---|"]
        for column in table.columns:
            doc = column.doc + (f": `{'`, `'.join(column.choices)}`" if column.choices else "")
            cells = (f"`{column.name}`", column.type, column.unit, column.kind, doc)
            parts.append("| " + " | ".join(cells) + " |")
        if table.has_config:
            parts.append("| `config.*` | JSON text | | key | One column per setting, by its path |")
        parts.append("")
    return "\n".join(parts)


_TABLES = """# Tables

A study is a folder of Parquet files, `<study>/<table>/<run_id>.parquet`, one per run and table,
rewritten after every round. `fedsim.load("runs/<study>")` returns them as pandas data frames, also
while the study runs and after a kill.

Kinds: a `key` says which fact the row is about; a `result` was computed by the simulation and is
equal for equal configurations wherever it ran; a `measured` value depends on the machine and the
day. Two studies are equal when their keys and results are, bit by bit; the `events` table and the
`config.*` columns are not compared.

In the files, `config.*` columns hold JSON text, since one setting may be a number in one run and a
word in the next. `fedsim.load` decodes them: a column of numbers arrives as numbers.
"""


def pages() -> dict[str, str]:
    """File name -> what it should hold."""
    return {
        "cli.md": cli_page(),
        "configuration.md": configuration_page(),
        "tables.md": tables().rstrip("\n") + "\n",
    }


def main() -> int:
    """Write the pages, or check them."""
    stale = []
    for name, text in pages().items():
        path = DOCS / name
        if path.is_file() and path.read_text(encoding="utf-8") == text:
            continue
        stale.append(name)
        if "--check" not in sys.argv:
            path.write_text(text, encoding="utf-8")
    if stale:
        verb = "not current" if "--check" in sys.argv else "written"
        sys.stdout.write(f"{', '.join(stale)}: {verb}\n")
    return 1 if stale and "--check" in sys.argv else 0


if __name__ == "__main__":
    sys.exit(main())
