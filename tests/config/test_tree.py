"""Nested settings and their dotted names."""

from hypothesis import given
from hypothesis import strategies as st

from fedsim.config.tree import flatten, overlay, remove

NAMES = st.sampled_from(["a", "b", "c"])
TREES = st.recursive(st.integers(), lambda inner: st.dictionaries(NAMES, inner, max_size=3))
BLOCKS = st.dictionaries(NAMES, TREES, max_size=3)


@given(BLOCKS)
def test_dotted_settings_make_the_tree_again(tree: dict):
    again: dict = {}
    assert overlay(again, dict(flatten(tree))) == []
    assert again == tree


@given(BLOCKS, BLOCKS)
def test_an_overlay_leaves_what_it_is_given_alone(tree: dict, settings: dict):
    before = repr((tree, settings))
    overlay(dict(tree), settings)
    assert repr((tree, settings)) == before


def test_a_value_is_no_section():
    tree = {"train": 3}
    problem = "grid.train.lr: 'train' holds a value, not a section"
    assert overlay(tree, {"train.lr": 0.1}, "grid.") == [problem]
    assert tree == {"train": 3}


def test_a_setting_is_removed_however_deep_it_is_nested():
    tree = {"train.lr": 1, "train": {"lr": 2, "rounds": 3}, "a": {"train.lr": 4}}
    remove(tree, "train.lr")
    assert tree == {"train": {"rounds": 3}, "a": {"train.lr": 4}}
    remove("no tree", "train.lr")
