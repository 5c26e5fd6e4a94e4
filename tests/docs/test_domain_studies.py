"""The scripts that make the archives of domain_digits and pilot, and PACS in their place."""

import importlib.util
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

import fedsim
from fedsim.config.study_file import load_study, parse_study
from fedsim.data import load_dataset
from fedsim.methods import METHODS
from tests.conftest import ROOT
from tests.helpers import run

DOMAINS = ("blurred", "inverted", "plain", "rotated")


def script(name: str) -> ModuleType:
    path = ROOT / "experiments" / name
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def domains(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("domains") / "digit_domains.npz"
    np.savez(path, **script("domain_digits/make_domains.py").make())
    return path


@pytest.fixture(scope="module")
def sites(domains: Path) -> Path:
    path = domains.with_name("pilot_sites.npz")
    np.savez(path, **script("pilot/make_sites.py").make(domains))
    return path


# What gives the image of a domain back; of a blurred one, nothing does.
UNDO: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "plain": lambda image: image,
    "inverted": lambda image: 255 - image,
    "rotated": lambda image: np.rot90(image, -1),
}


@pytest.mark.parametrize("split", ["train", "val", "test"])
def test_every_digit_is_in_one_domain_and_in_its_own_split(domains: Path, split: str):
    digits, made = (load_dataset(str(name)) for name in ("digits", domains))
    assert made.domain_names == DOMAINS
    assert made.classnames == digits.classnames
    before, after = getattr(digits, split), getattr(made, split)
    assert np.array_equal(before.labels, after.labels)
    for image, seen, domain in zip(
        before.load_images(), after.load_images(), after.domains, strict=True
    ):
        if undo := UNDO.get(DOMAINS[domain]):
            assert np.array_equal(undo(seen), image)
        else:
            assert not np.array_equal(seen, image)
            assert abs(float(seen.mean()) - float(image.mean())) < 20
            assert seen.astype(float).std() < image.astype(float).std()
    counts = np.zeros((4, 10), int)
    np.add.at(counts, (after.domains, after.labels), 1)
    assert np.ptp(counts, axis=0).max() <= 1  # domains differ in looks, not in labels


def test_sites_differ_in_digits_domains_and_size(domains: Path, sites: Path):
    data = load_dataset(str(sites))
    train = data.train
    site_a = train.clients == 0
    assert 1.5 < site_a.sum() / (~site_a).sum() < 3
    light = np.isin(np.array(DOMAINS)[train.domains], ["plain", "blurred"])
    assert light[site_a].mean() > 0.6
    assert light[~site_a].mean() < 0.4
    assert (train.labels[site_a] < 6).mean() > 0.7
    assert (train.labels[~site_a] > 3).mean() > 0.7
    assert len(data.test) == len(load_dataset(str(domains)).test)  # whole


@pytest.mark.parametrize("name", ["domain_digits/make_domains.py", "pilot/make_sites.py"])
def test_a_script_writes_the_same_every_time(domains: Path, sites: Path, tmp_path: Path, name: str):
    source, expected = ([], domains) if "domain" in name else ([str(domains)], sites)
    command = [sys.executable, str(ROOT / "experiments" / name), *source, "again.npz"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    with np.load(tmp_path / "again.npz") as again, np.load(expected) as first:
        assert set(again.files) == set(first.files)
        assert all(np.array_equal(again[key], first[key]) for key in first.files)


@pytest.mark.parametrize("name", ["domain_digits", "pilot"])
def test_every_method_of_a_study_is_tuned_alike(name: str):
    study = load_study(ROOT / "experiments" / name / f"{name}.yaml")
    trials = {m: np.prod([len(v) for v in g.values()]) for m, g in study.tune.grid.items()}
    assert set(trials) == set(study.methods) - {"zero_shot"}
    assert set(trials.values()) == {8}
    assert not set(study.tune.seeds) & set(study.seeds)
    for method, axes in study.tune.grid.items():
        assert set(axes) <= set(study.methods[method])  # what was chosen is written down


def test_pacs_runs_end_to_end(shared_data: Path, tmp_path: Path):
    """As the page says for those who have PACS; the tiny encoder cannot read photographs."""
    names = ("art_painting", "cartoon", "photo", "sketch")
    tree = {
        "study": "pacs",
        "data": {"name": "pacs", "path": str(shared_data / "pacs_40"), "domains": True},
        "partition": {"scheme": "domain", "num_clients": 4},
        "train": {"rounds": 1, "batch_size": 16},
        "engine": {"backend": "local"},
        "methods": ["fedavg_head"],
    }
    (config,) = parse_study(tree).experiments(METHODS)
    study = fedsim.load(run(config, tmp_path))
    assert study.runs["status"].tolist() == ["finished"]
    found = study.evaluations.query("scope == 'domain' and split == 'test'")
    assert tuple(found["domain"]) == names
    assert set(found["num_samples"]) == {56}  # 8 of 40 images per domain and class
    assert tuple(study.clients.query("round == 0")["domain"]) == names
    unseen = load_dataset(
        "pacs", path=shared_data / "pacs_40", domains=True, test_domain="sketch", val_fraction=0
    )
    assert (len(unseen.train), len(unseen.test)) == (840, 280)
    assert {unseen.domain_names[i] for i in unseen.test.domains} == {"sketch"}
