"""From a table to a trained router, beside LLMRouter 0.4.0 on the same table and features.

    pip install --no-deps --target DIR llmrouter-lib==0.4.0 litellm openai jiter tiktoken
    PYTHONPATH=. python tests/benchmarks/against_llmrouter.py --table TABLE --llmrouter DIR

LLMRouter's kNN, MLP and matrix factorisation train with the settings of its repository's examples,
on the TF-IDF features that our run fitted, which it gets for nothing; ours counts reading the CSV
file, fitting the encoder, profiles, training and validation. Every training is a process of its
own: printed are processor seconds, peak memory, and quality and cost on the test split of what the
router picks (LLMRouter knows no cost weight; ours at weight 0 and at the weight given). The rows of
the table come in three orders: LLMRouter takes the first of equally good models as its label. It
asserts nothing. No text is embedded by LLMRouter and nothing is downloaded.
"""

from __future__ import annotations

import argparse
import csv
import io
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

ORDERS = 3
HPARAMS: dict[str, dict[str, Any]] = {
    "knn": {"n_neighbors": 5},
    "mlp": {
        "hidden_layer_sizes": [128, 64],
        "activation": "relu",
        "lr": 0.001,
        "epochs": 100,
        "batch_size": 32,
        "alpha": 0.0001,
    },
    "mf": {"latent_dim": 128, "lr": 0.001, "epochs": 5, "noise_alpha": 0.0},
}


def make_recipe(table: Path, algorithm: str) -> Any:
    """Return the shipped recipe on a table."""
    from rlroute.config import load_config
    from rlroute.trainers.recipe import Recipe

    path = Path(__file__).resolve().parents[2] / f"recipes/single_turn/mlp_{algorithm}.yaml"
    return load_config(Recipe, path, [f"table={table}", "tracking.wandb=false"])


def train_ours(table: Path, folder: Path, algorithm: str, weight: float) -> dict[str, Any]:
    """Train from the table's file on, then pick on test."""
    from rlroute.policies.decision import GreedyPolicy
    from rlroute.trainers.decision import train
    from rlroute.trainers.run_folder import load_best, read_run

    started = time.process_time()
    train(make_recipe(table, algorithm), folder)
    found = measure(started)
    run = read_run(folder)
    policy, test = GreedyPolicy(load_best(run)[0]), run.prepared.splits["test"]
    names = [candidate.id for candidate in test.table.candidates]
    for value in (0.0, weight):
        pick_Q = policy.compute_probabilities(test, value).argmax(1)
        found[f"picks at weight {value:g}"] = [names[pick] for pick in pick_Q]
    return found


def train_theirs(kind: str, folder: Path) -> dict[str, Any]:
    """Train a router of LLMRouter on the files in a folder, then pick on test."""
    import torch
    import yaml
    from llmrouter import models

    trainers = {
        "knn": (models.KNNRouter, models.KNNRouterTrainer),
        "mlp": (models.MLPRouter, models.MLPTrainer),
        "mf": (models.MFRouter, models.MFRouterTrainer),
    }
    torch.set_num_threads(1)
    torch.manual_seed(0)
    test_QF = torch.load(folder / "test.pt")
    settings = {
        "data_path": {
            "query_embedding_data": str(folder / "train.pt"),
            "routing_data_train": str(folder / "train.jsonl"),
        },
        "model_path": {"ini_model_path": "", "save_model_path": str(folder / f"{kind}.pkl")},
        "hparam": HPARAMS[kind] | ({"text_dim": test_QF.shape[1]} if kind == "mf" else {}),
    }
    (folder / "settings.yaml").write_text(yaml.safe_dump(settings), encoding="utf-8")
    make_router, make_trainer = trainers[kind]
    started = time.process_time()
    router = make_router(str(folder / "settings.yaml"))
    trainer = make_trainer(router)
    trainer.train()
    found = measure(started)
    if kind == "knn":
        names = trainer.model.predict(test_QF.numpy()).tolist()
    elif kind == "mlp":
        names = [router.idx_to_model[k] for k in trainer.model.predict(test_QF).tolist()]
    else:
        with torch.no_grad():
            row_QF = trainer.model.text_proj(test_QF)
            picks = [int(trainer.model.score_all(row_F).argmax()) for row_F in row_QF]
        names = [router.idx_to_model[k] for k in picks]
    return found | {"picks": names}


def measure(started: float) -> dict[str, Any]:
    """Return processor seconds since `started` and the peak memory of this process.

    Linux only: `ru_maxrss` would start from the memory of the process that started this one.
    """
    status = Path("/proc/self/status").read_text(encoding="ascii")
    (line,) = (line for line in status.splitlines() if line.startswith("VmHWM"))
    return {"seconds": time.process_time() - started, "peak_gb": int(line.split()[1]) / 2**20}


def shuffle_table(source: Path, folder: Path, order: int) -> None:
    """Write a table with its rows in another order (0: as they are)."""
    from rlroute.data.records import format_csv
    from rlroute.data.table import make_records, read_table

    table = read_table(source)
    header, *rows = csv.reader(io.StringIO(format_csv(make_records(table)), newline=""))
    if order:
        rows = [rows[i] for i in np.random.default_rng(order).permutation(len(rows))]
    folder.mkdir(parents=True)
    with (folder / "records.csv").open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([header, *rows])
    shutil.copy(source / "models.csv", folder / "models.csv")


def write_their_files(run_folder: Path, table: Path, folder: Path) -> None:
    """Write what LLMRouter reads: features of our run, and the train records as they stand."""
    import torch

    from rlroute.trainers.run_folder import read_run

    splits = read_run(run_folder).prepared.splits
    folder.mkdir(parents=True)
    for split in ("train", "test"):
        torch.save(torch.as_tensor(splits[split].features_QF.copy()), folder / f"{split}.pt")
    row_of = {query.id: row for row, query in enumerate(splits["train"].table.queries)}
    with (
        (table / "records.csv").open(newline="", encoding="utf-8") as source,
        (folder / "train.jsonl").open("w", encoding="utf-8") as target,
    ):
        for record in csv.DictReader(source):
            if record["split"] == "train":
                row = {
                    "query": record["query"],
                    "model_name": record["model"],
                    "performance": float(record["score"]),
                    "embedding_id": row_of[record["query_id"]],
                }
                target.write(json.dumps(row) + "\n")


def run_child(arguments: argparse.Namespace, kind: str, table: Path, folder: Path) -> Any:
    """Train in a process of its own and return what it found."""
    path = [str(arguments.llmrouter)] if kind in HPARAMS else []
    environment = os.environ | {
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": os.pathsep.join([*path, *sys.path]),
    }
    result = folder.parent / f"{kind}-{folder.name}.json"
    settings = ["--table", str(table), "--weight", str(arguments.weight)]
    child = ["--child", kind, "--folder", str(folder), "--result", str(result)]
    subprocess.run(
        [sys.executable, __file__, *settings, *child],
        env=environment,
        stdout=subprocess.DEVNULL,
        check=True,
    )
    return json.loads(result.read_text(encoding="utf-8"))


def compare(arguments: argparse.Namespace, temporary: Path) -> None:
    """Train everything on every order of the rows and print a line for each."""
    from rlroute.trainers.run_folder import read_run

    print(f"{'router':<34}{'order':>6}{'s':>8}{'GB':>7}{'quality':>9}{'USD per 1,000':>15}")
    for order in range(ORDERS):
        table, files = temporary / f"table-{order}", temporary / f"files-{order}"
        shuffle_table(arguments.table, table, order)
        found, run = {}, temporary / f"run-{order}"
        for algorithm in arguments.algorithms.split(","):
            run = temporary / f"{algorithm}-{order}"
            found[f"rlroute, {algorithm}"] = run_child(arguments, algorithm, table, run)
        write_their_files(run, table, files)
        for kind in HPARAMS:
            found[f"LLMRouter, {kind}"] = run_child(arguments, kind, table, files)
        test = read_run(run).prepared.splits["test"].table
        column = {candidate.id: k for k, candidate in enumerate(test.candidates)}
        for name, one in found.items():
            for key in [key for key in one if key.startswith("picks")]:
                cell = np.arange(len(test.queries)), [column[pick] for pick in one[key]]
                label = name + key.removeprefix("picks").replace(" at weight", ", weight")
                quality = test.score_QK[cell].mean()
                usd = 1000 * test.cost_usd_QK[cell].mean(dtype=np.float64)
                print(
                    f"{label:<34}{order:>6}{one['seconds']:>8.1f}{one['peak_gb']:>7.2f}"
                    f"{quality:>9.4f}{usd:>15.4f}",
                    flush=True,
                )


def main() -> None:
    """Compare, or be one of the trainings."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--table", type=Path, required=True)
    parser.add_argument("--llmrouter", type=Path, help="where LLMRouter was installed")
    parser.add_argument("--algorithms", default="expected_gradient")
    parser.add_argument("--weight", type=float, default=0.1)
    parser.add_argument("--child", help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--result", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if not arguments.child:
        with tempfile.TemporaryDirectory() as temporary:
            compare(arguments, Path(temporary))
        return
    if arguments.child in HPARAMS:
        found = train_theirs(arguments.child, arguments.folder)
    else:
        settings = arguments.table, arguments.folder, arguments.child, arguments.weight
        found = train_ours(*settings)
    arguments.result.write_text(json.dumps(found), encoding="utf-8")


if __name__ == "__main__":
    main()
