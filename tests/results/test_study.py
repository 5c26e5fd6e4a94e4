from pathlib import Path

import numpy as np
import pytest

import fedsim
from fedsim.errors import ResultsError
from fedsim.results.study import Study, load
from fedsim.results.tables.writer import TableWriter


def test_a_missing_study_is_explained(tmp_path: Path):
    with pytest.raises(ResultsError, match="no study was found"):
        load(tmp_path / "demo")
    with TableWriter(tmp_path / "demo", "a") as writer:
        writer.update_run(method="fedavg")
    with pytest.raises(ResultsError, match=r"there is no study .*dmeo; did you mean 'demo'"):
        load(tmp_path / "dmeo")
    with pytest.raises(ResultsError, match="a folder of studies.*demo"):
        load(tmp_path)


def test_a_run_without_rounds_is_a_run(tmp_path: Path):
    with TableWriter(tmp_path, "a") as writer:
        writer.update_run(method="fedavg", status="running", dataset="d", partition="iid", seed=0)
    summary = load(tmp_path).summary()
    assert summary["num_unfinished"].tolist() == [1]
    assert summary.attrs["unfinished"][0]["round"] == -1


def test_synthetic_images(study: Study, tmp_path: Path):
    images = study.synthetic_images()
    assert images.images.shape == (20, 16, 16, 3)
    assert images.images.dtype == np.uint8
    assert images.labels.tolist() == np.repeat(np.arange(5), 4).tolist()
    assert images.classnames[1] == "cat"
    with pytest.raises(ResultsError, match="did you mean 'f00d'"):
        study.synthetic_images("f00e")
    with pytest.raises(ResultsError, match="no synthetic images"):
        load(tmp_path).synthetic_images()


def test_fedsim_load_is_this_one(study: Study):
    assert fedsim.load is load
    assert fedsim.load(study.path).summary().equals(study.summary())


def test_an_empty_study_has_an_empty_summary(tmp_path: Path):
    assert load(tmp_path).summary().empty
