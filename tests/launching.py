"""Launches several real processes on the CPU through the files of launch/accelerate.

Two traps. Where accelerate is told to use the CPU it makes one process of several, unless it is
told by the environment variable alone; and with that variable it makes plain data-parallel
processes of DeepSpeed's. So the variable is set for ddp only, and for DeepSpeed the trained program
itself has to say `TrainingArguments(use_cpu=True)`. A test asserts how many processes there were.
"""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

import psutil

CONFIGS = Path(__file__).resolve().parents[1] / "launch" / "accelerate"
# DeepSpeed compiles a small extension at first use: once per test process, shared with no other.
EXTENSIONS = Path(tempfile.mkdtemp(prefix="rlroute-extensions-"))


def find_free_port() -> int:
    """Return a port of this machine that nobody listens on."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


def launch(
    config: str,
    arguments: Sequence[str],
    *,
    processes: int = 2,
    timeout_seconds: float = 600,
    environment: Mapping[str, str] | None = None,
) -> str:
    """Run `accelerate launch` with a file of launch/accelerate; return what was printed.

    `arguments` are what follows: `["-m", "rlroute", "train", ...]` or a script with its own.

    Raises:
        AssertionError: the command failed or took longer than the limit; the end of its output is
            shown, and none of its processes is left.
    """
    for lock in EXTENSIONS.glob("**/lock"):  # of a build that was killed: it would be waited for
        lock.unlink()
    command = [sys.executable, "-m", "accelerate.commands.launch"]
    command += ["--config_file", str(CONFIGS / f"{config}.yaml")]
    if processes > 1:
        command += ["--num_processes", str(processes), "--main_process_port", str(find_free_port())]
    with tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace") as output:
        launcher = subprocess.Popen(
            [*command, *arguments],
            env=make_environment(config) | dict(environment or {}),
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
        )
        try:
            status: int | str = launcher.wait(timeout_seconds)
        except subprocess.TimeoutExpired:
            status = f"nothing after {timeout_seconds} s"
        finally:
            end_process(launcher)
        output.seek(0)
        printed = output.read()
    assert status == 0, f"{config}: ended with {status}\n{printed[-6000:]}"
    return printed


def make_environment(config: str) -> dict[str, str]:
    """Return the variables under which a file of launch/accelerate makes processes on the CPU."""
    environment = {key: value for key, value in os.environ.items() if key != "ACCELERATE_USE_CPU"}
    if not config.startswith("zero"):
        environment["ACCELERATE_USE_CPU"] = "true"
    scripts = str(Path(sys.executable).parent)  # ninja, which builds the extension, stands there
    return environment | {
        "CUDA_VISIBLE_DEVICES": "",
        "OMP_NUM_THREADS": "1",
        "PATH": os.pathsep.join((scripts, environment.get("PATH", ""))),
        "TORCH_EXTENSIONS_DIR": str(EXTENSIONS),
        "TRL_EXPERIMENTAL_SILENCE": "1",
    }


def end_process(process: subprocess.Popen[bytes]) -> None:
    """End a process that we started and all that it started: asked first, killed after 10 s.

    The workers lead groups of their own, so that ending the launcher's group would leave them.
    """
    with contextlib.suppress(psutil.NoSuchProcess):
        parent = psutil.Process(process.pid)
        family = [parent, *parent.children(recursive=True)]
        if process.poll() is None:
            process.send_signal(signal.SIGTERM)
        _, alive = psutil.wait_procs(family, timeout=10)
        for member in alive:
            with contextlib.suppress(psutil.NoSuchProcess):
                member.kill()
    process.wait()
