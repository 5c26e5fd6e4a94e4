"""A study's folder: one plan, one process at a time, and what is still to do."""

from pathlib import Path

import pytest

from fedsim.driver.plan import read_plan, study_lock, unfinished, write_plan
from fedsim.errors import ResultsError
from fedsim.results.tables.writer import TableWriter
from tests.integration.studies import Command, experiments, local, write_study


@pytest.fixture
def study(tmp_path: Path) -> Path:
    return write_study(tmp_path)


def test_the_plan_gives_back_every_experiment_in_order(study: Path, tmp_path: Path):
    folder = tmp_path / "runs" / "small"
    folder.mkdir(parents=True)
    planned = experiments(study)
    write_plan(folder, planned)
    assert read_plan(folder) == planned


def test_a_plan_grows_and_names_nothing_twice(study: Path, tmp_path: Path):
    folder = tmp_path / "runs" / "small"
    folder.mkdir(parents=True)
    first, more = experiments(study), experiments(study, "seeds=[0,1]")
    write_plan(folder, first)
    write_plan(folder, more)
    ids = [e.run_id for e in read_plan(folder)]
    assert ids[:3] == [e.run_id for e in first]
    assert sorted(ids) == sorted(e.run_id for e in more)


def test_a_study_may_move(study: Path, tmp_path: Path):
    folder, moved = tmp_path / "runs" / "small", tmp_path / "elsewhere" / "small"
    folder.mkdir(parents=True)
    write_plan(folder, experiments(study))
    moved.parent.mkdir()
    folder.rename(moved)
    assert {e.output for e in read_plan(moved)} == {str(moved.parent)}
    assert [e.run_id for e in read_plan(moved)] == [e.run_id for e in experiments(study)]


def test_no_plan_is_a_clear_error(study: Path, tmp_path: Path):
    folder = tmp_path / "runs" / "small"
    with pytest.raises(ResultsError, match="no study in .*smal; no study has been started"):
        read_plan(folder.with_name("smal"))
    folder.mkdir(parents=True)
    write_plan(folder, experiments(study))
    with pytest.raises(ResultsError, match="did you mean 'small'"):
        read_plan(folder.with_name("smal"))


def test_only_finished_runs_are_not_run_again(study: Path, tmp_path: Path):
    folder = tmp_path / "local"
    todo = experiments(study)
    assert unfinished(folder, todo) == todo
    local(study, folder)
    assert unfinished(folder, todo) == []
    writer = TableWriter(folder, todo[1].run_id)
    writer.update_run(status="failed")
    writer.commit()
    assert unfinished(folder, todo) == [todo[1]]


def test_a_second_process_on_the_same_study_is_refused(study: Path, tmp_path: Path):
    folder = tmp_path / "runs" / "small"
    with study_lock(folder):
        second = Command("sweep", study)
        assert second.wait() == 7
        assert f"another process is working on {folder}" in second.output
        assert "Traceback" not in second.output
    with study_lock(folder):
        pass  # it was let go
    assert not (folder / "plan.json").exists()


def test_a_folder_that_cannot_be_written_is_refused(tmp_path: Path):
    (tmp_path / "file").write_text("")
    with (
        pytest.raises(ResultsError, match=r"cannot write to .*choose another folder: output="),
        study_lock(tmp_path / "file" / "study"),
    ):
        pass
