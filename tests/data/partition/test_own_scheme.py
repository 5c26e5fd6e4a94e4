"""A partition scheme is one file and one line: a new one runs, with its option, from a study."""

from pathlib import Path

import numpy as np
import pytest

from fedsim.config.families import SCHEMES
from fedsim.config.study_file import parse_study
from fedsim.data import make_partition
from fedsim.errors import ConfigError
from fedsim.methods import METHODS
from fedsim.results.study import load
from tests.helpers import run, write_features

FILE = '''
"""The first client gets a share of all samples, the others the rest in turn."""

import numpy as np
from pydantic import Field

from fedsim.config.base import Section
from fedsim.data.partition.sampling import Draft


class Options(Section):
    """How large the first client is."""

    first_share: float = Field(gt=0, lt=1)
    """Share of the first client."""


def assign(ask, options):
    owner = 1 + np.arange(len(ask.labels)) % (ask.num_clients - 1)
    owner[: round(options.first_share * len(owner))] = 0
    return Draft(owner)
'''


@pytest.fixture(autouse=True)
def one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "first_heavy.py"
    file.write_text(FILE)
    monkeypatch.setitem(SCHEMES, "first_heavy", str(file))


def study(data: Path, **partition: object):
    tree = {
        "study": "own",
        "methods": ["fedavg_head"],
        "data": {"name": str(data)},
        "models": {"clip": None, "generator": None},
        "train": {"rounds": 1},
        "engine": {"backend": "local"},
        "partition": {"num_clients": 4, "dirichlet_alpha": 0.5, **partition},
    }
    return parse_study(tree).experiments(METHODS)


def test_it_runs_and_its_option_is_in_the_resolved_configuration(tmp_path: Path):
    data = write_features(tmp_path)
    (config,) = study(data, scheme="first_heavy", first_share=0.5)
    assert config.partition.label == "first_heavy 0.5"
    assert config.partition.given() == {"first_share": 0.5}  # alpha is read by other schemes
    assert config.flat()["partition.first_share"] == 0.5
    (other,) = study(data, scheme="first_heavy", first_share=0.25)
    assert config.run_id != other.run_id
    found = load(run(config, tmp_path / "runs"))
    assert found.runs["config.partition.first_share"].tolist() == [0.5]
    clients = found.clients[found.clients["round"] == 0]
    assert clients.sort_values("client_id")["num_samples"].tolist() == [40, 13, 14, 13]


def test_its_option_is_checked_like_any_other(tmp_path: Path):
    for partition, message in (
        ({"scheme": "first_heavy"}, "scheme 'first_heavy' needs partition.first_share: set it"),
        ({"scheme": "first_heavy", "first_share": 2.0}, "partition.first_share is 2.0: it must be"),
        ({"scheme": "first_heavy", "frist_share": 0.5}, "did you mean 'first_share'?"),
        ({"scheme": "iid", "first_share": 0.0}, "partition.first_share is 0.0: it must be above 0"),
        ({"scheme": "frist_heavy"}, "did you mean 'first_heavy'?"),
    ):
        with pytest.raises(ConfigError, match=message):
            study(tmp_path, **partition)


def test_other_schemes_leave_it_out(tmp_path: Path):
    (plain,) = study(tmp_path, scheme="dirichlet_label")
    (shared,) = study(tmp_path, scheme="dirichlet_label", first_share=0.5)
    assert shared.run_id == plain.run_id
    assert "partition.first_share" not in shared.flat()


def test_it_can_be_called_directly():
    labels = np.arange(20) % 2
    split = make_partition(labels, scheme="first_heavy", num_clients=3, first_share=0.5, rng=0)
    assert split.sizes.tolist() == [10, 5, 5]
