"""The scripts of cp, mv, rm, mkdir, du and listings, run by bash as a scheduler would, with names of all kinds."""

from __future__ import annotations

import os
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from hpcbridge.staging.remote.scripts import Answer, Changes, Records, Verb, parse_answer

ODD = [
    b"with space",
    b"it's",
    b'double"quote',
    b"new\nline",
    b"ends with newline\n",
    b"-rf",
    b"--help",
    "größe".encode(),
    b"not utf-8 \xff\xfe",
    b"$(touch pwned)",
    b"`id`",
    b"a\\b",
    b"*",
    b"[x]",
    b"tab\there",
    b"!bang",
    b"#hash",
    b"x" * 255,
]
names = st.binary(min_size=1, max_size=40).filter(lambda n: b"\0" not in n and b"/" not in n and n not in (b".", b".."))


@pytest.fixture
def folder() -> Iterator[Path]:
    with tempfile.TemporaryDirectory() as path:
        yield Path(path)


def run(work: Changes | Records, folder: Path, *, stage: str = "stage") -> Answer:
    """Run the script in a private directory under `folder`; a second run of the same stage is what a requeue does."""
    place = folder / stage
    place.mkdir(exist_ok=True)
    script = work.script(str(place), "0123abcd")
    done = subprocess.run(["bash", "-c", script], cwd=folder, capture_output=True, timeout=60, check=False)
    assert done.stderr == b""
    return parse_answer((place / "answer").read_text())


def path(folder: Path, *parts: bytes) -> bytes:
    return b"/".join([os.fsencode(folder), *parts])


def real(name: bytes) -> Path:
    return Path(os.fsdecode(name))


def change(folder: Path, verb: Verb, paths: list[bytes], destination: bytes = b"", **options: object) -> Answer:
    return run(Changes(verb, paths, destination, **options), folder)  # type: ignore[arg-type]


def put(file: bytes, content: bytes = b"content") -> bytes:
    real(file).write_bytes(content)
    return file


def left(folder: Path) -> list[str]:
    """Hidden names of ours that should not be there, the stage apart."""
    return [str(p) for p in folder.rglob(".hpcbridge-*") if "stage" not in p.parts]


@pytest.mark.parametrize("name", ODD, ids=lambda n: repr(n[:12]))
@pytest.mark.parametrize("verb", [Verb.COPY, Verb.MOVE])
def test_a_file_of_any_name_arrives_under_any_name(folder: Path, verb: Verb, name: bytes) -> None:
    source = put(path(folder, name))
    (folder / "new").mkdir()
    answer = change(folder, verb, [source], path(folder, b"new", name))
    assert answer.failures == {}
    assert Path(os.fsdecode(path(folder, b"new", name))).read_bytes() == b"content"
    assert os.path.lexists(source) is (verb is Verb.COPY)
    assert left(folder) == []


@settings(max_examples=25, deadline=None)
@given(st.lists(names, min_size=1, max_size=6, unique=True), names)
def test_many_go_into_a_directory_side_by_side(many: list[bytes], directory: bytes) -> None:
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary, "work")
        folder.mkdir()
        inner = Path(temporary, "sources")
        inner.mkdir()
        sources = [put(path(inner, name), name) for name in many]
        target = path(folder, directory)
        if directory == b"stage":
            return
        real(target).mkdir()
        answer = change(folder, Verb.COPY, sources, target, several=True)
        assert answer.failures == {}
        assert {name: Path(os.fsdecode(path(folder, directory, name))).read_bytes() for name in many} == {
            name: name for name in many
        }


def test_each_failure_is_told_in_coreutils_own_words_and_the_others_are_done(folder: Path) -> None:
    (folder / "d").mkdir()
    (folder / "target").mkdir()
    sources = [path(folder, b"missing"), put(path(folder, b"a")), path(folder, b"d")]
    answer = change(folder, Verb.COPY, sources, path(folder, b"target"), several=True)
    assert sorted(answer.failures) == [0, 2]
    assert answer.failures[0] == f"cp: cannot stat '{folder}/missing': No such file or directory"
    assert answer.failures[2] == f"cp: -r not specified; omitting directory '{folder}/d'"
    assert (folder / "target" / "a").exists()


def test_words_name_the_target_and_not_the_hidden_file_beside_it(folder: Path) -> None:
    target = path(folder, b"y" * 256)
    answer = change(folder, Verb.COPY, [put(path(folder, b"a"))], target)
    assert f"{folder}/yyy" in answer.failures[0]
    assert "File name too long" in answer.failures[0]
    assert ".hpcbridge" not in answer.failures[0]
    assert left(folder) == []


def test_several_need_a_directory(folder: Path) -> None:
    sources = [put(path(folder, b"a")), put(path(folder, b"b"))]
    answer = change(folder, Verb.MOVE, sources, path(folder, b"nothing"), several=True)
    assert answer.failures == dict.fromkeys((0, 1), f"mv: target '{folder}/nothing' is not a directory")
    assert (folder / "a").exists()


def test_a_tree_is_copied_with_links_and_empty_directories_and_merged_into_one_that_exists(folder: Path) -> None:
    tree = folder / "tree"
    (tree / "empty").mkdir(parents=True)
    (tree / "f").write_text("f")
    (tree / "link").symlink_to("f")
    (tree / "dangling").symlink_to("/nowhere")
    for _ in range(2):
        change(folder, Verb.COPY, [path(folder, b"tree")], path(folder, b"copy"), recursive=True)
        run_again = folder / "stage" / "answer"
        run_again.unlink()
        for name in ("started", "finished", "kind"):
            (folder / "stage" / name).unlink()
    assert sorted(p.name for p in (folder / "copy").iterdir()) == ["dangling", "empty", "f", "link", "tree"]
    assert (folder / "copy" / "dangling").is_symlink()
    assert (folder / "copy" / "tree" / "link").readlink() == Path("f")


def test_copying_replaces_a_file_keeps_its_mode_and_writes_through_links(folder: Path) -> None:
    source, target = put(path(folder, b"a"), b"new"), folder / "target"
    target.write_text("old")
    target.chmod(0o640)
    (folder / "link").symlink_to("target")
    assert change(folder, Verb.COPY, [source], path(folder, b"link")).failures == {}
    assert target.read_text() == "new"
    assert target.stat().st_mode & 0o777 == 0o640
    assert (folder / "link").is_symlink()


def test_a_file_is_not_copied_onto_itself(folder: Path) -> None:
    source = put(path(folder, b"a"))
    answer = change(folder, Verb.COPY, [source], source)
    assert "are the same file" in answer.failures[0]
    assert (folder / "a").read_bytes() == b"content"


def test_a_directory_is_not_copied_or_moved_into_itself(folder: Path) -> None:
    (folder / "d").mkdir()
    put(path(folder, b"d", b"f"))
    assert (
        "into itself"
        in change(folder, Verb.COPY, [path(folder, b"d")], path(folder, b"d", b"e"), recursive=True).failures[0]
    )
    answer = run(Changes(Verb.MOVE, [path(folder, b"d")], path(folder, b"d", b"e")), folder, stage="stage2")
    assert "subdirectory of itself" in answer.failures[0]
    assert [p.name for p in (folder / "d").iterdir()] == ["f"]


def test_a_move_replaces_a_file_but_no_directory_that_holds_something(folder: Path) -> None:
    source, other = put(path(folder, b"a"), b"new"), put(path(folder, b"b"), b"old")
    assert change(folder, Verb.MOVE, [source], other).failures == {}
    assert (folder / "b").read_bytes() == b"new"
    for name in ("x", "y/x"):
        (folder / name).mkdir(parents=True)
    (folder / "y" / "x" / "kept").touch()
    answer = run(Changes(Verb.MOVE, [path(folder, b"x")], path(folder, b"y")), folder, stage="stage2")
    assert "Directory not empty" in answer.failures[0]
    assert (folder / "y" / "x" / "kept").exists()


@pytest.mark.skipif(not Path("/dev/shm").is_dir(), reason="needs a second file system")
def test_a_move_to_another_file_system_appears_at_once_and_leaves_nothing(folder: Path) -> None:
    with tempfile.TemporaryDirectory(dir="/dev/shm") as elsewhere:
        if Path(elsewhere).stat().st_dev == folder.stat().st_dev:
            pytest.skip("one file system only")
        tree = folder / "tree"
        (tree / "sub").mkdir(parents=True)
        (tree / "sub" / "f").write_text("f")
        (tree / "link").symlink_to("sub/f")
        assert change(folder, Verb.MOVE, [path(folder, b"tree")], os.fsencode(elsewhere)).failures == {}
        assert Path(elsewhere, "tree", "sub", "f").read_text() == "f"
        assert Path(elsewhere, "tree", "link").is_symlink()
        assert not tree.exists()
        assert sorted(p.name for p in Path(elsewhere).iterdir()) == ["tree"]


def test_a_requeued_job_goes_on_where_it_was_ended(folder: Path) -> None:
    """Ended between two moves, and once in the middle of one: the first move is not a failure the second time."""
    sources = [put(path(folder, name)) for name in (b"a", b"b", b"c")]
    (folder / "target").mkdir()
    stage = folder / "stage"
    stage.mkdir()
    (stage / "kind").write_text("inside\n")
    (stage / "started").write_text("0\n1\n")
    (stage / "finished").write_text("0\n")
    for name in ("a", "b"):
        (folder / name).rename(folder / "target" / name)
    answer = change(folder, Verb.MOVE, sources, path(folder, b"target"), several=True)
    assert answer.failures == {}
    assert sorted(p.name for p in (folder / "target").iterdir()) == ["a", "b", "c"]


def test_a_requeued_copy_does_not_go_into_what_it_has_made_itself(folder: Path) -> None:
    (folder / "tree").mkdir()
    (folder / "tree" / "f").touch()
    work = Changes(Verb.COPY, [path(folder, b"tree")], path(folder, b"copy"), recursive=True)
    run(work, folder)
    (folder / "stage" / "answer").unlink()
    (folder / "stage" / "finished").write_text("")
    run(work, folder)
    assert sorted(p.name for p in (folder / "copy").iterdir()) == ["f"]


def test_an_answered_job_does_nothing_again(folder: Path) -> None:
    source = put(path(folder, b"a"))
    work = Changes(Verb.REMOVE, [source])
    run(work, folder)
    put(source)
    run(work, folder)
    assert (folder / "a").exists()


@pytest.mark.parametrize("name", ODD, ids=lambda n: repr(n[:12]))
def test_rm_and_mkdir_take_any_name(folder: Path, name: bytes) -> None:
    made = path(folder, b"in", name)
    assert "No such file" in change(folder, Verb.MAKE, [made]).failures[0]
    assert run(Changes(Verb.MAKE, [made], options="-p"), folder, stage="s2").failures == {}
    assert "Is a directory" in run(Changes(Verb.REMOVE, [made]), folder, stage="s3").failures[0]
    assert run(Changes(Verb.REMOVE, [made], options="-r"), folder, stage="s4").failures == {}
    assert "No such file" in run(Changes(Verb.REMOVE, [made]), folder, stage="s5").failures[0]
    assert run(Changes(Verb.REMOVE, [made], options="-r -f"), folder, stage="s6").failures == {}
    assert not (folder / "pwned").exists()


@settings(max_examples=25, deadline=None)
@given(st.lists(names, min_size=1, max_size=8, unique=True))
def test_a_listing_has_every_name_as_it_is(many: list[bytes]) -> None:
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        (folder / "d").mkdir()
        for index, name in enumerate(many):
            if index % 3 == 2:
                real(path(folder, b"d", name)).symlink_to(os.fsdecode(name))
            else:
                put(path(folder, b"d", name), name)
        answer = run(Records(path(folder, b"d")), folder)
        data = (folder / "stage" / "records").read_bytes()
        assert len(data) == answer.records
        found = [record.split(b" ", 5)[5] for record in data.split(b"\0")[:-1]]
        assert sorted(each.partition(b"//")[0] for each in found) == sorted(many)
        links = {each.partition(b"//")[0]: each.partition(b"//")[2] for each in found if not each.endswith(b"//")}
        assert links == {name: name for index, name in enumerate(many) if index % 3 == 2}


@pytest.mark.parametrize("recursive", [False, True])
def test_a_listing_goes_as_deep_as_it_is_asked_to(folder: Path, recursive: bool) -> None:
    (folder / "d" / "e").mkdir(parents=True)
    (folder / "d" / "e" / "f").touch()
    run(Records(path(folder, b"d"), recursive=recursive), folder)
    count = (folder / "stage" / "records").read_bytes().count(b"\0")
    assert count == (2 if recursive else 1)


def test_what_cannot_be_listed_is_said(folder: Path) -> None:
    answer = run(Records(path(folder, b"missing")), folder)
    assert answer.records == 0
    assert "No such file or directory" in answer.said


@settings(max_examples=15, deadline=None)
@given(st.lists(st.tuples(names, names, st.integers(0, 5000)), min_size=1, max_size=8))
@example([(b" ", b" lead", 1), (b"trail ", b"\n", 2), (b"a]b", b"$x", 3), (b"'", b'"', 4)])
def test_sizes_add_up_whatever_the_names(files: list[tuple[bytes, bytes, int]]) -> None:
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        (folder / "d").mkdir()
        for directory, name, size in files:
            real(path(folder, b"d", directory)).mkdir(exist_ok=True)
            put(path(folder, b"d", directory, name), b"x" * size)
        run(Records(path(folder, b"d"), measure=True), folder)
        records = (folder / "stage" / "records").read_bytes().split(b"\0")[:-1]
        found = {}
        for record in records:
            size_, count, links, where = record.split(b" ", 3)
            found[where] = (int(size_), int(count), int(links))
        expected: dict[bytes, dict[bytes, int]] = {b".": {}}
        for directory, name, size in files:
            expected.setdefault(b"./" + directory, {})[name] = size
        assert found == {where: (sum(each.values()), len(each), 0) for where, each in expected.items()}


def test_answers_that_no_script_writes_are_refused() -> None:
    for text in ("", "failed 1 eA==", "<html>", "ende"):
        with pytest.raises(ValueError, match=r"answer"):
            parse_answer(text)
