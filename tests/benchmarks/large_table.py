"""A table of a million queries: peak memory, and seconds per update beside those of a small table.

    PYTHONPATH=.:tests python tests/benchmarks/large_table.py --folder DIR [--queries 1000000 8000]

It writes item-response tables (12 candidates) as Parquet into DIR/<queries>, unless they are there,
and prepares a run on each, in one process that does nothing else, with the defaults of `rlroute
train`. Then the runs take turns, update by update, so that both meet the same machine. It prints
the peak of the process, what preparing took (processor time), the median update of each, and the
ratio of the first table's to the last one's. One thread. It asserts nothing.
"""

from __future__ import annotations

import argparse
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

CANDIDATES = 12


class Training:
    """A run on one table, prepared as `rlroute train` prepares it, that takes updates on demand."""

    def __init__(self, table: Path, folder: Path, algorithm: str) -> None:
        from accelerate import Accelerator

        from rlroute.trainers.decision import TableProblem, make_learner, write_run
        from rlroute.trainers.loop import run_loop
        from rlroute.trainers.recipe import Recipe
        from rlroute.trainers.run_folder import read_run

        recipe = Recipe.model_validate(
            {
                "table": str(table),
                "updates": 2,
                "algorithm": make_algorithm(algorithm),
                "tracking": {"wandb": False},
            }
        )
        accelerator = Accelerator()
        write_run(recipe, folder, accelerator, "")
        prepared = read_run(folder).prepared
        self.learner = make_learner(recipe, prepared, accelerator)
        self.problem = TableProblem(recipe, prepared, self.learner)
        run_loop(self.problem, self.learner, folder)  # validation, checkpoint, last pictures
        self.updates = recipe.updates

    def update(self) -> tuple[float, float]:
        """Collect, learn and summarise once; return seconds on the clock and of the processor."""
        from rlroute.trainers.update import update_policy

        started = time.perf_counter(), time.process_time()
        batch = self.problem.collect(self.learner, self.updates)
        update_policy(self.learner, batch, self.updates)
        self.problem.summarise(self.learner, batch)
        self.updates += 1
        return time.perf_counter() - started[0], time.process_time() - started[1]


def make_algorithm(kind: str) -> dict[str, str | None]:
    """Return the settings of an algorithm that takes all its epochs in every update."""
    return {"kind": kind} if kind == "expected_gradient" else {"kind": kind, "target_kl": None}


def train_child(folder: Path, sizes: list[int], updates: int, algorithm: str) -> None:
    """Train on all tables in turn, update by update, and print what it took."""
    import torch

    torch.set_num_threads(1)
    runs = []
    with tempfile.TemporaryDirectory() as temporary:
        for queries in sizes:
            started = time.process_time()
            runs.append(Training(folder / str(queries), Path(temporary) / str(queries), algorithm))
            seconds = time.process_time() - started
            peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
            print(f"{queries:>9,} queries: prepared in {seconds:.0f} s, peak {peak:.2f} GB so far")
    found = [[run.update() for run in runs] for _ in range(updates)]
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    print(f"peak of the process with all tables: {peak:.2f} GB")
    for name, kind in (("clock", 0), ("processor", 1)):
        median = [statistics.median(row[n][kind] for row in found) for n in range(len(runs))]
        pairs = zip(sizes, median, strict=True)
        each = ", ".join(f"{1e3 * value:.1f} ms ({queries:,})" for queries, value in pairs)
        print(f"an update by the {name}: {each}; ratio {median[0] / median[-1]:.2f}")


def write_child(folder: Path, queries: int) -> None:
    """Write a table, in a process whose memory is not measured."""
    from large_tables import write_large_table

    from rlroute.data.irt_table import IrtTableConfig

    write_large_table(folder, IrtTableConfig(queries=queries, candidates=CANDIDATES), seed=0)


def run_child(*arguments: str) -> None:
    """Run this script in a process of its own."""
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    subprocess.run([sys.executable, __file__, *arguments], env=environment, check=True)


def main() -> None:
    """Write the tables that are missing, then measure."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--queries", type=int, nargs="+", default=[1_000_000, 8_000])
    parser.add_argument("--updates", type=int, default=40)
    parser.add_argument("--algorithm", default="ppo")
    parser.add_argument("--child", choices=["write", "train"], help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.child == "write":
        write_child(arguments.folder, arguments.queries[0])
        return
    if arguments.child == "train":
        settings = arguments.queries, arguments.updates, arguments.algorithm
        train_child(arguments.folder, *settings)
        return
    for queries in arguments.queries:
        table = arguments.folder / str(queries)
        if not (table / "models.csv").exists():
            run_child("--folder", str(table), "--queries", str(queries), "--child", "write")
    run_child(*sys.argv[1:], "--child", "train")


if __name__ == "__main__":
    main()
