"""A client that raises: named, written down, and handled as the policy says."""

import socket
from pathlib import Path

import pytest

from fedsim.cli.app import main
from fedsim.results.study import load
from tests.integration.studies import write_study

pytestmark = [pytest.mark.ray, pytest.mark.timeout(600)]

FAULTY = '''
import torch

from fedsim.methods.fedavg_head import FedAvgHead


class Faulty(FedAvgHead):
    """Client 3 raises in round 2."""

    def setup(self, task, rng):
        return super().setup(task, rng) | {"rounds": torch.zeros(())}

    def message(self, state):
        return dict(state)

    def client_update(self, message, batches, client_state, rng):
        if message["rounds"] == 1 and 3 in batches.client_ids:
            raise ValueError("the camera of this client is broken")
        return super().client_update({"head": message["head"]}, batches, client_state, rng)

    def aggregate(self, state, received):
        return {"head": state["head"] + received.mean["head"], "rounds": state["rounds"] + 1}
'''


@pytest.fixture
def study(tmp_path: Path) -> Path:
    file = tmp_path / "faulty.py"
    file.write_text(FAULTY)
    methods = {
        "faulty": {"use": str(file)},
        "faulty_dropped": {"use": str(file), "failures.policy": "drop"},
        "fedavg_head": None,
    }
    return write_study(tmp_path, methods=methods, resources={"num_actors": 2})


def fedsim(*arguments: str | Path) -> int:
    codes: list[int] = []
    main([str(argument) for argument in arguments], codes.append)
    return codes[0]


def says_what_happened(text: str) -> bool:
    return all(
        word in text
        for word in ("ValueError: the camera of this client is broken", "Traceback", "faulty.py")
    )


@pytest.mark.parametrize("backend", ["local", "ray"])
def test_a_run_ends_and_names_client_round_node_and_traceback(
    study: Path,
    tmp_path: Path,
    backend: str,
    ray_cluster: None,
    capsys: pytest.CaptureFixture[str],
):
    code = fedsim("run", study, "method=faulty", f"engine.backend={backend}")
    error = capsys.readouterr().err
    assert code == 6
    assert f"fedsim: client 3 failed in round 2 on {socket.gethostname()}: " in error
    assert says_what_happened(error)
    tables = load(tmp_path / "runs" / "small")
    (event,) = tables.events.itertuples()
    assert (event.kind, event.client_id, event.round) == ("client_failed", 3, 2)
    assert event.node == socket.gethostname()
    assert says_what_happened(event.message)
    (run,) = tables.runs.itertuples()
    assert run.status == "failed"
    assert "client 3 failed in round 2" in run.error
    assert tables.rounds["round"].tolist() == [0, 1]  # the failed round is not half there


def test_a_sweep_goes_on_and_a_dropped_client_is_counted(
    study: Path, tmp_path: Path, ray_cluster: None, capsys: pytest.CaptureFixture[str]
):
    assert fedsim("sweep", study) == 1
    assert "failed: faulty | " in capsys.readouterr().err
    tables = load(tmp_path / "runs" / "small")
    runs = tables.runs.set_index("method")
    assert runs.status.to_dict() == {
        "faulty": "failed",
        "faulty_dropped": "finished",
        "fedavg_head": "finished",
    }
    assert "client 3 failed in round 2" in runs.error["faulty"]
    assert runs.error[["faulty_dropped", "fedavg_head"]].isna().all()

    rounds = tables.rounds[tables.rounds.run_id == runs.run_id["faulty_dropped"]]
    counts = rounds.set_index("round").num_clients_failed
    assert counts[counts > 0].to_dict() == {2: 1}
    dropped = tables.clients[tables.clients.run_id == runs.run_id["faulty_dropped"]]
    (row,) = dropped[dropped.status == "failed"].itertuples()
    assert (row.client_id, row.round) == (3, 2)
