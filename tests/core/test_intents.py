"""Intents survive crashes, and one process at a time submits under a key."""

import asyncio
import json
import os
import subprocess
import sys
import time
from datetime import UTC, datetime

import pytest

from hpcbridge.errors import ConfigurationError, KeyConflict
from hpcbridge.jobs.intents import FORMAT, RETENTION_DAYS, FileIntentStore, HoldsKeys

KEY = "relax.hb1aaaabbbbccccdddd"
FILE = "hb1aaaabbbbccccdddd"


@pytest.fixture
def store(tmp_path):
    return FileIntentStore(tmp_path / "intents")


async def test_an_intent_is_new_once_and_then_says_since_when(store):
    before = datetime.now(UTC)
    first, second = await store.begin(KEY, "hash"), await store.begin(KEY, "hash")
    assert (first.new, second.new) == (True, False)
    assert before <= first.since == second.since
    assert second.job_id is None


async def test_a_bound_id_is_found_by_another_process(store):
    await store.begin(KEY, "hash")
    await store.bind(KEY, "4711")
    assert (await FileIntentStore(store.directory).begin(KEY, "hash")).job_id == "4711"


async def test_the_same_key_with_another_script_is_a_conflict(store):
    await store.begin(KEY, "hash")
    await store.bind(KEY, "4711")
    with pytest.raises(KeyConflict, match="another script, options or label") as caught:
        await store.begin(KEY, "other")
    assert caught.value.job_id == "4711"


async def test_the_label_does_not_make_another_key(store):
    await store.begin(KEY, "hash")
    with pytest.raises(KeyConflict):
        await store.begin(f"other.{FILE}", "hash of the specification with the other label")


async def test_an_abandoned_key_may_be_used_for_another_script(store):
    await store.begin(KEY, "hash")
    await store.abandon(KEY)
    assert (await store.begin(KEY, "other")).new


async def test_of_many_at_once_one_is_new(store):
    intents = await asyncio.gather(*(FileIntentStore(store.directory).begin(KEY, "hash") for _ in range(40)))
    assert sum(intent.new for intent in intents) == 1


async def test_records_are_private_and_leave_nothing_beside_them(store):
    await store.begin(KEY, "hash")
    await store.bind(KEY, "1")
    (record,) = store.directory.iterdir()
    assert (store.directory.stat().st_mode & 0o777, record.stat().st_mode & 0o777) == (0o700, 0o600)


async def test_records_of_yesterday_are_read(store):
    store.directory.mkdir()
    record = {"key": KEY, "spec": "hash", "since": "2026-01-31T12:00:00+00:00", "job_id": "17"}
    (store.directory / f"{FILE}.json").write_text(json.dumps(record))
    intent = await store.begin(KEY, "hash")
    assert (intent.job_id, intent.since) == ("17", datetime(2026, 1, 31, 12, tzinfo=UTC))


async def test_records_of_tomorrow_are_refused_with_what_to_do(store):
    store.directory.mkdir()
    (store.directory / f"{FILE}.json").write_text(json.dumps({"format": FORMAT + 1, "key": KEY}))
    with pytest.raises(ConfigurationError, match="newer hpcbridge"):
        await store.begin(KEY, "hash")


async def test_a_damaged_record_counts_as_an_intent_without_an_id(store):
    store.directory.mkdir()
    (store.directory / f"{FILE}.json").write_text('{"format": 1, "key"')
    intent = await store.begin(KEY, "hash")
    assert (intent.new, intent.job_id) == (False, None)


async def test_records_are_kept_for_thirty_days(store):
    await store.begin(KEY, "hash")
    await store.begin("old.hb1eeeeffffgggghhhh", "hash")
    past = time.time() - (RETENTION_DAYS + 1) * 86400
    os.utime(store.directory / "hb1eeeeffffgggghhhh.json", (past, past))
    fresh = FileIntentStore(store.directory)
    assert not (await fresh.begin(KEY, "hash")).new
    assert [path.name for path in store.directory.iterdir()] == [f"{FILE}.json"]


async def test_keys_of_any_kind_are_file_names(store):
    for key in ("../../etc/passwd", "a/b", "x" * 500, "é\n", ""):
        assert (await store.begin(key, "hash")).new
    assert len(list(store.directory.iterdir())) == 5


HOLDER = """
import asyncio, sys, time
from pathlib import Path
from hpcbridge.jobs.intents import FileIntentStore
async def main():
    async with FileIntentStore(Path(sys.argv[1])).hold(sys.argv[2]):
        print("held", flush=True)
        time.sleep(float(sys.argv[3]))
asyncio.run(main())
"""


async def test_a_key_is_held_by_one_process_and_let_go_when_it_is_killed(store):
    assert isinstance(store, HoldsKeys)
    holder = subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(store.directory), KEY, "60"], stdout=subprocess.PIPE, text=True
    )
    try:
        assert holder.stdout.readline() == "held\n"
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.5), store.hold(KEY):
                pytest.fail("two hold the same key")
        holder.kill()
        async with asyncio.timeout(5), store.hold(KEY):
            assert (store.directory / f"{FILE}.lock").exists()
        assert not (store.directory / f"{FILE}.lock").exists()
    finally:
        holder.kill()
        holder.wait()


async def test_many_take_turns(store):
    inside = []

    async def take(number):
        async with FileIntentStore(store.directory).hold(KEY):
            inside.append(number)
            assert len(inside) == 1
            await asyncio.sleep(0.01)
            inside.remove(number)

    await asyncio.gather(*(take(number) for number in range(8)))
