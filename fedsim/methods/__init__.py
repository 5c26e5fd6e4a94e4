"""The methods, by the name that a study uses.

The values are import paths, so that listing the names imports nothing. Your own method needs no
entry here: name its file in the study (`mine: {use: ./mine.py}`).
"""

from __future__ import annotations

import importlib
import inspect
from typing import TYPE_CHECKING

from fedsim.config.families import load_module
from fedsim.config.problems import messages
from fedsim.errors import ConfigError, did_you_mean

if TYPE_CHECKING:
    from pydantic import BaseModel

    from fedsim.config import MethodConfig
    from fedsim.methods.base import Method, Task

METHODS: dict[str, str] = {
    "zero_shot": "fedsim.methods.zero_shot:ZeroShot",
    "synthetic_only": "fedsim.methods.synthetic_only:SyntheticOnly",
    "fedavg_head": "fedsim.methods.fedavg_head:FedAvgHead",
    "fedavg_finetune": "fedsim.methods.fedavg_finetune:FedAvgFinetune",
    "cachefl": "fedsim.methods.cachefl:CacheFL",
    "stat_cache": "fedsim.methods.stat_cache:StatCache",
    "tip_adapter": "fedsim.methods.tip_adapter:TipAdapter",
    "local_only": "fedsim.methods.local_only:LocalOnly",
    "centralised_head": "fedsim.methods.ceilings:CentralisedHead",
    "centralised_cache": "fedsim.methods.ceilings:CentralisedCache",
    "fedprox_head": "fedsim.methods.fedprox:FedProxHead",
    "promptfl": "fedsim.methods.promptfl:PromptFL",
    "lora": "fedsim.methods.lora:LoRA",
    "fedclip": "fedsim.methods.fedclip:FedCLIP",
    "clip_adapter": "fedsim.methods.clip_adapter:CLIPAdapter",
    "afl": "fedsim.methods.afl:AFL",
    "gda": "fedsim.methods.gda:GDA",
    "cachefl_analytic": "fedsim.methods.cachefl_analytic:CacheFLAnalytic",
    "fedavg": "fedsim.methods.fedavg:FedAvg",
    "fedprox": "fedsim.methods.fedprox:FedProx",
    "scaffold": "fedsim.methods.scaffold:Scaffold",
    "fednova": "fedsim.methods.fednova:FedNova",
    "moon": "fedsim.methods.moon:Moon",
    "fedavg_from_synthetic": "fedsim.methods.fedavg_from_synthetic:FedAvgFromSynthetic",
    "synthetic_only_classifier": "fedsim.methods.synthetic_only:SyntheticOnlyClassifier",
    "local_only_classifier": "fedsim.methods.local_only:LocalOnlyClassifier",
    "centralised_classifier": "fedsim.methods.ceilings:CentralisedClassifier",
    "feddgm": "fedsim.methods.feddgm:FedDGM",
    "feddm": "fedsim.methods.feddm:FedDM",
    "feddm_sums": "fedsim.methods.feddm_sums:FedDMSums",
    "cachefl_dgm": "fedsim.methods.cachefl_dgm:CacheDGM",
    "dynafed": "fedsim.methods.dynafed:DynaFed",
}


def method_class(use: str) -> type[Method]:
    """The class behind `use`: a name in `METHODS`, or `FILE.py` or `FILE.py:CLASS`.

    Raises:
        ConfigError: If there is no such name, file or class, or the file fails to import.
    """
    if use in METHODS:
        module_name, name = METHODS[use].split(":")
        return getattr(importlib.import_module(module_name), name)
    path, _, name = use.partition(":")
    if not path.endswith(".py"):
        raise ConfigError(f"unknown method {use!r}; {did_you_mean(use, METHODS)}")
    return _from_file(path, name)


def build_method(config: MethodConfig, task: Task) -> Method:
    """An instance of the configured method, with checked options."""
    cls = method_class(config.use)
    return cls(task, check_options(config, cls))


def check_options(config: MethodConfig, cls: type[Method]) -> BaseModel:
    """The method's own settings as its `Options`.

    Raises:
        ConfigError: It names every unknown or impossible option, or a setting that the method
            refuses.
    """
    from pydantic import ValidationError

    try:
        options = cls.Options.model_validate(config.options)
    except ValidationError as error:
        if not cls.Options.model_fields:
            raise ConfigError(
                f"methods.{config.method}.options: {config.use} has no options"
            ) from error
        found = messages(error, cls.Options)
        problems = [f"methods.{config.method}.options: {problem}" for problem in found]
        raise ConfigError(problems) from error
    try:
        cls.check(config)
    except ConfigError as error:
        raise ConfigError([f"methods.{config.method}: {p}" for p in error.problems]) from error
    return options


def _from_file(path: str, name: str) -> type[Method]:
    from fedsim.methods.base import Method

    module = load_module(path)
    found = {
        key: value
        for key, value in vars(module).items()
        if inspect.isclass(value)
        and issubclass(value, Method)
        and value.__module__ == module.__name__
    }
    if name:
        if name not in found:
            hint = did_you_mean(name, found) if found else "it holds none"
            raise ConfigError(f"{path} has no method {name!r}; {hint}")
        return found[name]
    if not found:
        raise ConfigError(f"{path} holds no method: write a subclass of fedsim.methods.base.Method")
    if len(found) > 1:
        names = " or ".join(f"{path}:{key}" for key in sorted(found))
        raise ConfigError(f"{path} holds several methods; say which: {names}")
    return next(iter(found.values()))
