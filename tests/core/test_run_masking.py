"""Secrets in a stream: hidden wherever it is cut, and nothing else changed."""

from __future__ import annotations

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from hpcbridge.cli.running.masking import Masker, lines_of


def masked(secrets: list[str], pieces: list[bytes]) -> bytes:
    masker = Masker(secrets)
    return b"".join([*map(masker.feed, pieces), masker.end()])


ANYTIME = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
"""How long data takes to make says nothing on a busy machine."""


@ANYTIME
@given(st.lists(st.binary(max_size=30), max_size=10))
def test_without_secrets_every_byte_passes_at_once(pieces: list[bytes]) -> None:
    masker = Masker()
    assert [masker.feed(piece) for piece in pieces] == pieces
    assert masker.end() == b""


@ANYTIME
@given(
    st.lists(st.sampled_from(["hunter2", "hunter2-longer", "zzzz", "über", "0123"]), min_size=1, max_size=3),
    st.lists(
        st.sampled_from(["hunter2", "hunter2-longer", "zzzz", "über", "hunt", "er2", "-lon", "x", "\n"]), max_size=12
    ),
    st.lists(st.integers(1, 9), min_size=1),
)
def test_no_cut_shows_a_secret_or_changes_the_result(secrets: list[str], words: list[str], cuts: list[int]) -> None:
    data = "".join(words).encode()
    pieces, rest, index = [], data, 0
    while rest:
        size = cuts[index % len(cuts)]
        pieces.append(rest[:size])
        rest, index = rest[size:], index + 1
    out = masked(secrets, pieces)
    assert out == masked(secrets, [data])
    for secret in secrets:
        assert secret.encode() not in out


def test_what_cannot_be_the_start_of_a_secret_is_not_kept_back() -> None:
    masker = Masker(["hunter2"])
    assert masker.feed(b"go on, hunt") == b"go on, "
    assert masker.feed(b"ing") == b"hunting"


def test_each_line_of_a_key_is_hidden_and_short_ones_are_not() -> None:
    key = "-----BEGIN KEY-----\nabcdefgh\nxy\n-----END KEY-----\n"
    assert lines_of(key) == ["-----BEGIN KEY-----", "abcdefgh", "-----END KEY-----"]
    assert masked([key], [b"> abcde", b"fgh xy <"]) == b"> *** xy <"
