from __future__ import annotations

import json
import logging
import sqlite3
import subprocess
import sys
import time
from dataclasses import replace

import pytest

from rlroute.pool.cache import LEASE_SECONDS, ReplyCache, make_key
from rlroute.pool.http import Endpoint
from rlroute.types import Call, Candidate, Limits, Prices, Query, RLRouteError

ENDPOINT = Endpoint(Candidate("small", Prices(1.0, 1.0)), "http://127.0.0.1:1/v1", "served")
CALL = Call("small", Query("q1", "2 + 2 ="), "2 + 2 =")


def test_what_was_put_comes_back_after_the_file_was_closed(tmp_path):
    cache = ReplyCache(tmp_path / "replies.sqlite")
    assert cache.get("key") is None
    cache.put("key", {"text": "fünf \ud800", "usage": None})
    cache.put("key", {"text": "another"})  # the first one stays
    cache.close()
    assert ReplyCache(tmp_path / "replies.sqlite").get("key") == {
        "text": "fünf \ud800",
        "usage": None,
    }


@pytest.mark.parametrize(
    "other",
    [
        (ENDPOINT, replace(CALL, text="2 + 3 =")),
        (ENDPOINT, replace(CALL, system="Be brief.")),
        (ENDPOINT, replace(CALL, temperature=0.7)),
        (ENDPOINT, replace(CALL, max_output_tokens=5)),
        (replace(ENDPOINT, url="http://127.0.0.1:2/v1"), CALL),
        (replace(ENDPOINT, served_model="larger"), CALL),
        (
            replace(ENDPOINT, candidate=replace(ENDPOINT.candidate, limits=Limits(None, 9))),
            CALL,
        ),
    ],
    ids=["text", "system", "temperature", "limit of the call", "url", "model", "limit"],
)
def test_whatever_changes_the_answer_changes_the_key(other):
    assert make_key(*other) != make_key(ENDPOINT, CALL)


@pytest.mark.parametrize(
    "other",
    [
        (replace(ENDPOINT, url="http://127.0.0.1:1/v1/"), CALL),
        (replace(ENDPOINT, candidate=Candidate("renamed", Prices(9.0, 9.0)), retries=0), CALL),
        (ENDPOINT, replace(CALL, sample=3, episode="e", query=Query("q2", ""))),
    ],
    ids=["slash", "name, price and retries", "sample at temperature 0, episode, query id"],
)
def test_what_does_not_change_the_answer_does_not_change_the_key(other):
    assert make_key(*other) == make_key(ENDPOINT, CALL)


def test_samples_have_keys_of_their_own_above_temperature_0():
    warm = replace(CALL, temperature=0.7)
    assert make_key(ENDPOINT, replace(warm, sample=1)) != make_key(ENDPOINT, warm)


def test_the_oldest_replies_make_room(tmp_path):
    cache = ReplyCache(tmp_path / "replies.sqlite", max_bytes=1000)
    for number in range(50):
        cache.put(f"key {number}", {"text": "x" * 88})  # 100 bytes of JSON
    assert [number for number in range(50) if cache.get(f"key {number}")] == list(range(40, 50))


def test_a_lease_belongs_to_one_until_it_is_given_back_written_or_run_out(tmp_path):
    now = [1000.0]
    one, two = (ReplyCache(tmp_path / "c.sqlite", clock=lambda: now[0]) for _ in range(2))
    assert one.claim("key")
    assert not two.claim("key")
    assert not one.claim("key")  # two calls of one process are two askers as well
    two.release("key")  # not its own
    assert not two.claim("key")
    now[0] += LEASE_SECONDS - 1
    one.renew_leases()
    now[0] += LEASE_SECONDS - 1
    assert not two.claim("key")
    now[0] += 2  # its process died
    assert two.claim("key")
    two.put("key", {"text": "paid"})
    two.release("key")
    assert not one.claim("key")  # a key that is written is never paid again
    assert one.get("key") == {"text": "paid"}


def test_a_file_that_is_no_database_is_refused_in_one_line(tmp_path):
    path = tmp_path / "notes.txt"
    path.write_text("not a database, " * 100)
    with pytest.raises(RLRouteError, match=r"notes\.txt: cannot be used as a cache"):
        ReplyCache(path)


def test_a_full_disk_loses_no_reply_and_stops_before_the_next_is_paid(tmp_path, caplog):
    cache = ReplyCache(tmp_path / "c.sqlite")
    pages = cache._database.execute("PRAGMA page_count").fetchone()[0]
    cache._database.execute(f"PRAGMA max_page_count = {pages}")  # SQLite's own "disk is full"
    with caplog.at_level(logging.WARNING):
        cache.put("key", {"text": "x" * 100_000})
    assert "was not stored" in caplog.text
    assert cache.get("key") is None

    def claim_many() -> None:
        for number in range(100_000):
            cache.claim(f"{number}")

    with pytest.raises(RLRouteError, match="cannot be written"):
        claim_many()


# Each process walks over all keys; it "pays" by appending a line to its own file.
WALK = """
import json, random, sys, time
from pathlib import Path
from rlroute.pool.cache import ReplyCache
cache_path, paid_path, seed = sys.argv[1:]
cache, draw = ReplyCache(Path(cache_path)), random.Random(seed)
keys = [f"key {number}" for number in range(400)]
draw.shuffle(keys)
with open(paid_path, "w") as paid:
    for key in keys:
        while (stored := cache.get(key)) is None and not cache.claim(key):
            time.sleep(0.001)
        if stored is None:
            paid.write(key + "\\n")
            paid.flush()
            time.sleep(0.001)
            cache.put(key, {"text": key * 20})
            cache.release(key)
        else:
            assert stored == {"text": key * 20}
cache.close()
"""


def test_two_processes_that_share_a_file_pay_for_no_key_twice_and_break_nothing(tmp_path):
    path = tmp_path / "shared.sqlite"
    paid = [tmp_path / f"paid-{number}" for number in range(2)]
    processes = [
        subprocess.Popen([sys.executable, "-c", WALK, str(path), str(file), str(number)])
        for number, file in enumerate(paid)
    ]
    assert [process.wait(timeout=120) for process in processes] == [0, 0]
    bought = [line for file in paid for line in file.read_text().splitlines()]
    assert sorted(bought) == sorted(f"key {number}" for number in range(400))
    with sqlite3.connect(path) as database:
        assert database.execute("PRAGMA integrity_check").fetchone() == ("ok",)
        assert database.execute("SELECT count(*) FROM leases").fetchone() == (0,)
        texts = database.execute("SELECT key, reply FROM replies").fetchall()
        size = database.execute("SELECT bytes FROM size").fetchone()[0]
    assert {key: json.loads(text)["text"] for key, text in texts} == {
        f"key {number}": f"key {number}" * 20 for number in range(400)
    }
    assert size == sum(len(text) for _, text in texts)


OPEN = """
import sys
import time
from pathlib import Path
from rlroute.pool.cache import ReplyCache
sys.stdin.readline()
ReplyCache(Path(sys.argv[1])).close()
"""


def test_processes_that_make_the_file_at_the_same_moment_all_get_it(tmp_path):
    for number in range(3):
        path = tmp_path / f"{number}.sqlite"
        processes = [
            subprocess.Popen([sys.executable, "-c", OPEN, str(path)], stdin=subprocess.PIPE)
            for _ in range(4)
        ]
        time.sleep(1.0)  # until all have imported and wait for the signal
        for process in processes:
            process.stdin.write(b"\n")
            process.stdin.close()
        assert [process.wait(timeout=60) for process in processes] == [0] * 4
