"""Study files of tests, and what is wrong with them."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from fedsim.config import Experiment
from fedsim.config.study_file import StudyFile, load_study
from fedsim.errors import ConfigError
from fedsim.methods import METHODS

Load = Callable[..., StudyFile]


@pytest.fixture
def load(tmp_path: Path) -> Load:
    """Writes a study file and loads it."""

    def write(text: str, *overrides: str) -> StudyFile:
        path = tmp_path / "trial.yaml"
        path.write_text(text, encoding="utf-8")
        return load_study(path, overrides)

    return write


def only(study: StudyFile) -> Experiment:
    (experiment,) = study.experiments(METHODS)
    return experiment


def problems(action: Callable[[], Any]) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        action()
    return caught.value.problems
