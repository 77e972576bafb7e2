"""Pieces and names: what is decided before the first byte moves."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hpcbridge.errors import InvalidPath, InvalidRequest
from hpcbridge.staging import plan
from hpcbridge.staging.context import transfer_directives
from hpcbridge.staging.names import RemotePath, parse_remote


def test_a_direct_download_ends_where_base64_reaches_the_servers_limit():
    assert plan.download_limit(5_242_880) == 3_932_157


@given(st.integers(min_value=1, max_value=10**8))
def test_base64_of_the_largest_direct_download_stays_under_the_limit(limit):
    largest = plan.download_limit(limit)
    assert 4 * -(-largest // 3) < limit
    assert 4 * -(-(largest + 3) // 3) >= limit


@given(size=st.integers(0, 10**12), piece=st.integers(10**6, 10**8))
def test_pieces_cover_the_file_without_gap_or_overlap(size, piece):
    count = plan.piece_count(size, piece)
    ends = [0, 1, count - 2, count - 1] if count > 4 else range(count)
    assert all(0 < plan.piece_size(size, piece, i) <= piece for i in ends)
    assert plan.piece_size(size, piece, count - 1) + (count - 1) * piece == size if count else size == 0


@given(size=st.integers(0, 10**7), step=st.integers(1, 10**6).filter(lambda n: n > 5000))
def test_spans_are_the_file_in_order(size, step):
    position = 0
    for offset, length in plan.spans(size, step):
        assert offset == position
        assert 0 < length <= step
        position += length
    assert position == size


def test_an_unknown_way_to_verify_is_refused():
    with pytest.raises(InvalidRequest, match="verify"):
        plan.verification("md5")


@pytest.mark.parametrize(
    "path",
    [
        "relative/x",
        "",
        "/",
        "/home/alice/",
        "/home/../etc/passwd",
        "/home/alice/x/.",
        "/home/a\0b",
        "/home/it's/x",
        "/home/new\nline/x",
        "/home/\x07bell/x",
        "/home/" + "n" * 256,
        "/" + "/".join(["d" * 200] * 21),
    ],
)
def test_paths_that_no_call_can_carry_are_refused(path):
    with pytest.raises(InvalidPath):
        parse_remote(path)


@pytest.mark.parametrize(
    ("name", "upload", "commands"),
    [
        ("plain.txt", True, True),
        ("-rf", False, True),
        ("sp ace é", True, True),
        ("$HOME;`id`", True, True),
        ('quo"te', False, True),
        ("back\\slash", False, True),
        (" padded ", False, True),
        ("it's", False, False),
        ("new\nline", False, False),
        ("tab\t", False, False),
        ("\udcff", False, False),
    ],
)
def test_which_calls_carry_a_name(name, upload, commands):
    remote = parse_remote(f"/home/alice/{name}")
    assert (remote.upload_carries_it, remote.commands_carry_it) == (upload, commands)


@pytest.mark.parametrize(
    "path", ["/home/al ice/x", "/h/a&b", "/h/$HOME", "/h/a;b", "/h/*", "/h/`id`", "/h/it's", "/h/~x"]
)
def test_the_servers_scripts_do_not_get_what_breaks_them(path):
    directory, _, name = path.rpartition("/")
    assert not RemotePath(directory, name).scripts_carry_it
    assert RemotePath("/home/é_1", "a.b-c+d=e:f,g@h%i^j").scripts_carry_it


@pytest.mark.parametrize("mode", ["ssh", "rest"])
def test_our_jobs_go_where_the_site_wants_transfer_jobs(mode):
    lines = ("#SBATCH --nodes=1", "#SBATCH --partition=xfer", "#SBATCH --account={account}")
    fields = transfer_directives(lines, mode, "staff")
    assert fields["account"] == "staff"
    if mode == "rest":
        assert fields["partition"] == "xfer"
        assert "directives" not in fields
    else:
        assert fields["directives"] == ("--nodes=1", "--partition=xfer")


def test_a_trailing_slash_means_in_that_directory():
    assert str(parse_remote("/home//alice/./", "data.bin")) == "/home/alice/data.bin"
    assert str(parse_remote("/x")) == "/x"
