"""Runs with spoilt clients: what changes, what stays clean, and what it costs in accuracy."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import fedsim
from fedsim.config import Experiment
from fedsim.data.from_config import Holdings, partition_clients
from fedsim.errors import ConfigError
from fedsim.inputs.noisy_clients import OBSERVED
from fedsim.inputs.preflight import preflight
from fedsim.inputs.prepare import prepare
from fedsim.inputs.task import as_tensor
from fedsim.methods import method_class
from fedsim.results.tables.equality import equal_results
from tests.helpers import experiment, run, write_features

CPU = torch.device("cpu")
LABELS = {"noise__clients": 0.5, "noise__labels": 0.5}


@pytest.fixture
def data(tmp_path: Path) -> Path:
    return write_features(tmp_path, num_classes=6, dim=32, per_class=30)


def arrays(config: Experiment) -> dict[str, np.ndarray]:
    found = prepare(config, method_class(config.use), CPU, synthetic=False).arrays
    return {name: np.asarray(value) for name, value in found.items()}


def split(config: Experiment) -> Holdings:
    return partition_clients(arrays(config)["train_labels"], **config.for_partition())


def on_digits(method: str, **settings: Any) -> Experiment:
    given = {"models__clip": "tiny-clip", "data__max_train_samples": 60, "seed": 1}
    return experiment("digits", method, **(given | settings))


def spoilt_rows(config: Experiment) -> np.ndarray:
    found = split(config)
    return np.sort(np.concatenate([found.fit[client] for client in found.spoilt]))


def same(a: dict[str, np.ndarray], b: dict[str, np.ndarray]) -> set[str]:
    assert set(a) - {OBSERVED} == set(b) - {OBSERVED}
    return {name for name in set(a) & set(b) if np.array_equal(a[name], b[name])}


# --- arrays --------------------------------------------------------------------------------------


def test_labels_are_wrong_where_spoilt_clients_train_and_nowhere_else(data: Path):
    config, clean = experiment(data, **LABELS), arrays(experiment(data))
    noisy, found = arrays(config), split(config)
    assert OBSERVED not in clean
    assert same(clean, noisy) == set(clean)  # the true labels and all inputs
    wrong = noisy[OBSERVED] != clean["train_labels"]
    for client, (fit, held) in enumerate(zip(found.fit, found.held, strict=True)):
        share = 0.5 if client in found.spoilt else 0.0
        assert wrong[fit].sum() == int(np.floor(share * len(fit) + 0.5))
        assert not wrong[held].any()
    assert len(found.spoilt) == 3


def test_features_under_noise(data: Path):
    config = experiment(data, noise__clients=0.5, noise__images="gaussian")
    clean, noisy = arrays(experiment(data)), arrays(config)
    assert same(clean, noisy) == set(clean) - {"train_inputs"}
    changed = (clean["train_inputs"] != noisy["train_inputs"]).any(1)
    assert np.flatnonzero(changed).tolist() == spoilt_rows(config).tolist()
    assert np.array_equal(noisy[OBSERVED], clean["train_labels"])


@pytest.mark.parametrize("method", ["fedavg_head", "fedavg_finetune", "fedavg"])
@pytest.mark.parametrize("kind", ["gaussian", "blur", "contrast", "occlusion"])
def test_images_are_corrupted_before_the_encoder(method: str, kind: str):
    """Of methods on features, on pixels, and on images at their own size."""
    config = on_digits(method, noise__clients=0.5, noise__images=kind)
    clean, noisy = arrays(on_digits(method)), arrays(config)
    assert same(clean, noisy) == set(clean) - {"train_inputs"}
    differ = clean["train_inputs"] != noisy["train_inputs"]
    changed = np.flatnonzero(differ.reshape(len(differ), -1).any(1))
    assert changed.tolist() == spoilt_rows(config).tolist()
    assert noisy["train_inputs"].dtype == clean["train_inputs"].dtype


def test_both_kinds_of_methods_see_the_same_corrupted_images():
    from fedsim.models.clip import load_clip

    noise = {"noise__clients": 0.5, "noise__images": "gaussian", "noise__labels": 0.4}
    features = arrays(on_digits("fedavg_head", **noise))
    pixels = arrays(on_digits("fedavg_finetune", **noise))
    assert np.array_equal(features[OBSERVED], pixels[OBSERVED])
    encoded = load_clip("tiny-clip", "cpu").encode_images(as_tensor(pixels["train_inputs"]))
    assert np.allclose(encoded.numpy(), features["train_inputs"], atol=1e-5)


def test_settings_that_spoil_nothing_cost_nothing(data: Path, monkeypatch: pytest.MonkeyPatch):
    clean = arrays(experiment(data))
    monkeypatch.setattr("fedsim.data.from_config.read_dataset", None)  # all of it is in the store
    monkeypatch.setattr("fedsim.inputs.prepare.noise_step", None)
    for idle in ({"noise__clients": 0.5}, {"noise__labels": 0.5}):
        found = arrays(experiment(data, **idle))
        assert OBSERVED not in found
        assert same(clean, found) == set(clean)
    zero_shot = arrays(experiment(data, "zero_shot", **LABELS))  # has no clients to spoil
    assert OBSERVED not in zero_shot


# --- refusals ------------------------------------------------------------------------------------


def test_refused_before_any_run_begins(data: Path):
    blurred = experiment(data, noise__clients=0.5, noise__images="blur")
    few = experiment(data, noise__clients=0.05, noise__labels=0.5)
    with pytest.raises(ConfigError) as caught:
        preflight([blurred, few])
    assert "'blur', but the data holds precomputed features" in caught.value.problems[0]
    assert "noise.clients is 0.05: of 6 clients that is none" in caught.value.problems[1]


# --- runs ----------------------------------------------------------------------------------------


def last(folder: Path, split: str = "test") -> float:
    rows = fedsim.load(folder).evaluations
    chosen = rows[(rows["split"] == split) & (rows["metric"] == "accuracy")]
    chosen = chosen[(chosen["scope"] == "global") & (chosen["round"] == chosen["round"].max())]
    return float(chosen["value"].iloc[0])


def test_wrong_labels_cost_accuracy(data: Path, tmp_path: Path):
    found = {
        share: last(
            run(
                experiment(
                    data,
                    "fedavg_head",
                    noise__clients=share,
                    noise__labels=1.0,
                    train__rounds=8,
                    train__lr=0.5,
                ),
                tmp_path / f"{share}",
            )
        )
        for share in (0.0, 0.5, 1.0)
    }
    assert found[0.0] > found[0.5] + 0.05 > found[1.0] + 0.1
    assert found[1.0] < 1 / 6  # every label is wrong: worse than a guess


def test_the_same_run_twice_gives_the_same_results(data: Path, tmp_path: Path):
    config = experiment(data, noise__images="gaussian", **LABELS)
    assert config.run_id != experiment(data).run_id
    first, second = run(config, tmp_path / "a"), run(config, tmp_path / "b")
    assert equal_results(first, second) == []
    clean = run(experiment(data), tmp_path / "clean")
    assert equal_results(first, clean, match="cell") != []


def test_who_is_spoilt_is_an_event_and_the_partition_stays_as_it_was(data: Path, tmp_path: Path):
    config = experiment(data, noise__images="gaussian", noise__severity=0.2, **LABELS)
    noisy, clean = (
        fedsim.load(run(c, tmp_path / name))
        for c, name in ((config, "noisy"), (experiment(data), "clean"))
    )
    events = noisy.events[noisy.events["kind"] == "noise"]
    found = split(config)
    assert tuple(events["client_id"]) == found.spoilt
    count = len(found.fit[found.spoilt[0]])
    assert events["message"].iloc[0] == (
        f"{int(np.floor(count / 2 + 0.5))} of {count} training labels are wrong; "
        f"all inputs are corrupted: gaussian, severity 0.2"
    )
    assert not (clean.events["kind"] == "noise").any()
    counts = [s.clients.loc[s.clients["round"] == 0, "label_counts"] for s in (noisy, clean)]
    assert [list(c) for c in counts[0]] == [list(c) for c in counts[1]]
