import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from fedsim.data.partition.repair import repair
from fedsim.seeding import numpy_rng


@st.composite
def drafts(draw: st.DrawFn):
    num_clients = draw(st.integers(1, 8))
    owner = np.array(draw(st.lists(st.integers(-1, num_clients - 1), min_size=20, max_size=60)))
    cells = np.array(draw(st.lists(st.integers(0, 4), min_size=len(owner), max_size=len(owner))))
    used = int((owner >= 0).sum())
    if used < num_clients:
        owner[:num_clients], used = np.arange(num_clients), num_clients + used
        used = int((owner >= 0).sum())
    min_samples = draw(st.integers(1, max(used // num_clients, 1)))
    return owner, cells, num_clients, min_samples


@settings(max_examples=100)
@given(drafts(), st.integers(0, 99))
def test_everyone_has_enough_and_no_move_was_needless(draft, seed):
    owner, cells, num_clients, min_samples = draft
    fixed = repair(owner, cells, num_clients, min_samples, numpy_rng(seed, "repair"))
    before = np.bincount(owner[owner >= 0], minlength=num_clients)
    after = np.bincount(fixed[fixed >= 0], minlength=num_clients)
    assert after.min() >= min_samples
    assert np.array_equal(fixed < 0, owner < 0)  # unused samples stay so
    assert (fixed != owner).sum() == np.maximum(min_samples - before, 0).sum()
    assert (after[before >= min_samples] <= before[before >= min_samples]).all()
    assert (after[before < min_samples] == min_samples).all()


def test_the_largest_client_gives_first():
    owner = np.repeat([0, 1, 2], [9, 6, 1])
    fixed = repair(owner, np.zeros(16, int), 3, 3, numpy_rng(0, "repair"))
    assert np.bincount(fixed).tolist() == [7, 6, 3]


def test_a_label_the_receiver_has_is_preferred():
    owner = np.array([0] * 10 + [1])
    labels = np.array([0] * 7 + [3] * 3 + [3])
    fixed = repair(owner, labels, 2, 4, numpy_rng(0, "repair"))
    assert labels[fixed == 1].tolist() == [3, 3, 3, 3]


def test_allowed_cells_are_taken_from_smaller_clients_before_others():
    owner = np.repeat([0, 1, 2], [10, 5, 1])
    labels = np.array([0] * 10 + [1] * 5 + [1])
    allowed = np.array([[True, False], [False, True], [False, True]])
    fixed = repair(owner, labels, 3, 3, numpy_rng(0, "repair"), allowed)
    assert np.bincount(fixed).tolist() == [10, 3, 3]


def test_cells_that_are_not_allowed_are_the_last_resort():
    owner = np.repeat([0, 1, 2], [10, 3, 1])
    labels = np.array([0] * 10 + [1] * 3 + [1])
    allowed = np.array([[True, False], [False, True], [False, True]])
    fixed = repair(owner, labels, 3, 3, numpy_rng(0, "repair"), allowed)
    assert np.bincount(fixed).tolist() == [8, 3, 3]


def test_nothing_changes_when_all_have_enough():
    owner = np.arange(9) % 3
    assert repair(owner, owner, 3, 3, numpy_rng(0, "repair")) is owner
