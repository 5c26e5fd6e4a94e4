"""The experiment: what is refused, what a run's identity depends on, what is settled by itself."""

import os
import pickle
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from fedsim.config import Experiment
from fedsim.config.chosen import Chosen
from fedsim.config.problems import SECTIONS
from fedsim.config.sections import PartitionConfig, ResourcesConfig
from fedsim.errors import (
    CheckpointError,
    ClientError,
    ConfigError,
    FedsimError,
    PartitionError,
    did_you_mean,
)

# Another legal value for every field of an experiment.
OTHER: dict[str, Any] = {
    "study": "other",
    "output": "elsewhere",
    "working_dir": "elsewhere",
    "method": "other",
    "use": "zero_shot",
    "options": {"a": 1},
    "phase": "tune",
    "seed": 9,
    "data.name": "other.npz",
    "data.path": "folder",
    "data.classnames": ["a", "b"],
    "data.templates": ["a {}"],
    "data.image_column": "im",
    "data.label_column": "la",
    "data.client_column": "cl",
    "data.domain_column": "do",
    "data.domains": True,
    "data.test_domain": "sketch",
    "data.image_size": 16,
    "data.train_split": "validation",
    "data.only_text_classes": True,
    "data.resplit": True,
    "data.shots": 4,
    "data.prototype_shots": 2,
    "data.val_fraction": 0.3,
    "data.test_fraction": 0.3,
    "data.max_train_samples": 50,
    "data.max_test_samples": 50,
    "partition.scheme": "dirichlet_client",
    "partition.num_clients": 11,
    "partition.dirichlet_alpha": 0.7,
    "partition.classes_per_client": 2,
    "partition.samples_per_client": 50,
    "partition.size_sigma": 1.0,
    "partition.imbalance_factor": 10.0,
    "partition.min_samples": 3,
    "partition.seed": 5,
    "models.clip": None,
    "models.generator": None,
    "models.generator_steps": 3,
    "models.generator_guidance": 2.0,
    "models.logit_scale": 50.0,
    "models.classifier": {"name": "vgg11", "norm": "none"},
    "synthetic.prompts": ["a {}"],
    "synthetic.filter": "agreement",
    "synthetic.candidates_per_image": 3,
    "synthetic.augment_views": 2,
    "synthetic.augment_flip": True,
    "cache.init": "text",
    "cache.images_per_class": 4,
    "cache.form": "dual",
    "cache.real_fraction": 0.1,
    "cache.trainable": "keys_values",
    "cache.residual_ratio": 2.0,
    "cache.sharpness": 1.0,
    "distill.prior": "pixels",
    "distill.weights": "random",
    "distill.prior_saw_data": True,
    "distill.words": ["a"],
    "distill.init": "noise",
    "distill.layer": 2,
    "distill.denoising_steps": 2,
    "distill.images_per_class": 3,
    "distill.latent_steps": 3,
    "distill.optimizer": "adam",
    "distill.latent_lr": 0.1,
    "distill.feature_lr": 0.1,
    "distill.generator_lr": 0.01,
    "distill.loss": "gradient",
    "distill.gradient": "unroll",
    "distill.distance": "layerwise",
    "distill.student_steps": 3,
    "distill.student_batch": 3,
    "distill.student_lr": "auto",
    "distill.student_lr_lr": 0.0,
    "distill.augment": ["crop"],
    "distill.clients_at_once": 2,
    "train.rounds": 11,
    "train.participation": 0.9,
    "train.cohort_size": 3,
    "train.local_epochs": 2,
    "train.batch_size": 16,
    "train.optimizer": "adamw",
    "train.lr": 0.5,
    "train.momentum": 0.5,
    "train.weight_decay": 0.1,
    "train.lr_schedule": "cosine",
    "train.logit_adjustment": "fedlc",
    "train.logit_adjustment_tau": 0.5,
    "train.mask_absent_classes": True,
    "train.proximal_mu": 0.1,
    "train.augment_views": 3,
    "train.augment_flip": True,
    "train.seed": 5,
    "server.optimizer": "adam",
    "server.lr": 0.1,
    "server.momentum": 0.5,
    "server.beta2": 0.9,
    "server.epsilon": 0.1,
    "server.class_weighting": 0.5,
    "wire.compression": "topk",
    "wire.topk_fraction": 0.5,
    "wire.error_feedback": False,
    "noise.clients": 0.5,
    "noise.labels": 0.5,
    "noise.images": "blur",
    "noise.severity": 0.1,
    "engine.backend": "local",
    "engine.group_size": 7,
    "engine.threads": 2,
    "resources.gpus_per_client": 0.5,
    "resources.cpus_per_client": 2.0,
    "resources.clients_per_actor": 8,
    "resources.num_actors": 2,
    "resources.gpu_memory_bytes_per_client": 10**9,
    "failures.policy": "drop",
    "failures.retries": 2,
    "failures.quorum": 0.9,
    "failures.deadline_s": 10.0,
    "evaluation.holdout_fraction": 0.3,
    "evaluation.client_metrics": False,
    "evaluation.set_quality": True,
    "evaluation.personal": False,
    "evaluation.predictions": False,
    "evaluation.batch_size": 32,
    "report.reference_method": "zero_shot",
    "report.targets": [0.3],
}
UNREAD = {
    "partition.classes_per_client",
    "partition.samples_per_client",
    "partition.size_sigma",
    "partition.imbalance_factor",
}
"""Not read by the scheme of `make`, and therefore left out."""
WITHOUT_EFFECT = {
    *UNREAD,
    "study",
    "output",
    "working_dir",
    "engine.backend",
    "failures.deadline_s",
    *(key for key in OTHER if key.startswith(("resources.", "report."))),
}


def make(**changes: Any) -> Experiment:
    """A resolved experiment; `a__b=1` stands for `a.b: 1`."""
    tree: dict[str, Any] = {"study": "s", "method": "m", "use": "fedavg_head"}
    tree["partition"] = {"scheme": "dirichlet_label", "dirichlet_alpha": 0.1}
    for key, value in changes.items():
        section, _, field = key.partition("__")
        if field:
            tree.setdefault(section, {})[field] = value
        else:
            tree[section] = value
    return Experiment.model_validate(tree).resolved()


def fields_of(model: Any, prefix: str = "") -> set[str]:
    names: set[str] = set()
    for name, field in model.model_fields.items():
        inner = prefix + name
        names |= fields_of(field.annotation, f"{inner}.") if name in SECTIONS else {inner}
    if issubclass(model, Chosen):
        names |= {prefix + name for name in model.known()}
    return names


def test_every_field_is_tried():
    """A new field has to say here whether it is part of a run's identity."""
    assert set(OTHER) == fields_of(Experiment)


@pytest.mark.parametrize("key", list(OTHER))
def test_the_run_id_depends_on_what_can_change_results(key: str):
    changed = make(**{key.replace(".", "__"): OTHER[key]})
    assert (changed != make()) == (key not in UNREAD), "the test has to change something"
    assert (changed.run_id == make().run_id) == (key in WITHOUT_EFFECT)


def test_older_runs_keep_their_names():
    """A setting that is added is left out of a run's identity as long as it has no effect."""
    assert make().run_id == "m-911f93ad8914"


@pytest.mark.parametrize(
    "classifier", [{"depth": 4}, {"width": 8}, {"norm": "none"}, {"projection": 8}]
)
def test_the_run_id_depends_on_the_network(classifier: dict[str, Any]):
    assert make(models__classifier=classifier).run_id != make().run_id
    assert make(models__classifier="convnet").run_id == make().run_id


REFUSED_TOGETHER = (
    {"cache.form", "cache.trainable"},
    {"cache.form", "train.optimizer"},
    {"distill.generator_lr", "distill.prior"},
    {"distill.generator_lr", "distill.clients_at_once"},
    {"train.cohort_size", "train.participation"},
)


@settings(max_examples=40, deadline=None)
@given(
    st.sets(st.sampled_from(sorted(OTHER)), max_size=8).filter(
        lambda keys: not any(pair <= keys for pair in REFUSED_TOGETHER)
    )
)
def test_changes_add_up_to_one_identity(keys: set[str]):
    both = make(**{key.replace(".", "__"): OTHER[key] for key in keys})
    matter = keys - WITHOUT_EFFECT
    only = make(**{key.replace(".", "__"): OTHER[key] for key in matter})
    # What a run may hold settles `group_size: auto`, which is part of its identity.
    if "resources.clients_per_actor" not in keys or "engine.group_size" in keys:
        assert both.run_id == only.run_id
    assert (only.run_id == make().run_id) == (not matter)


def test_the_run_id_is_the_same_tomorrow_and_can_be_a_file_name():
    config = make(seed=3)
    again = Experiment.model_validate(config.model_dump())
    assert again == config
    assert again.run_id == config.run_id
    assert pickle.loads(pickle.dumps(config)).run_id == config.run_id
    assert config.run_id.startswith("m-")
    assert config.run_id.replace("-", "").isalnum()


def test_a_methods_file_is_read_once_for_as_long_as_it_is_the_same(tmp_path: Path, monkeypatch):
    file, reads = tmp_path / "mine.py", []
    file.write_text("A = 1")
    read = Path.read_bytes
    monkeypatch.setattr(Path, "read_bytes", lambda path: reads.append(path) or read(path))
    first = make(use=str(file))
    assert len({first.run_id, first.run_id, make(use=str(file)).run_id}) == 1
    assert len(reads) == 1
    file.write_text("A = 10")
    assert first.run_id != make(use="other").run_id
    assert len(reads) == 2


def test_a_method_of_ones_own_is_known_by_its_content(tmp_path: Path):
    file, copy = tmp_path / "mine.py", tmp_path / "copy.py"
    file.write_text("A = 1")
    copy.write_text("A = 1")
    first = make(use=str(file)).run_id
    assert make(use=str(copy)).run_id == first  # where it lies does not matter
    assert make(use=f"{file}:A").run_id != make(use=f"{file}:B").run_id
    file.write_text("A = 2")
    os.utime(file, ns=(1, 1))  # clocks of file systems are coarse
    assert make(use=str(file)).run_id != first
    assert make(use=f"{file}:A").run_id != make(use=str(copy) + ":A").run_id


@pytest.mark.parametrize(
    ("clients", "participation", "hosted", "size"),
    [
        (10, 1.0, "auto", 3),
        (100, 1.0, "auto", 10),
        (4, 1.0, "auto", 2),
        (1, 1.0, "auto", 2),
        (100, 0.1, "auto", 3),
        (24, 1.0, "auto", 6),
        (24, 1.0, 4, 4),
        (24, 1.0, 8, 6),
        (24, 1.0, 1, 1),
    ],
)
def test_the_group_size_is_settled_from_the_configuration(
    clients: int, participation: float, hosted: int | str, size: int
):
    config = make(
        partition__num_clients=clients,
        train__participation=participation,
        resources__clients_per_actor=hosted,
    )
    assert config.group_size == size
    assert config.resolved() is config


def test_what_the_scheme_does_not_read_is_left_out():
    shared = make(partition={"scheme": "iid", "dirichlet_alpha": 0.1})
    alone = make(partition={"scheme": "iid"})
    assert (shared.run_id, shared.partition.label) == (alone.run_id, "iid")
    assert shared.resolved() is shared
    size = {"scheme": "quantity", "size_sigma": 1.0, "classes_per_client": 3}
    assert make(partition=size).partition.given() == {"size_sigma": 1.0}
    assert make(partition=size).partition.unread() == []


def test_a_group_size_that_is_given_stays():
    config = make(engine__group_size=7, partition__num_clients=3)
    assert config.group_size == 7
    assert config.run_id != make(engine__group_size=8, partition__num_clients=3).run_id


def test_an_unresolved_experiment_has_no_group_size():
    config = Experiment.model_validate({"study": "s", "method": "m", "use": "m"})
    with pytest.raises(AssertionError, match="resolve"):
        _ = config.group_size


@pytest.mark.parametrize(
    ("clients", "participation", "cohort"),
    [(10, 1.0, 10), (10, 0.01, 1), (10, 0.26, 3), (7, 0.5, 4), (1, 0.1, 1)],
)
def test_a_cohort_has_at_least_one_client(clients: int, participation: float, cohort: int):
    config = make(partition__num_clients=clients, train__participation=participation)
    assert config.cohort_size == cohort


@pytest.mark.parametrize(
    "change",
    [
        {"train__lr": float("nan")},
        {"train__lr": float("inf")},
        {"train__lr": 0.0},
        {"train__lr": "0.1"},
        {"train__lr": True},
        {"train__rounds": 1.5},
        {"train__rounds": -1},
        {"train__participation": 0.0},
        {"train__participation": 1.1},
        {"train__momentum": 1.0},
        {"train__optimizer": "adam"},
        {"train__nosuch": 1},
        {"engine__group_size": 0},
        {"engine__group_size": -3},
        {"engine__group_size": "many"},
        {"engine__threads": 0},
        {"seed": -1},
        {"seed": 1.0},
        {"evaluation__holdout_fraction": 1.0},
        {"cache__images_per_class": 0},
        {"resources__gpus_per_client": 1.5},
        {"resources__gpus_per_client": -1.0},
        {"resources__clients_per_actor": 0},
        {"resources__num_actors": 0},
        {"failures__quorum": 0.0},
        {"data__test_fraction": 0.0},
        {"partition__dirichlet_alpha": 0.0},
        {"partition__dirichlet_alpha": float("nan")},
        {"phase": "tune", "evaluation__holdout_fraction": 0.0},
        {"cache__form": "dual", "train__optimizer": "adamw"},
        {"cache__form": "dual", "cache__trainable": "keys_scales"},
    ],
)
def test_impossible_values_are_refused(change: dict[str, Any]):
    with pytest.raises(ValidationError):
        make(**change)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"train": {"cohort_size": 3, "participation": 0.5}}, "set one of the two"),
        ({"train": {"cohort_size": 11}}, "is 11, but partition.num_clients is 10"),
        (
            {
                "noise": {"clients": 0.5, "labels": 0.5},
                "partition": {
                    "scheme": "dirichlet_drawn",
                    "dirichlet_alpha": 1.0,
                    "samples_per_client": 20,
                },
            },
            "other clients hold them too",
        ),
    ],
)
def test_populations_and_cohorts_that_cannot_be_are_refused(change: dict[str, Any], message: str):
    with pytest.raises(ValidationError, match=message):
        make(**change)


@pytest.mark.parametrize("gpus", [0, 0.25, 1, 1.0, 2, "auto"])
def test_gpu_fractions_are_as_ray_allows(gpus: float | str):
    assert ResourcesConfig(gpus_per_client=gpus).gpus_per_client == gpus  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("given_settings", "missing"),
    [
        ({"scheme": "dirichlet_label"}, "dirichlet_alpha"),
        ({"scheme": "longtail", "imbalance_factor": 10.0}, "dirichlet_alpha"),
        ({"scheme": "longtail", "dirichlet_alpha": 1.0}, "imbalance_factor"),
        ({"scheme": "quantity"}, "size_sigma"),
        ({"scheme": "quantity", "size_sigma": 1.0, "dirichlet_alpha": 1.0}, "size_sigma"),
        ({"scheme": "pathological"}, "classes_per_client"),
        ({"scheme": "dirichlet_drawn", "dirichlet_alpha": 1.0}, "samples_per_client"),
        ({"scheme": "dirichlet_drawn", "samples_per_client": 10}, "dirichlet_alpha"),
    ],
)
def test_a_scheme_asks_for_what_it_needs(given_settings: dict[str, Any], missing: str):
    with pytest.raises(ValidationError, match=missing):
        PartitionConfig(**given_settings)


@pytest.mark.parametrize(
    ("given_settings", "label"),
    [
        ({"scheme": "iid"}, "iid"),
        ({"scheme": "dirichlet_label", "dirichlet_alpha": 0.05}, "dirichlet_label 0.05"),
        ({"scheme": "quantity", "size_sigma": 1.5}, "quantity 1.5"),
        ({"scheme": "quantity", "dirichlet_alpha": 2.0}, "quantity 2"),
        ({"scheme": "pathological", "classes_per_client": 2}, "pathological 2"),
        ({"scheme": "domain"}, "domain"),
        ({"scheme": "domain", "dirichlet_alpha": 0.1}, "domain 0.1"),
    ],
)
def test_partitions_have_short_names(given_settings: dict[str, Any], label: str):
    assert PartitionConfig(**given_settings).label == label


def test_seeds_can_be_set_apart():
    assert (make(seed=3).partition_seed, make(seed=3).train_seed) == (3, 3)
    apart = make(seed=3, partition__seed=0, train__seed=8)
    assert (apart.partition_seed, apart.train_seed) == (0, 8)


def test_experiments_do_not_change():
    with pytest.raises(ValidationError, match="frozen"):
        make().train.lr = 0.3  # type: ignore[misc]


def test_the_flat_configuration_is_complete():
    flat = make(options={"a": {"b": 1}}).flat()
    assert flat["train.lr"] == 0.01
    assert flat["options.a.b"] == 1
    assert flat["partition.scheme"] == "dirichlet_label"
    assert flat["models.classifier.name"] == "convnet"
    without = {"options", "models.classifier", "partition.samples_per_client"}
    assert fields_of(Experiment) - without <= set(flat)


# --- errors --------------------------------------------------------------------------------------


def test_errors_survive_the_way_between_processes():
    error = pickle.loads(pickle.dumps(ClientError(3, 7, "node-1", "ValueError: x")))
    assert (error.client_id, error.round, error.node) == (3, 7, "node-1")
    assert str(error) == "client 3 failed in round 7 on node-1: ValueError: x"
    many = pickle.loads(pickle.dumps(ConfigError(["a", "b"])))
    assert many.problems == ["a", "b"]
    assert str(many) == "2 problems in the configuration:\n  - a\n  - b"
    assert str(ConfigError("a")) == "a"


def test_exit_codes_follow_the_tree():
    assert issubclass(PartitionError, FedsimError)
    assert PartitionError("x").exit_code == 3
    assert CheckpointError("x").exit_code == 7
    assert len({cls.exit_code for cls in FedsimError.__subclasses__()}) == 7


def test_hints_name_one_candidate_or_all():
    assert did_you_mean("roundz", ["rounds", "lr"]) == "did you mean 'rounds'?"
    assert did_you_mean("qqq", ["b", "a"]) == "known: a, b"
