"""Imports point downward only, and importing rlroute stays cheap."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]

# Which parts of rlroute a part may import besides itself, from the bottom up. Nothing imports
# what stands below it in this table.
ALLOWED: dict[str, set[str]] = {
    "types": set(),
    "extras": {"types"},
    "files": {"types"},
    "seeding": {"types"},
    "config": {"types"},
    "parsing": {"types"},
    "router_r1": {"types"},
    "algorithms": {"types"},
    "tracking": {"types", "extras", "files"},
    "data": {"types", "extras", "files", "seeding", "config"},
    "rewards": {"types", "extras", "config", "parsing"},
    "pool": {"types", "extras", "files", "seeding", "config", "data"},
    "worlds": {"types", "extras", "files", "seeding", "config", "data", "pool"},
    "memory": {
        *("types", "extras", "files", "seeding", "config", "parsing", "data", "rewards", "pool"),
    },
    "envs": {
        *("types", "config", "seeding", "data", "rewards", "pool"),
        *("parsing", "router_r1", "worlds", "memory"),
    },
    "bandits": {"types", "config", "seeding", "data", "envs"},
    "evaluation": {"types", "extras", "files", "seeding", "config", "data", "bandits"},
    "policies": {
        *("types", "extras", "files", "config", "seeding", "parsing", "data", "pool"),
        *("bandits", "evaluation"),
    },
    "rollout": {
        *("types", "extras", "files", "seeding", "parsing", "rewards", "pool", "worlds", "envs"),
        "policies",
    },
    "trainers": {
        *("types", "extras", "files", "seeding", "config", "algorithms", "tracking"),
        *("data", "rewards", "envs", "evaluation", "policies", "rollout", "parsing", "pool"),
        *("worlds", "memory", "bandits"),
    },
    "export": {
        *("types", "files", "config", "data", "policies", "envs", "rollout", "memory"),
        "worlds",
    },
    "router": {"types", "files", "config", "data", "policies", "export"},
    "robustness": {"types", "data", "evaluation", "router"},
    "text_router": {"types", "envs", "pool", "rollout", "export"},
    "step_router": {"types", "files", "config", "data", "policies", "envs", "export"},
    "cascade_router": {"types", "worlds", "export", "step_router"},
    "tier_router": {"types", "files", "config", "data", "policies", "memory", "envs", "export"},
    "collection": {
        *("types", "extras", "files", "seeding", "config", "data", "rewards", "pool"),
        "evaluation",
    },
    "text_runs": {
        *("types", "config", "tracking", "rewards", "pool", "evaluation", "rollout", "trainers"),
        "export",
    },
    "step_runs": {
        *("types", "extras", "files", "seeding", "config", "tracking", "data", "rewards", "pool"),
        *("worlds", "envs", "evaluation", "policies", "rollout", "trainers"),
    },
    "unseen_profiles": {"types", "data", "policies", "trainers"},
    "unseen_candidates": {"types", "data", "evaluation", "policies", "trainers", "unseen_profiles"},
    "preference_runs": {"data", "evaluation", "policies", "trainers", "export"},
    "table_runs": {
        *("types", "files", "config", "tracking", "data", "evaluation", "policies", "trainers"),
        *("export", "unseen_candidates", "preference_runs"),
    },
    "memory_runs": {
        *("types", "files", "seeding", "config", "tracking", "memory", "evaluation", "policies"),
        "trainers",
    },
    "run_plans": {"types", "config", "data", "bandits", "worlds", "trainers"},
    "stream_runs": {"types", "config", "data", "bandits", "evaluation", "trainers", "export"},
    "step_export": {
        *("types", "files", "config", "worlds", "envs", "policies", "rollout", "trainers"),
        "export",
    },
    "tier_export": {
        *("types", "config", "data", "memory", "evaluation", "trainers", "export"),
        "memory_runs",
    },
    "runs": {
        *("types", "extras", "files", "config", "tracking", "data"),
        *("evaluation", "policies", "trainers", "export", "text_runs", "step_runs"),
        *("step_export", "table_runs", "memory_runs", "run_plans", "tier_export", "stream_runs"),
    },
    "run_comparison": {
        *("types", "config", "data", "evaluation", "policies", "trainers", "runs", "stream_runs"),
    },
    "sweep": {"types", "config", "tracking", "evaluation", "trainers", "runs", "table_runs"},
    "cli": {
        *("types", "extras", "config", "data", "pool", "envs", "evaluation", "collection"),
        *("runs", "run_comparison", "sweep", "robustness"),
    },
    "__main__": {"cli"},
    "__init__": {"router", "text_router", "step_router", "cascade_router", "tier_router"},
}

HEAVY = (
    *("torch", "sklearn", "scipy", "pandas", "pyarrow", "matplotlib", "transformers", "accelerate"),
    *("gymnasium", "wandb", "jinja2", "safetensors"),
)


def list_modules() -> dict[str, Path]:
    """Return the modules by dotted name; envs/ and rewards/ stand beside the package."""
    found = {}
    for top, prefix in (("rlroute", ""), ("envs", "envs."), ("rewards", "rewards.")):
        for path in sorted((ROOT / top).rglob("*.py")):
            parts = path.relative_to(ROOT / top).with_suffix("").parts
            if top != "rlroute" or parts[0] not in ("envs", "rewards"):  # not through the symlinks
                found[prefix + ".".join(parts)] = path
    return found


def list_imports(path: Path) -> set[str]:
    """Return the parts of rlroute that a module imports anywhere, in functions too."""
    parts = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            parts |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            names = [alias.name for alias in node.names]
            parts |= {f"rlroute.{name}" for name in names} if node.module == "rlroute" else set()
            parts |= {str(node.module)}
    return {name.split(".")[1] for name in parts if name.startswith("rlroute.")}


MODULES = list_modules()


@pytest.mark.parametrize("name", MODULES)
def test_a_module_imports_only_what_lies_below_it(name):
    part = name.split(".")[0]
    assert part in ALLOWED, f"{part}: give it a place in the table of this test"
    upward = list_imports(MODULES[name]) - ALLOWED[part] - {part}
    assert not upward, f"{name} imports {', '.join(sorted(upward))}"


def test_the_table_of_allowed_imports_has_an_order_and_no_stale_line():
    order = list(ALLOWED)
    for part, allowed in ALLOWED.items():
        assert all(order.index(other) < order.index(part) for other in allowed), part
    assert set(order) == {name.split(".")[0] for name in MODULES}


def import_in_new_process(statement: str) -> set[str]:
    """Return the names of all modules that a statement brings into a fresh process."""
    code = f"import sys; {statement}; print(*sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT.parent
    )
    return set(done.stdout.split())


@pytest.mark.parametrize(
    "statement",
    ["import rlroute", "import rlroute.types", "import rlroute.config", "import rlroute.cli"],
)
def test_cheap_imports_bring_no_heavy_library(statement):
    assert not import_in_new_process(statement) & set(HEAVY)


def test_the_router_brings_no_training_library_and_no_training_code():
    loaded = import_in_new_process("from rlroute import Router")
    assert not loaded & {"accelerate", "gymnasium", "transformers", "trl", "wandb", "matplotlib"}
    ours = {name.split(".")[1] for name in loaded if name.startswith("rlroute.")}
    assert not ours & {"trainers", "rollout", "envs", "algorithms", "evaluation", "pool", "cli"}


def test_environments_can_be_imported_without_gymnasium():
    blocked = "sys.modules['gymnasium'] = None; import rlroute.envs.single_turn"
    assert "rlroute.envs.registration" not in import_in_new_process(blocked)
