"""The tables of a study: every column with its type, unit, kind and meaning.

To add a column, add one line here; files written before are read with missing values in it.
What the kinds mean and how `config.*` is stored: `fedsim.results.tables.columns`.
"""

from __future__ import annotations

from functools import lru_cache

import pyarrow as pa

from fedsim.errors import ResultsError, did_you_mean
from fedsim.results.tables.columns import TableSchema, key, measured, option, result

_RUN_ID = key("run_id", "string", "Hash of the resolved configuration")
_ROUND = key("round", "int64", "Communication round; 0 is before training, set-up included")

_STATUS = ("running", "finished", "failed", "interrupted", "stopped")

_RUNS = TableSchema(
    "runs",
    "One row per run: what was asked, on what, how it ended; and `config.*`, the configuration.",
    (
        _RUN_ID,
        option("study", "string", "Name of the study"),
        option("method", "string", "Name of the method"),
        option("dataset", "string", "Name of the data set"),
        option("pooled", "bool", "A ceiling: all clients' data was one client's"),
        option("zero_shot", "bool", "Saw no sample: the level that targets start from"),
        option("partition", "string", "Scheme of the split and its number: `dirichlet_label 0.05`"),
        option("partition_scheme", "string", "The scheme alone: `dirichlet_label`"),
        option("dirichlet_alpha", "float64", "Concentration; missing without Dirichlet"),
        option("num_clients", "int64", "Simulated clients", "clients"),
        option("seed", "int64", "Seed of the run; runs of one seed are paired"),
        option("phase", "string", "Chose settings, or counts", choices=("tune", "final")),
        option("cache_init", "string", "What the cache starts from, where there is one"),
        option("num_rounds", "int64", "Rounds asked for", "rounds"),
        result("status", "string", "Only trials are ever `stopped`", choices=_STATUS),
        result("partition_total_variation", "float64", "Mean distance of label laws, client-all"),
        result("partition_effective_classes", "float64", "Mean exp(label entropy) of a client"),
        result("partition_size_gini", "float64", "Gini coefficient of the clients' sizes"),
        result("synthetic_set", "string", "Fingerprint of the synthetic images, if any"),
        measured("inputs", "string", "Name of the clients' inputs in the node's store"),
        measured("bit_comparable", "bool", "False after a back-off changed the arithmetic"),
        measured("error", "string", "Message of a failed run"),
        measured("started_at", "timestamp", "When the run started", "UTC"),
        measured("finished_at", "timestamp", "When the run ended", "UTC"),
        measured("wall_s", "float64", "Run time, all resumptions together", "s"),
        measured("num_resumes", "int64", "How often the run was resumed"),
        measured("command", "string", "Command line that started the run"),
        measured("fedsim_version", "string", "Version of fedsim"),
        measured("python_version", "string", "Version of Python"),
        measured("torch_version", "string", "Version of PyTorch"),
        measured("ray_version", "string", "Version of Ray; missing in-process"),
        measured("platform", "string", "Operating system and architecture"),
        measured("node", "string", "Host of the coordinator"),
        measured("backend", "string", "`local` or `ray`"),
        measured("device", "string", "`cpu` or `cuda`"),
        measured("cpu_name", "string", "Processor of the coordinator's host"),
        measured("gpu_name", "string", "Accelerator, if any"),
        measured("num_cpus", "int64", "CPU cores the run could use"),
        measured("num_gpus", "int64", "GPUs the run could use"),
        measured("num_nodes", "int64", "Machines in the cluster"),
        measured("num_actors", "int64", "Client actors"),
        measured("memory_bytes", "int64", "Memory of the coordinator's host", "bytes"),
    ),
    has_config=True,
)

_ROUNDS = TableSchema(
    "rounds",
    "One row per run and round.",
    (
        _RUN_ID,
        _ROUND,
        result("accuracy", "float64", "Accuracy of the served global model on `split`", "0..1"),
        result("loss", "float64", "Mean cross-entropy of the same", "nats"),
        result("split", "string", "`test` (or missing) in final runs, the selection split else"),
        result("bytes_up", "int64", "Sent by clients in this round, all together", "bytes"),
        result("bytes_down", "int64", "Sent to clients in this round, all together", "bytes"),
        result("num_clients_sampled", "int64", "Cohort size", "clients"),
        result("num_clients_ok", "int64", "Clients whose update was used", "clients"),
        result("num_clients_failed", "int64", "Clients that failed or were dropped", "clients"),
        result("train_flops", "int64", "Client training, all clients together", "FLOP"),
        result("train_loss", "float64", "Weighted mean of the clients' last training loss", "nats"),
        result("update_norm", "float64", "L2 norm of the aggregated update"),
        result("virtual_s", "float64", "Virtual clock at the end of the round; of issue 26", "s"),
        measured("train_s", "float64", "Client training", "s"),
        measured("aggregate_s", "float64", "Aggregation", "s"),
        measured("distill_s", "float64", "Server-side distillation", "s"),
        measured("eval_s", "float64", "Evaluation", "s"),
        measured("commit_s", "float64", "Tables and checkpoint of the round before", "s"),
        measured("round_s", "float64", "Whole round, but for `commit_s`", "s"),
        measured("peak_memory_bytes", "int64", "Largest device memory of the round", "bytes"),
        measured("time", "timestamp", "When the round ended", "UTC"),
    ),
)

_METRICS = (
    "`accuracy`, `balanced_accuracy`, `worst_class`, `nll`, `ece`; over clients `client_mean`, "
    "`client_std` and `client_worst10` (mean of the worst tenth)"
)
_EVALUATIONS = TableSchema(
    "evaluations",
    "One row per number: a metric of a model on a split, over all, a client, a domain or a class.",
    (
        _RUN_ID,
        _ROUND,
        key("model", "string", "Which model: `global`, `surrogate`, `personal`, an average"),
        key("scope", "string", "`global`, `client`, `domain` or `class`"),
        option("client_id", "int64", "The client, in scope `client`"),
        option("class_name", "string", "The class, in scope `class`"),
        option("domain", "string", "The domain, in scope `domain`"),
        key("split", "string", "`test`, `client_holdout`, `server_val`, ..."),
        key("metric", "string", _METRICS),
        result("value", "float64", "The number; accuracies in 0..1"),
        result("num_samples", "int64", "Samples behind the number", "samples"),
    ),
)

_PEAK_RESIDENT = (
    "On CPU: largest resident memory of its process while its group trained, libraries and data "
    "included; an upper bound"
)
_CLIENTS = TableSchema(
    "clients",
    "Round 0: every client and its data. Later rounds: the clients of the cohort.",
    (
        _RUN_ID,
        _ROUND,
        key("client_id", "int64", "The simulated client"),
        result("num_samples", "int64", "Training samples of the client", "samples"),
        result("label_counts", "list<int64>", "Training samples per class", "samples"),
        result("domain", "string", "The client's domain, if the data has domains"),
        result("status", "string", "`idle` at round 0, then `ok` or `failed`; issue 26 adds more"),
        result("num_steps", "int64", "Local optimiser steps", "steps"),
        result("weight", "float64", "Weight in the aggregation"),
        result("loss_before", "float64", "Loss on the client's data, message as received", "nats"),
        result("loss_after", "float64", "Loss on the client's data after training", "nats"),
        result("accuracy_before", "float64", "Accuracy on the client's data, as received", "0..1"),
        result("accuracy_after", "float64", "Accuracy on the client's data, trained", "0..1"),
        result("holdout_loss_before", "float64", "Loss on what it held out, as received", "nats"),
        result("holdout_loss_after", "float64", "Loss on what it held out, trained", "nats"),
        result("holdout_accuracy_before", "float64", "Accuracy on the same, as received", "0..1"),
        result("holdout_accuracy_after", "float64", "Accuracy on the same, trained", "0..1"),
        result("update_norm", "float64", "L2 norm of the client's update"),
        result("bytes_up", "int64", "Sent by the client in this round", "bytes"),
        result("bytes_down", "int64", "Sent to the client in this round", "bytes"),
        result("train_flops", "int64", "Local training", "FLOP"),
        result("virtual_s", "float64", "Virtual time the client took; of issue 26", "s"),
        measured("train_s", "float64", "Local training, the client's share of its group", "s"),
        measured("peak_memory_bytes", "int64", "Largest GPU memory of its group", "bytes"),
        measured("peak_resident_bytes", "int64", _PEAK_RESIDENT, "bytes"),
        measured("node", "string", "Host it ran on"),
        measured("device", "string", "Device it ran on"),
    ),
)

_SYNTHETIC = TableSchema(
    "synthetic",
    "One row per class of a synthetic set, and one for the whole set, whenever one was made. All "
    "of it in the frozen encoder's feature space. What compares with training images uses those of "
    "all clients, pooled: known to the simulator, to no server. "
    "[Definitions](how-to/synthetic.md#quality).",
    (
        _RUN_ID,
        _ROUND,
        option("class_name", "string", "The class; missing in the row of the whole set"),
        option("client_id", "int64", "The client it was distilled from, if one"),
        result("label", "int64", "The class as a number"),
        result("num_images", "int64", "Images of the class", "images"),
        result("drawn_agreement", "float64", "As `clip_agreement`, before a filter chose", "0..1"),
        result("clip_agreement", "float64", "Share that the frozen encoder calls so", "0..1"),
        result("clip_similarity", "float64", "CLIP score: mean cosine of image and class text"),
        result("diversity", "float64", "Mean pairwise cosine distance within a class"),
        result("real_similarity", "float64", "Cosine of mean synthetic and mean training feature"),
        result("nearest_similarity", "float64", "Mean cosine to the nearest training image"),
        result("memorisation", "float64", "Chance to be nearer to them than fresh images", "0..1"),
        result("fid", "float64", "Frechet distance to training images; needs more images than d"),
        result("kid", "float64", "Squared kernel distance to training images, unbiased"),
        result("precision", "float64", "Share of images on the training images' manifold", "0..1"),
        result("recall", "float64", "Share of training images on the images' manifold", "0..1"),
        result("density", "float64", "Training neighbourhoods around an image, over k"),
        result("coverage", "float64", "Share of training neighbourhoods with an image", "0..1"),
        result("cache_accuracy", "float64", "Validation accuracy of the untrained cache", "0..1"),
        result("gain_per_image", "float64", "What that gains over text alone, per image", "0..1"),
        result("match_loss_before", "float64", "Matching loss before distillation"),
        result("match_loss_after", "float64", "Matching loss after distillation"),
        result("match_loss_noise", "float64", "The same of noise, at a step size that suits it"),
        result("num_classes", "int64", "Classes of the set", "classes"),
        result("local_classes", "int64", "Classes that its client trains on", "classes"),
        result("student_lr", "float64", "Step size of the student on the set, as learned"),
        result("uninformative", "bool", "About as good as noise: `match_loss_noise` < 0.1 per row"),
        measured("generate_s", "float64", "Time to make the images; of a class, its share", "s"),
    ),
)

_EVENTS = TableSchema(
    "events",
    "One row per thing worth telling: failures, retries, back-offs, resumptions.",
    (
        _RUN_ID,
        measured("time", "timestamp", "When", "UTC"),
        option("round", "int64", "In which round; missing outside of rounds"),
        option("client_id", "int64", "Which client, if one"),
        key("kind", "string", "`client_failed`, `retry`, `out_of_memory`, `resumed`, `noise`, ..."),
        measured("message", "string", "What happened, the traceback of a failure included"),
        measured("node", "string", "Where"),
    ),
)

_PREDICTIONS = TableSchema(
    "predictions",
    "One row per sample of the last round: what the model said.",
    (
        _RUN_ID,
        _ROUND,
        option("model", "string", "Which model; missing for the served one"),
        key("split", "string", "Which split"),
        key("sample", "int64", "Index of the sample in its split"),
        result("label", "int64", "True class"),
        result("prediction", "int64", "Predicted class"),
        result("correct", "bool", "Whether they agree"),
    ),
)

TABLES: dict[str, TableSchema] = {
    table.name: table
    for table in (_RUNS, _ROUNDS, _EVALUATIONS, _CLIENTS, _SYNTHETIC, _EVENTS, _PREDICTIONS)
}


def table_named(name: str) -> TableSchema:
    """The table called `name`.

    Raises:
        ResultsError: There is no such table.
    """
    if name not in TABLES:
        raise ResultsError(f"there is no table {name!r}; {did_you_mean(name, TABLES)}")
    return TABLES[name]


@lru_cache
def arrow_schema(name: str) -> pa.Schema:
    """The Arrow schema of a table, without the `config.*` columns of `runs`."""
    columns = table_named(name).columns
    return pa.schema([pa.field(column.name, column.arrow_type()) for column in columns])
