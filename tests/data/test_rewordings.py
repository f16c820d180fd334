"""Files of reworded queries: both formats, and every fault in one line with its place."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import pytest

from rlroute.data.rewordings import Rewording, read_rewordings
from rlroute.types import RLRouteError

PAIRS = (Rewording("2 + 2 =", "two plus two is"), Rewording('Say "hi",\nplease', "Grüß mich"))


def write_json(path: Path, *rows: object) -> Path:
    path.write_text("\n".join(json.dumps(row) for row in rows) + "\n", encoding="utf-8")
    return path


def test_json_lines_and_csv_hold_the_same_pairs(tmp_path: Path) -> None:
    lines = write_json(tmp_path / "r.jsonl", *(vars(pair) for pair in PAIRS))
    assert read_rewordings(lines) == PAIRS
    text = 'reworded,query\ntwo plus two is,2 + 2 =\nGrüß mich,"Say ""hi"",\nplease"\n'
    for name, data in (("r.csv", text.encode()), ("r.csv.gz", gzip.compress(text.encode()))):
        (tmp_path / name).write_bytes(data)
        assert read_rewordings(tmp_path / name) == PAIRS


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"query": "a", "reword": "b"}, "line 2: unknown key 'reword' .valid here: query, rewo"),
        ({"query": "a"}, "line 2: 'reworded' must be a text that is not empty"),
        ({"query": " ", "reworded": "b"}, "line 2: 'query' must be a text that is not empty"),
        ({"query": "a", "reworded": 3}, "line 2: 'reworded' must be a text"),
        ({"query": "a", "reworded": "a"}, "line 2: the rewording is the query itself"),
        ({"query": "q", "reworded": "b"}, "line 2: the same query stands in line 1"),
        ({"query": "a", "reworded": "\ud800"}, "line 2: holds half of a surrogate pair"),
        (["a", "b"], "line 2: must be a JSON object with query and reworded"),
    ],
)
def test_a_faulty_line_is_refused_with_its_place(tmp_path: Path, row: object, message: str) -> None:
    path = write_json(tmp_path / "r.jsonl", {"query": "q", "reworded": "r"}, row)
    with pytest.raises(RLRouteError, match=message) as error:
        read_rewordings(path)
    assert str(path) in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("r.jsonl", '{"query": "a",\n', "line 1: not valid JSON"),
        ("r.jsonl", "", "the file is empty"),
        ("r.csv", "query,text\na,b\n", "line 1: missing column 'reworded'"),
        ("r.csv", "query,reworded\n", "holds no rewording"),
        ("r.csv", "query,reworded\na\n", "line 2: 1 values for 2 columns"),
        ("r.csv", 'query,reworded\n"a\nb",c\n,d\n', "line 4: 'query' must be a text"),
        ("r.csv", "query,reworded,note\na,b,c\n", "unknown key 'note'"),
    ],
)
def test_a_faulty_file_is_refused(tmp_path: Path, name: str, text: str, message: str) -> None:
    (tmp_path / name).write_text(text, encoding="utf-8")
    with pytest.raises(RLRouteError, match=message):
        read_rewordings(tmp_path / name)
    with pytest.raises(RLRouteError, match="cannot be read"):
        read_rewordings(tmp_path / f"absent-{name}")
