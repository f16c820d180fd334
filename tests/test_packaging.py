from __future__ import annotations

import importlib
import os
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
SETUPTOOLS = PYPROJECT["tool"]["setuptools"]
OUTSIDE = ("envs", "rewards")  # packages that stand beside rlroute/


def list_packages() -> list[str]:
    """Return the packages on disk: every folder that holds an __init__.py."""
    inside = [
        path.parent.relative_to(ROOT)
        for path in (ROOT / "rlroute").rglob("__init__.py")
        if not set(path.relative_to(ROOT).parts) & set(OUTSIDE)
    ]
    outside = [
        Path("rlroute") / path.parent.relative_to(ROOT)
        for name in OUTSIDE
        for path in (ROOT / name).rglob("__init__.py")
    ]
    return sorted(".".join(path.parts) for path in [*inside, *outside])


def test_the_package_list_equals_the_folders_on_disk():
    assert sorted(SETUPTOOLS["packages"]) == list_packages()


def test_every_folder_with_modules_is_a_package():
    folders = {path.parent for top in ("rlroute", *OUTSIDE) for path in (ROOT / top).rglob("*.py")}
    assert all((folder / "__init__.py").exists() for folder in folders)


def test_the_package_folders_map_to_where_they_stand():
    mapped = {f"rlroute.{name}": name for name in OUTSIDE}
    assert SETUPTOOLS["package-dir"] == {"rlroute": "rlroute", **mapped}


def test_every_pattern_of_package_data_names_a_package_and_finds_a_file():
    for package, patterns in SETUPTOOLS["package-data"].items():
        assert package in SETUPTOOLS["packages"]
        for pattern in patterns:
            folder = ROOT / Path(*package.split("."))
            assert list(folder.glob(pattern)), f"{package}: {pattern} finds nothing"


@pytest.mark.parametrize("name", OUTSIDE)
def test_the_symlinks_are_relative_and_lead_to_the_folders(name):
    link = ROOT / "rlroute" / name
    if not link.is_symlink():
        pytest.skip("this copy of the source has no symlinks")
    assert os.readlink(link) == f"../{name}"
    assert link.resolve() == ROOT / name


@pytest.mark.parametrize("name", OUTSIDE)
def test_the_folders_cannot_be_imported_under_their_own_names(name):
    done = subprocess.run(
        [sys.executable, "-c", f"import {name}"], capture_output=True, text=True, cwd=ROOT
    )
    assert done.returncode == 1
    assert f"ImportError: import rlroute.{name}, not {name}" in done.stderr


@pytest.mark.parametrize("name", SETUPTOOLS["packages"])
def test_every_package_can_be_imported_and_says_what_it_is(name):
    module = importlib.import_module(name)
    assert (module.__doc__ or "").strip(), f"{name}/__init__.py has no docstring"


def test_the_version_is_stated_once_more_and_alike():
    assert importlib.import_module("rlroute").__version__ == PYPROJECT["project"]["version"]


def test_the_command_line_entry_point_exists():
    module, _, name = PYPROJECT["project"]["scripts"]["rlroute"].partition(":")
    assert callable(getattr(importlib.import_module(module), name))
