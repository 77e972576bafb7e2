"""Long listings are read object by object, and mean what they mean as a whole."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import httpx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hpcbridge.errors import ServerError
from hpcbridge.firecrest import wire
from hpcbridge.firecrest.wire import each_item, items

VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)


async def each(content: bytes) -> list[Any]:
    return [item async for item in each_item(httpx.Response(200, content=content), "jobs")]


@pytest.fixture
def always_in_slices(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(wire, "_LONG", 0)


@settings(deadline=None, max_examples=200)
@given(jobs=st.lists(VALUES), indent=st.sampled_from([None, 1]), ascii_only=st.booleans())
def test_the_objects_are_those_of_the_whole(jobs: list[Any], indent: int | None, ascii_only: bool) -> None:
    content = json.dumps({"jobs": jobs}, indent=indent, ensure_ascii=ascii_only).encode("utf-8", "surrogatepass")
    whole = items(httpx.Response(200, content=content), "jobs")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(wire, "_LONG", 0)
        assert asyncio.run(each(content)) == whole


@pytest.mark.parametrize(
    ("content", "found"),
    [
        (b'{"jobs": []}', []),
        (b'{"jobs": null}', []),
        (b'{"other": [1], "jobs": [{"a": 1}]}', [{"a": 1}]),
        (b'{"jobs": [{"a": 1}], "more": 2}', [{"a": 1}]),
        (b'{"jobs": [{"a": 1}], "jobs": [{"b": 1}]}', [{"b": 1}]),
    ],
)
@pytest.mark.usefixtures("always_in_slices")
async def test_other_shapes_are_read_as_a_whole(content: bytes, found: list[Any]) -> None:
    assert await each(content) == found


@pytest.mark.parametrize(
    "content",
    [b"", b"<html>", b'{"jobs": [{"a": 1}', b'{"jobs": [{"a": 1}]', b'{"jobs": [{"a": 1},]}', b'{"jobs": [\xff]}'],
)
@pytest.mark.usefixtures("always_in_slices")
async def test_what_is_no_json_is_not_the_servers(content: bytes) -> None:
    with pytest.raises(ServerError, match="not FirecREST's"):
        await each(content)


async def test_the_loop_has_its_turns_meanwhile() -> None:
    content = json.dumps({"jobs": [{"jobId": str(number), "name": "x" * 500} for number in range(2000)]}).encode()
    turns = 0

    async def others() -> None:
        nonlocal turns
        while True:
            turns += 1
            await asyncio.sleep(0)

    task = asyncio.ensure_future(others())
    assert len(await each(content)) == 2000
    task.cancel()
    assert turns >= 2000 // wire.SLICE
