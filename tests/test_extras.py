from __future__ import annotations

import json

import pytest

from rlroute.extras import require
from rlroute.types import RLRouteError


def test_an_installed_module_is_returned():
    assert require("json", "train") is json


@pytest.mark.parametrize("name", ["no_such_library", "no_such_library.part"])
def test_a_missing_module_names_its_extra(name):
    with pytest.raises(RLRouteError) as caught:
        require(name, "train")
    assert str(caught.value) == (
        f"{name} is not installed: it comes with the extra 'train', pip install 'rlroute[train]'"
    )


def test_a_broken_module_is_not_taken_for_a_missing_one(tmp_path, monkeypatch):
    (tmp_path / "halfway_library.py").write_text("import halfway")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ModuleNotFoundError, match="No module named 'halfway'"):
        require("halfway_library", "train")
