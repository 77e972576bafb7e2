"""The object store alone: a real S3 server that starts quickly, checks signatures, keeps its memory, and can fail."""

import asyncio
import hashlib
import os
import time
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import psutil
import pytest
import pytest_asyncio

from hpcbridge_sandbox.s3 import ObjectStore, StoreUnavailable
from support.scale import PROVE

PART = 16 << 20 if not PROVE else 64 << 20
SIZE = 20_000_000 if not PROVE else 2_000_000_000
BLOCK = os.urandom(1 << 20)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def store(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[ObjectStore]:
    made = ObjectStore(tmp_path_factory.mktemp("s3") / "store")
    await made.start()
    yield made
    await made.stop()


@pytest_asyncio.fixture(autouse=True, loop_scope="module")
async def no_faults(request: pytest.FixtureRequest) -> AsyncIterator[None]:
    yield
    if "store" in request.fixturenames:
        await request.getfixturevalue("store").inject({})


pytestmark = pytest.mark.asyncio(loop_scope="module")


class Upload:
    """One multipart upload through presigned URLs, as a client of the REST interface does it."""

    def __init__(self, store: ObjectStore, bucket: str, key: str, upload_id: str, size: int, part: int = PART) -> None:
        self.size, self.part, self.count = size, part, -(-size // part)
        where = {"Bucket": bucket, "Key": key}
        upload = {**where, "UploadId": upload_id}
        self.parts = [store.sign("upload_part", "PUT", **upload, PartNumber=n + 1) for n in range(self.count)]
        self.complete_url = store.sign("complete_multipart_upload", "POST", **upload)
        self.get_url = store.sign("get_object", "GET", **where)
        self.head_url = store.sign("head_object", "HEAD", **where)

    @classmethod
    async def begin(cls, store: ObjectStore, key: str, size: int, part: int = PART) -> "Upload":
        bucket = await store.bucket("alice")
        return cls(store, bucket, key, await store.begin_upload(bucket, key), size, part)

    def put(self, number: int) -> httpx.Response:
        length = min(self.part, self.size - number * self.part)

        def body():
            left = length
            while left > 0:
                yield BLOCK[: min(left, len(BLOCK))]
                left -= len(BLOCK)

        return httpx.put(self.parts[number], content=body(), headers={"Content-Length": str(length)}, timeout=120)

    def complete(self, tags: list[str], **headers: str) -> httpx.Response:
        parts = "".join(f"<Part><PartNumber>{n + 1}</PartNumber><ETag>{t}</ETag></Part>" for n, t in enumerate(tags))
        body = f'<CompleteMultipartUpload xmlns="http://s3.amazonaws.com/doc/2006-03-01/">{parts}</CompleteMultipartUpload>'
        return httpx.post(self.complete_url, content=body, headers=headers, timeout=60)

    def run(self) -> None:
        with ThreadPoolExecutor(4) as pool:
            answers = list(pool.map(self.put, range(self.count)))
        assert [answer.status_code for answer in answers] == [200] * self.count
        assert self.complete([answer.headers["ETag"] for answer in answers]).status_code == 200


def expected_sha256(size: int) -> str:
    digest, left = hashlib.sha256(), size
    while left > 0:
        digest.update(BLOCK[: min(left, len(BLOCK))])
        left -= len(BLOCK)
    return digest.hexdigest()


def memory(store: ObjectStore) -> int:
    return max(process.memory_info().rss for process in processes(store))


def processes(store: ObjectStore) -> list[psutil.Process]:
    assert store._process is not None
    first = psutil.Process(store._process.pid)
    return [first, *first.children()]


def lives(process: psutil.Process) -> bool:
    """Tell whether it runs; one that has ended and waits for its parent (in a container: for ever) does not."""
    try:
        return process.status() not in {psutil.STATUS_ZOMBIE, psutil.STATUS_DEAD}
    except psutil.NoSuchProcess:
        return False


async def test_it_starts_within_ten_seconds(tmp_path: Path) -> None:
    store = ObjectStore(tmp_path / "store")
    begin = time.monotonic()
    await store.bucket("alice")
    assert time.monotonic() - begin < 10
    started = processes(store)
    assert len(started) == 2
    await store.stop()
    psutil.wait_procs(started, timeout=5)
    assert not any(lives(process) for process in started)


async def test_a_store_that_cannot_start_says_so_at_once(tmp_path: Path) -> None:
    store = ObjectStore(tmp_path / "store")
    (tmp_path / "store" / "etc").mkdir(parents=True)
    (tmp_path / "store" / "etc" / "object.ring.gz").mkdir()
    begin = time.monotonic()
    with pytest.raises(StoreUnavailable, match=r"object\.ring\.gz"):
        await store.start()
    assert time.monotonic() - begin < 20
    assert not store.running
    await store.stop()


async def test_a_large_object_travels_in_parallel_parts_and_constant_memory(store: ObjectStore) -> None:
    upload = await Upload.begin(store, "big/object.bin", SIZE)
    begin = time.monotonic()
    await asyncio.to_thread(upload.run)
    print(f"{SIZE / 1e6:.0f} MB stored in {time.monotonic() - begin:.2f} s")
    digest, received = hashlib.sha256(), 0
    with httpx.stream("GET", upload.get_url, timeout=60) as answer:
        for chunk in answer.iter_bytes():
            digest.update(chunk)
            received += len(chunk)
    assert (received, digest.hexdigest()) == (SIZE, expected_sha256(SIZE))
    assert memory(store) < 150 << 20


async def test_ranges_and_head_answer_as_s3_does(store: ObjectStore) -> None:
    upload = await Upload.begin(store, "range/object.bin", 6 << 20, 5 << 20)
    await asyncio.to_thread(upload.run)
    assert httpx.head(upload.head_url).headers["content-length"] == str(6 << 20)
    answer = httpx.get(upload.get_url, headers={"Range": "bytes=1048570-1048580"})
    assert answer.status_code == 206
    assert answer.headers["content-range"] == f"bytes 1048570-1048580/{6 << 20}"
    assert answer.content == (BLOCK * 2)[1048570:1048581]


async def test_a_form_encoded_completion_is_read_as_what_it_is(store: ObjectStore) -> None:
    """``curl -d`` calls any body a form."""
    upload = await Upload.begin(store, "form/object.bin", 1000)
    tag = upload.put(0).headers["ETag"]
    assert upload.complete([tag], **{"Content-Type": "application/x-www-form-urlencoded"}).status_code == 200
    assert httpx.get(upload.get_url).content == BLOCK[:1000]


async def test_signatures_are_checked(store: ObjectStore) -> None:
    upload = await Upload.begin(store, "signed/object.bin", 10)
    await asyncio.to_thread(upload.run)
    other_object = upload.get_url.replace("object.bin", "another.bin")
    other_signature = upload.get_url[:-8] + "00000000"
    assert httpx.get(other_object).status_code == 403
    assert httpx.get(other_signature).status_code == 403
    assert httpx.put(upload.get_url, content=b"x").status_code == 403
    assert httpx.get(upload.get_url.partition("?")[0]).status_code >= 400


async def test_a_completion_with_a_wrong_or_missing_part_is_refused(store: ObjectStore) -> None:
    upload = await Upload.begin(store, "wrong/object.bin", 10)
    upload.put(0)
    assert upload.complete(['"00000000000000000000000000000000"']).status_code == 400
    assert upload.complete([]).status_code == 400
    assert httpx.head(upload.head_url).status_code == 404


async def test_injected_faults_are_seen_and_end(store: ObjectStore) -> None:
    upload = await Upload.begin(store, "faults/object.bin", 100_000)
    await store.inject({"part_failure": 1, "count": 2})
    assert [upload.put(0).status_code for _ in range(3)] == [503, 503, 200]
    await store.inject({"part_drop": 1})
    with pytest.raises(httpx.TransportError):
        upload.put(0)
    await store.inject({"part_corruption": 1})
    corrupt = upload.put(0)
    assert corrupt.headers["ETag"].strip('"') != hashlib.md5(BLOCK[:100_000]).hexdigest()
    await store.inject({"completion_status": 500})
    assert upload.complete([corrupt.headers["ETag"]]).status_code == 500
    await store.inject({})
    assert httpx.head(upload.head_url).status_code == 404
    good = upload.put(0)
    assert good.headers["ETag"].strip('"') == hashlib.md5(BLOCK[:100_000]).hexdigest()
    await store.inject({"completion_lost": 1})
    assert upload.complete([good.headers["ETag"]]).status_code == 500
    assert httpx.head(upload.head_url).status_code == 200


async def test_downloads_fail_as_told(store: ObjectStore) -> None:
    upload = await Upload.begin(store, "gets/object.bin", 300_000)
    await asyncio.to_thread(upload.run)
    await store.inject({"get_failure": 1})
    assert httpx.get(upload.get_url).status_code == 503
    await store.inject({"get_truncation": 1})
    with pytest.raises(httpx.RemoteProtocolError):
        httpx.get(upload.get_url)
    await store.inject({"get_corruption": 1})
    assert httpx.get(upload.get_url).content != BLOCK[:300_000]
    await store.inject({"get_delay": 0.3})
    begin = time.monotonic()
    assert httpx.get(upload.get_url).content == BLOCK[:300_000]
    assert time.monotonic() - begin > 0.25


async def test_unknown_faults_are_refused(store: ObjectStore) -> None:
    with pytest.raises(ValueError, match="part_failure"):
        await store.inject({"part_fail": 1})
    with pytest.raises(ValueError, match="zero or more"):
        await store.inject({"part_failure": -1})


async def test_a_store_that_is_down_refuses_connections_and_comes_back(tmp_path: Path) -> None:
    store = ObjectStore(tmp_path / "store")
    upload = await Upload.begin(store, "down/object.bin", 10)
    await asyncio.to_thread(upload.run)
    await store.inject({"down": 1})
    with pytest.raises(httpx.ConnectError):
        httpx.get(upload.get_url)
    with pytest.raises(StoreUnavailable):
        await store.start()
    await store.inject({})
    await store.start()
    assert httpx.get(upload.get_url).content == BLOCK[:10]
    await store.stop()


async def test_objects_and_urls_outlive_a_restart(tmp_path: Path) -> None:
    first = ObjectStore(tmp_path / "store")
    upload = await Upload.begin(first, "kept/object.bin", 10)
    await asyncio.to_thread(upload.run)
    await first.stop()
    second = ObjectStore(tmp_path / "store")
    await second.bucket("alice")
    assert httpx.get(upload.get_url).content == BLOCK[:10]
    await second.stop()


async def test_the_secret_key_is_in_no_argument_list_and_no_repr(store: ObjectStore) -> None:
    layout = store._layout
    assert layout is not None
    for process in processes(store):
        assert layout.secret_key not in " ".join(process.cmdline())
    assert layout.secret_key not in repr(layout)
    assert layout.config("proxy").stat().st_mode & 0o077 == 0
