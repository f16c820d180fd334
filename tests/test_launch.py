"""The files of launch/: the libraries that they are for read them; every name in them exists."""

from __future__ import annotations

import dataclasses
import importlib.util
import os
import re
import shutil
import signal
import stat
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import psutil
import pytest
import yaml
from launching import find_free_port

from rlroute.config import apply_override, load_config, parse_config
from rlroute.pool.open import list_candidates
from rlroute.pool.pool_file import load_pool
from rlroute.trainers.text_recipe import PretrainedConfig, TextRecipe, VllmSamplerConfig
from rlroute.types import Prices, RLRouteError

ROOT = Path(__file__).resolve().parents[1]
LAUNCH = ROOT / "launch"
CONFIGS = sorted((LAUNCH / "accelerate").glob("*.yaml"))
RECIPES = ROOT / "recipes" / "multi_round"
LARGE = sorted(RECIPES.glob("*-3b_*.yaml"))  # those that need a rollout server on GPUs
SLURM = LAUNCH / "slurm" / "train_with_rollouts.sbatch"
SERVERS = [LAUNCH / "vllm" / "serve_cpu.sh", LAUNCH / "vllm" / "serve_rollout.sh"]
SCRIPTS = [SLURM, *SERVERS]
TEXTS = [LAUNCH / "README.md", LAUNCH / "vllm" / "README.md", SLURM]
PLUGIN_SECTIONS = {"deepspeed_config": "", "fsdp_config": "fsdp_"}


# --- accelerate -----------------------------------------------------------------------------------


def parse_launch(path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Return the arguments as `accelerate launch` sees them after it has read the file."""
    launch = pytest.importorskip("accelerate.commands.launch", reason="the extra `train` is absent")
    for name in list(os.environ):
        if name.startswith(("ACCELERATE_", "FSDP_")):
            monkeypatch.delenv(name)
    words = ["--config_file", str(path), "--num_processes", "2", "script.py"]
    return launch._validate_launch_command(launch.launch_command_parser().parse_args(words))[0]


def test_there_is_a_file_for_every_way_of_sharing() -> None:
    assert [path.stem for path in CONFIGS] == ["ddp", "fsdp2", "one_process", "zero2", "zero3"]


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_accelerate_knows_every_key(path: Path) -> None:
    config_args = pytest.importorskip("accelerate.commands.config.config_args")
    launch = pytest.importorskip("accelerate.commands.launch")
    stated = yaml.safe_load(path.read_text(encoding="utf-8"))
    fields = {field.name for field in dataclasses.fields(config_args.ClusterConfig)}
    assert set(stated) <= fields
    arguments = set(vars(launch.launch_command_parser().parse_args(["script.py"])))
    for section, prefix in PLUGIN_SECTIONS.items():
        for key in stated.get(section, {}):
            assert key in arguments, f"{section}: {key}"
            assert key.startswith(prefix)
    config_args.load_config_from_file(str(path))


@pytest.mark.parametrize(
    ("name", "launcher"),
    [
        ("one_process", None),
        ("ddp", "multi_gpu"),
        ("zero2", "use_deepspeed"),
        ("zero3", "use_deepspeed"),
        ("fsdp2", "use_fsdp"),
    ],
)
def test_each_file_starts_what_its_name_says(
    name: str, launcher: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    arguments = parse_launch(LAUNCH / "accelerate" / f"{name}.yaml", monkeypatch)
    kinds = {kind: getattr(arguments, kind) for kind in ("multi_gpu", "use_deepspeed", "use_fsdp")}
    assert [kind for kind, chosen in kinds.items() if chosen] == ([launcher] if launcher else [])
    assert arguments.mixed_precision == "no", "precision is the recipe's"
    assert not arguments.cpu


@pytest.mark.parametrize("stage", [2, 3])
def test_deepspeed_accepts_what_accelerate_makes_of_the_file(
    stage: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    zero_config = pytest.importorskip("deepspeed.runtime.zero.config", reason="no deepspeed")
    from accelerate.utils import DeepSpeedPlugin
    from accelerate.utils.launch import prepare_deepspeed_cmd_env

    arguments = parse_launch(LAUNCH / "accelerate" / f"zero{stage}.yaml", monkeypatch)
    assert arguments.deepspeed_multinode_launcher == "standard"
    arguments.deepspeed_fields_from_accelerate_config = ""
    _, environment = prepare_deepspeed_cmd_env(arguments)
    for name, value in environment.items():
        if name.startswith("ACCELERATE_"):
            monkeypatch.setenv(name, value)
    made = DeepSpeedPlugin().deepspeed_config["zero_optimization"]
    zero = zero_config.DeepSpeedZeroConfig(**made)
    assert zero.stage == stage
    assert (zero.offload_optimizer is None) or zero.offload_optimizer.device == "none"
    if stage == 3:
        assert made["stage3_gather_16bit_weights_on_model_save"] is True


def test_accelerate_makes_the_second_fsdp_of_its_file(monkeypatch: pytest.MonkeyPatch) -> None:
    arguments = parse_launch(LAUNCH / "accelerate" / "fsdp2.yaml", monkeypatch)
    from accelerate.utils import FullyShardedDataParallelPlugin
    from accelerate.utils.launch import prepare_multi_gpu_env

    for name, value in prepare_multi_gpu_env(arguments).items():
        if name.startswith("FSDP_"):
            monkeypatch.setenv(name, value)
    plugin = FullyShardedDataParallelPlugin()
    assert plugin.fsdp_version == 2
    assert plugin.reshard_after_forward is True
    assert plugin.cpu_ram_efficient_loading is True
    assert "FULL" in str(plugin.state_dict_type)


# --- names in texts and scripts -------------------------------------------------------------------


@pytest.mark.parametrize("path", TEXTS, ids=lambda path: path.name)
def test_every_file_and_module_that_is_named_exists(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    named = set(re.findall(r"(?<![\w/.])(?:launch|recipes|tests|rlroute)/[\w./-]*\w", text))
    named |= {f"launch/accelerate/{name}" for name in re.findall(r"`?C/(\w+\.yaml)", text)}
    named |= {f"launch/accelerate/{name}" for name in re.findall(r"`(\w+\.yaml)`", text)}
    found = [ROOT / name for name in named]
    found += [path.parent / name for name in re.findall(r"\]\(((?!http)[^)#]+)\)", text)]
    assert found
    assert not [name for name in found if not name.exists()]
    modules = set(re.findall(r"-m (rlroute[\w.]*|accelerate[\w.]+)", text))
    assert "rlroute" in modules or "accelerate" not in text
    assert all(importlib.util.find_spec(module) for module in modules), modules


def test_every_subcommand_and_option_that_is_named_exists() -> None:
    import typer

    from rlroute.cli import app

    commands = typer.main.get_command(app)
    known = set(getattr(commands, "commands", {}))
    for path in TEXTS:
        text = path.read_text(encoding="utf-8")
        assert set(re.findall(r"(?:`|-m |-- )rlroute ([a-z]+)", text)) <= known
    launch = pytest.importorskip("accelerate.commands.launch")
    arguments = set(vars(launch.launch_command_parser().parse_args(["script.py"])))
    for path in TEXTS:
        text = path.read_text(encoding="utf-8")
        used = set(re.findall(r"--((?:config|num|machine|main)_\w+)", text))
        assert used <= arguments, used - arguments


def list_commands(path: Path) -> list[str]:
    """Return the commands that a text shows: in backticks, indented, and in fenced blocks."""
    text = path.read_text(encoding="utf-8").replace("\\\n", " ")
    spans = re.findall(r"```sh\n(.*?)```", text, re.DOTALL)
    spans += re.findall(r"(?:^ {4}.*\n)+", text, re.MULTILINE)
    lines = [line for span in spans for line in span.splitlines()]
    plain = re.sub(r"```.*?```", "", text, flags=re.DOTALL)
    return lines + [" ".join(span.split()) for span in re.findall(r"`([^`]+)`", plain)]


def list_overrides(command: str) -> list[str]:
    """Return the words of a command that override a setting of a multi-round recipe."""
    fields = "|".join(TextRecipe.model_fields)
    words = re.findall(rf"(?:^|[\s'])((?:{fields})(?:\.\w+)*=(?:\{{.*?\}}|[^\s']+))", command)
    return [word for word in words if "$" not in word]


@pytest.mark.parametrize(
    "path", [TEXTS[0], RECIPES / "README.md"], ids=lambda path: path.parent.name
)
def test_every_override_that_a_text_shows_is_a_setting(path: Path) -> None:
    shown = [(command, list_overrides(command)) for command in list_commands(path)]
    shown = [(command, overrides) for command, overrides in shown if overrides]
    assert shown
    for command, overrides in shown:
        named = re.search(r"recipes/multi_round/[\w.-]+_(?:grpo|ppo)\.yaml", command)
        recipes = [ROOT / named[0]] if named else sorted(RECIPES.glob("*_*po.yaml"))
        assert any(is_accepted(recipe, overrides) for recipe in recipes), command


def is_accepted(recipe: Path, overrides: list[str]) -> bool:
    """Say whether a recipe knows the settings."""
    try:
        load_config(TextRecipe, recipe, overrides)
    except RLRouteError:
        return False
    return True


def test_the_overrides_of_the_commands_are_found() -> None:
    command = "`C/a.yaml -m rlroute train R policy.lora.rank=16 'rollout.sampler={kind: vllm}' a=b`"
    assert list_overrides(command) == ["policy.lora.rank=16", "rollout.sampler={kind: vllm}"]
    found = {word for one in list_commands(TEXTS[0]) for word in list_overrides(one)}
    assert {"algorithm.micro_batch=16", "rollout.sampler.sync=folder"} <= found


def test_the_episodes_of_every_command_for_several_processes_can_be_shared_out() -> None:
    pytest.importorskip("trl", reason="the extra `text` is absent")
    from rlroute.trainers.text_run import check_shares

    commands = list_commands(TEXTS[0]) + [
        command for path in LARGE for command in read_header(path)
    ]
    shown = [command for command in commands if re.search(r"--num_processes \d.* train", command)]
    assert len(shown) >= 4 + len(LARGE)
    for command in shown:
        processes = int(re.findall(r"--num_processes (\d+)", command)[0])
        named = re.search(r"recipes/multi_round/[\w.-]+\.yaml", command)
        for recipe in [ROOT / named[0]] if named else LARGE:
            check_shares(load_config(TextRecipe, recipe, list_overrides(command)), processes)


def split_settings(command: str, program: str) -> dict[str, str]:
    """Return the environment variables that stand before a program in a command."""
    return dict(re.findall(r"(\w+)=(\S+)", command.partition(program)[0]))


def test_what_is_set_for_a_start_script_is_read_by_it() -> None:
    commands = [command for path in TEXTS for command in list_commands(path)]
    commands += [command for path in LARGE for command in read_header(path)]
    for script in SERVERS:
        program = f"launch/vllm/{script.name}"
        own = [split_settings(command, program) for command in commands if program in command]
        names = {name for settings in own for name in settings} - {"CUDA_VISIBLE_DEVICES"}
        assert len(names) >= 2, own
        code = script.read_text(encoding="utf-8")
        assert not [name for name in names if f"${{{name}:-" not in code]


# --- the headers of the recipes that take eight GPUs ----------------------------------------------


def read_header(path: Path) -> list[str]:
    """Return the commands of a recipe's header, each in one line."""
    lines = path.read_text(encoding="utf-8").splitlines()
    header = "\n".join(line[1:].strip() for line in lines if line.startswith("#"))
    block = header.partition("Command:")[2].partition("Hardware:")[0].replace("\\\n", " ")
    return [" ".join(line.split()) for line in block.splitlines()]


@pytest.mark.parametrize("path", LARGE, ids=lambda path: path.stem)
def test_the_header_serves_what_the_recipe_needs_on_gpus_of_its_own(path: Path) -> None:
    recipe = load_config(TextRecipe, path)
    serve, _, train = read_header(path)
    served = split_settings(serve, "launch/vllm/serve_rollout.sh")
    serving = served["CUDA_VISIBLE_DEVICES"].split(",")
    training = split_settings(train, "accelerate")["CUDA_VISIBLE_DEVICES"].split(",")
    assert isinstance(recipe.policy.base, PretrainedConfig)
    assert serve.endswith(f"launch/vllm/serve_rollout.sh {recipe.policy.base.model}")
    assert int(served["MAX_MODEL_LEN"]) >= recipe.rollout.context_tokens
    assert int(served["DATA_PARALLEL"]) == len(serving) == 4
    assert f"--num_processes {len(training)} " in train
    assert len({*serving, *training}) == 8
    assert train.endswith(f"recipes/multi_round/{path.name}")
    config = re.search(r"--config_file (\S+)", train)
    assert config is not None
    assert ROOT / config[1] in CONFIGS


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda path: path.name)
def test_a_script_has_no_fault_of_syntax(path: Path) -> None:
    bash = shutil.which("bash")
    if bash is None:
        pytest.skip("there is no bash")
    done = subprocess.run([bash, "-n", str(path)], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    if shutil.which("shellcheck"):
        done = subprocess.run(
            ["shellcheck", "--severity", "warning", str(path)],
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stdout


# --- the Slurm script, with stand-ins for Slurm's commands, the server and the trainer ------------

SCONTROL = "printf '%s\\n' ${NODES:-node-1 node-2 127.0.0.1}"
SRUN = """while [[ $1 == --* ]]; do shift; done
SLURM_PROCID=0 exec "$@"
"""
PYTHON = """if [[ $1 != -m ]]; then exec {python} "$@"; fi
printf '%s\\n' "${{VLLM_API_KEY:-none}}" > "$RECORD/trainer.key"
printf '%s\\n' "$@" > "$RECORD/trainer"
[[ -z ${{TRAINER_SECONDS:-}} ]] || {{ sleep "$TRAINER_SECONDS"; }}
exit "${{TRAINER_STATUS:-0}}"
"""
VLLM_PYTHON = """printf '%s\\n' "$@" > "$RECORD/server"
printf '%s\\n' "${{VLLM_API_KEY:-none}}" > "$RECORD/server.key"
echo $$ > "$RECORD/server.pid"
[[ -z ${{SERVER_STATUS:-}} ]] || exit "$SERVER_STATUS"
exec {python} -c '
import http.server, os, sys, threading
class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200 if self.path == "/health" else 404)
        self.end_headers()
    def log_message(self, *_):
        pass
seconds = float(os.environ.get("SERVER_SECONDS", "60"))
threading.Timer(seconds, os._exit, (5,)).start()
http.server.ThreadingHTTPServer(("127.0.0.1", int(sys.argv[1])), Handler).serve_forever()
' "$STUB_PORT"
"""


@pytest.fixture
def play(tmp_path: Path) -> Any:
    """Return a function that runs the Slurm script with stand-ins and other settings."""
    port = str(find_free_port())
    programs = {"scontrol": SCONTROL, "srun": SRUN, "python": PYTHON, "vllm_python": VLLM_PYTHON}
    (tmp_path / "bin").mkdir()
    for name, body in programs.items():
        path = tmp_path / "bin" / name
        if "{python}" in body:
            body = body.format(python=sys.executable)
        path.write_text(f"#!/usr/bin/env bash\n{body}\n", encoding="utf-8")
        path.chmod(path.stat().st_mode | stat.S_IXUSR)
    settings = {
        "PATH": f"{tmp_path / 'bin'}:{os.environ['PATH']}",
        "PYTHON": str(tmp_path / "bin" / "python"),
        "VLLM_PYTHON": str(tmp_path / "bin" / "vllm_python"),
        "MODEL": "some/model",
        "RECORD": str(tmp_path),
        "RUN_FOLDER": str(tmp_path / "run"),
        "SLURM_JOB_ID": "7",
        "SLURM_JOB_NODELIST": "node-[1-3]",
        "SLURM_GPUS_ON_NODE": "4",
        "ROLLOUT_PORT": port,
        "STUB_PORT": port,
        "START_SECONDS": "30",
    }

    def run(*words: str, kill: int = 0, **changes: str) -> tuple[int, str]:
        job = subprocess.Popen(
            ["bash", str(SLURM), *words],
            env=settings | changes,
            cwd=ROOT,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        if kill:
            while not (tmp_path / "trainer").exists() and job.poll() is None:
                time.sleep(0.1)
            job.send_signal(kill)
        printed, _ = job.communicate(timeout=60)
        return job.returncode, printed

    return run


RECIPE = "recipes/single_turn/mlp_ppo.yaml"  # the script hands it on; the stand-in does not read it


def read_words(path: Path) -> list[str]:
    return path.read_text(encoding="utf-8").splitlines()


def is_alive(path: Path) -> bool:
    return bool(psutil.pid_exists(int(path.read_text(encoding="utf-8"))))


def read_overrides(words: list[str]) -> dict[str, Any]:
    """Return the settings that the script hands to the recipe, as nested keys."""
    data: dict[str, Any] = {}
    for word in words:
        if re.match(r"[a-z_.]+=", word):
            apply_override(data, word)
    return data


@pytest.mark.slow
def test_the_job_serves_on_the_last_node_trains_on_the_others_and_ends_all(
    play: Any, tmp_path: Path
) -> None:
    status, printed = play(RECIPE, "seed=3", ROLLOUT_ARGUMENTS="--max-model-len 4096")
    assert status == 0, printed
    assert "rollout server on 127.0.0.1 healthy" in printed
    assert not is_alive(tmp_path / "server.pid")
    server, trainer = read_words(tmp_path / "server"), read_words(tmp_path / "trainer")
    assert server[:5] == ["-m", "rlroute.rollout.vllm_server", "--sync", "nccl", "--"]
    assert server[server.index("--data-parallel-size") + 1] == "4"
    assert server[-2:] == ["--max-model-len", "4096"]
    values = {word: trainer[place + 1] for place, word in enumerate(trainer[:-1])}
    assert (values["--num_machines"], values["--num_processes"]) == ("2", "8")
    assert (values["--machine_rank"], values["--main_process_ip"]) == ("0", "node-1")
    assert (values["train"], trainer[-1]) == (RECIPE, "seed=3")
    keys = {name: (tmp_path / f"{name}.key").read_text() for name in ("server", "trainer")}
    assert keys["server"] == keys["trainer"]
    assert len(keys["server"]) > 30
    assert keys["server"].strip() not in (*server, *trainer, printed)


@pytest.mark.slow
@pytest.mark.parametrize("sync", ["nccl", "folder"])
def test_what_the_job_sets_are_settings_of_the_recipe(play: Any, tmp_path: Path, sync: str) -> None:
    assert play(RECIPE, SYNC=sync)[0] == 0
    data = read_overrides(read_words(tmp_path / "trainer"))
    sampler = parse_config(VllmSamplerConfig, data["rollout"]["sampler"], "script")
    base = parse_config(PretrainedConfig, data["policy"]["base"], "script")
    assert (sampler.sync, base.model) == (sync, "some/model")
    server = read_words(tmp_path / "server")
    assert server[server.index("--served-model-name") + 1] == sampler.served_model
    assert server[server.index("--model") + 1] == base.model
    assert not list(tmp_path.glob(".weights-*")), "the folder of weights is removed"
    if sync == "folder":
        assert server[server.index("--weights-folder") + 1] == str(sampler.folder)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("changes", "status", "message"),
    [
        ({"TRAINER_STATUS": "7"}, 7, "healthy after"),
        ({"SERVER_STATUS": "9"}, 1, "the rollout server ended before it was healthy"),
        ({"TRAINER_SECONDS": "30", "SERVER_SECONDS": "4"}, 1, "server ended with status 5 while"),
        ({"NODES": "node-1"}, 1, "needs two nodes or more"),
        ({"MODEL": ""}, 1, "set MODEL to the checkpoint"),
        ({"SYNC": "ipc"}, 1, "SYNC=ipc: must be nccl or folder"),
        ({"ACCELERATE_CONFIG": "nowhere.yaml"}, 1, "nowhere.yaml: no such file"),
        ({"VLLM_PYTHON": "nowhere/python"}, 1, "nowhere/python: not there"),
    ],
)
def test_the_job_ends_with_the_status_of_what_failed(
    play: Any, tmp_path: Path, changes: dict[str, str], status: int, message: str
) -> None:
    found, printed = play(RECIPE, **changes)
    assert found == status, printed
    assert message in printed
    if (tmp_path / "server.pid").exists():
        assert not is_alive(tmp_path / "server.pid")


@pytest.mark.slow
def test_a_job_that_is_ended_from_outside_ends_its_parts(play: Any, tmp_path: Path) -> None:
    status, printed = play(RECIPE, kill=signal.SIGTERM, TRAINER_SECONDS="30")
    assert status == 143, printed
    assert not is_alive(tmp_path / "server.pid")


# --- the pools of the multi-round recipes ---------------------------------------------------------

# USD per million output tokens, as Router-R1 states them
OUTPUT_PRICES = {
    "Qwen2.5-7B-Instruct": 0.30,
    "LLaMA-3.1-8B-Instruct": 0.18,
    "LLaMA-3.1-70B-Instruct": 0.88,
    "Mistral-7B-Instruct": 0.20,
    "Mixtral-8x22B-Instruct": 1.20,
    "Gemma-2-27B-Instruct": 0.80,
}
UNSEEN_PRICES = {"Palmyra-Creative-122B": 1.80, "LLaMA3-ChatQA-1.5-8B": 0.18}


def test_the_pools_of_router_r1_have_its_names_and_prices() -> None:
    pool = load_pool(RECIPES / "router_r1_pool.yaml")
    unseen = load_pool(RECIPES / "router_r1_unseen.yaml")
    trained, wider = list_candidates(pool), list_candidates(unseen)
    stated = {name: Prices(price, price) for name, price in OUTPUT_PRICES.items()}
    assert {name: candidate.prices for name, candidate in trained.items()} == stated
    new = {name: Prices(price, price) for name, price in UNSEEN_PRICES.items()}
    assert {name: candidate.prices for name, candidate in wider.items()} == stated | new
    assert {name: wider[name] for name in trained} == trained
    for candidate in wider.values():
        assert candidate.description
        assert candidate.limits.output_tokens == 512
        assert not any(":" in name for name in (candidate.id, *candidate.aliases))
    shared = {key: getattr(pool, key) for key in ("max_usd", "cache", "seed")}
    assert shared == {key: getattr(unseen, key) for key in shared}
