"""What a run tells: metrics.jsonl always, a progress line, and Weights & Biases as a mirror.

Local files come first: W&B holds nothing that the run folder does not. It runs online where a key
is set (`WANDB_API_KEY` or a login), offline inside the run folder otherwise. Only the main process
tracks.
"""

from __future__ import annotations

import json
import math
import netrc
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType
from typing import Any

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    Task,
    TextColumn,
    TimeRemainingColumn,
)
from rich.text import Text

from rlroute.extras import require
from rlroute.files import write_atomic

METRICS_FILE = "metrics.jsonl"
EVENTS_FILE = "events.log"
EPISODES_FILE = "trajectories.jsonl"
WANDB_HOST = "api.wandb.ai"


class RateColumn(ProgressColumn):
    """Steps per second."""

    def render(self, task: Task) -> Text:
        """Show the current rate, or the mean one at the end."""
        speed = task.finished_speed or task.speed
        return Text("--/s" if speed is None else f"{speed:.1f}/s", style="progress.data.speed")


def make_progress(console: Console, unit: str) -> Progress:
    """Return a progress bar that shows count, rate and remaining time."""
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(bar_width=24),
        MofNCompleteColumn(),
        TextColumn(unit),
        RateColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[note]}"),
        console=console,
    )


class Tracker:
    """Writes a run's metrics; used as a context manager."""

    def __init__(
        self,
        folder: Path,
        *,
        updates: int,
        start: int,
        wandb_project: str | None,
        config: Mapping[str, Any],
    ) -> None:
        self.folder = folder
        self.console = Console(stderr=True)
        self.progress = make_progress(self.console, "updates")
        self.task = self.progress.add_task("training", total=updates, completed=start, note="")
        drop_later_rows(folder / METRICS_FILE, start)
        drop_later_rows(folder / EPISODES_FILE, start)
        self.metrics_file = (folder / METRICS_FILE).open("a", encoding="utf-8")
        self.wandb_run = start_wandb(folder, wandb_project, config) if wandb_project else None

    def __enter__(self) -> Tracker:
        self.progress.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.progress.stop()
        self.metrics_file.close()
        if self.wandb_run is not None:
            self.wandb_run.finish(exit_code=0 if kind is None else 1)

    def log(self, update: int, metrics: Mapping[str, float], note: str) -> None:
        """Append one row of metrics and move the progress bar."""
        row = {"step": update} | {
            name: value if math.isfinite(value) else None for name, value in metrics.items()
        }
        self.metrics_file.write(json.dumps(row) + "\n")
        self.metrics_file.flush()
        self.progress.update(self.task, completed=update, note=note)
        if self.wandb_run is not None:
            self.wandb_run.log({k: v for k, v in row.items() if v is not None}, step=update)

    def log_event(self, text: str) -> None:
        """Append a dated line to events.log."""
        with (self.folder / EVENTS_FILE).open("a", encoding="utf-8") as file:
            file.write(f"{datetime.now(UTC).isoformat(timespec='seconds')} {text}\n")

    def log_episodes(self, update: int, rows: Sequence[Mapping[str, Any]]) -> None:
        """Append sampled episodes to trajectories.jsonl."""
        with (self.folder / EPISODES_FILE).open("a", encoding="utf-8") as file:
            file.writelines(json.dumps({"step": update, **row}) + "\n" for row in rows)

    def mirror_picture(self, name: str, path: Path) -> None:
        """Show a picture of the run folder in W&B."""
        if self.wandb_run is not None:
            wandb = require("wandb", "train")
            self.wandb_run.log({name: wandb.Image(str(path))})

    def mirror_table(self, name: str, rows: Sequence[Mapping[str, Any]]) -> None:
        """Show rows (all with the same keys) as a table in W&B."""
        if self.wandb_run is not None and rows:
            wandb = require("wandb", "train")
            table = wandb.Table(columns=list(rows[0]), data=[list(row.values()) for row in rows])
            self.wandb_run.log({name: table})


class StreamMirror:
    """Shows in W&B what learners did along a stream; without a W&B run it does nothing."""

    def __init__(self, wandb_run: Any) -> None:
        self.wandb_run = wandb_run
        if wandb_run is not None:
            wandb_run.define_metric("*", step_metric="query")

    def mirror_rows(self, learner: str, rows: Sequence[Mapping[str, Any]]) -> None:
        """Show the rows of metrics.jsonl of a learner and seed as curves over the queries."""
        if self.wandb_run is None:
            return
        for row in rows:
            numbers = {name: value for name, value in row.items() if isinstance(value, int | float)}
            query, _ = numbers.pop("step"), numbers.pop("seed")
            known = {name: value for name, value in numbers.items() if math.isfinite(value)}
            named = {f"{learner}/{name}": value for name, value in known.items()}
            self.wandb_run.log({"query": query} | named)

    def mirror_picture(self, name: str, path: Path) -> None:
        """Show a picture of the run folder."""
        if self.wandb_run is not None:
            wandb = require("wandb", "train")
            self.wandb_run.log({name: wandb.Image(str(path))})


@contextmanager
def open_stream_mirror(
    folder: Path, wandb_project: str | None, config: Mapping[str, Any]
) -> Iterator[StreamMirror]:
    """Yield the mirror of a stream's run; W&B is told at the end whether it went well."""
    wandb_run = start_wandb(folder, wandb_project, config) if wandb_project else None
    exit_code = 1
    try:
        yield StreamMirror(wandb_run)
        exit_code = 0
    finally:
        if wandb_run is not None:
            wandb_run.finish(exit_code=exit_code)


def start_wandb(folder: Path, project: str, config: Mapping[str, Any]) -> Any:
    """Start a W&B run that writes below `folder` and records nothing of the machine or the code."""
    wandb = require("wandb", "train")
    settings = wandb.Settings(
        console="off",
        disable_code=True,
        disable_git=True,
        silent=True,
        x_disable_machine_info=True,
        x_disable_meta=True,
        x_disable_stats=True,
    )
    return wandb.init(
        project=project,
        name=folder.name,
        dir=str(folder),
        mode="online" if has_wandb_key() else "offline",
        config=dict(config),
        settings=settings,
    )


def has_wandb_key() -> bool:
    """Tell whether W&B can log in, without asking and without reading the key."""
    if os.environ.get("WANDB_MODE") in ("offline", "disabled"):
        return False
    if os.environ.get("WANDB_API_KEY"):
        return True
    path = Path(os.environ.get("NETRC", Path.home() / ".netrc"))
    try:
        return path.exists() and netrc.netrc(str(path)).authenticators(WANDB_HOST) is not None
    except netrc.NetrcParseError:
        return False


def drop_later_rows(path: Path, last_update: int) -> None:
    """Cut the rows after `last_update`, which a resumed run will write again."""
    if not path.exists():
        return
    rows = [line for line in path.read_text(encoding="utf-8").splitlines() if line.endswith("}")]
    kept = [line for line in rows if json.loads(line)["step"] <= last_update]
    write_atomic(path, "".join(line + "\n" for line in kept))


def read_metrics(folder: Path) -> list[dict[str, Any]]:
    """Return the rows of a run's metrics.jsonl."""
    lines = (folder / METRICS_FILE).read_text(encoding="utf-8").splitlines()
    return [json.loads(line) for line in lines]
