"""``#SBATCH`` lines, times, indices, patterns and exports are read as sbatch 22.05 reads them."""

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hpcbridge_sandbox.scheduling.local.accounting import Accounting, View
from hpcbridge_sandbox.scheduling.local.dependencies import Term, parse_dependency
from hpcbridge_sandbox.scheduling.local.directives import SbatchError, directive_words, parse_options
from hpcbridge_sandbox.scheduling.local.job import Job, Request, Simulation, dump_job, load_job
from hpcbridge_sandbox.scheduling.local.values import (
    ArraySpec,
    SignalSpec,
    array_label,
    expand_pattern,
    export_values,
    parse_array,
    parse_begin,
    parse_signal,
    parse_time,
)


def options(script):
    return parse_options(list(directive_words(script)), now=1000.0)


def test_directives_end_at_the_first_command_and_the_last_one_wins():
    found = options(
        "#!/bin/bash\n#SBATCH -J one --time=5\n\n# a comment\n#SBATCH --job-name 'two words' -n4 # not this\n"
        "#SBATCH -N 2 --cpus-per-task=3 --hold\n  set -e\n#SBATCH --account=late\n"
    )
    assert (found.name, found.time_limit, found.ntasks, found.nodes) == ("two words", 300, 4, 2)
    assert (found.cpus_per_task, found.hold, found.account) == (3, True, None)


def test_long_options_may_be_shortened_and_unknown_ones_of_slurm_are_let_through():
    found = options("#!/bin/sh\n#SBATCH --part=xfer --gres=gpu:2 --mail-type END --exclusive\n")
    assert found.partition == "xfer"
    assert found.unused == {"gres": "gpu:2", "mail-type": "END", "exclusive": ""}


@pytest.mark.parametrize(
    ("line", "status", "words"),
    [
        ("--time", 255, "sbatch: option '--time' requires an argument"),
        ("-Z", 255, "sbatch: invalid option -- 'Z'"),
        ("--hold=3", 255, "sbatch: option '--hold' doesn't allow an argument"),
        ("--nod=1", 255, "sbatch: option '--nod=1' is ambiguous; possibilities: '--nodefile' '--nodelist' '--nodes'"),
        ("--signal=FOO@3", 255, "sbatch: error: Invalid --signal specification"),
        ('-J "foo', 1, 'sbatch: fatal: stdin: line 2: Unmatched `"` in [ "foo]'),
    ],
)
def test_mistakes_are_worded_as_on_a_real_slurm(line, status, words):
    with pytest.raises(SbatchError) as caught:
        options(f"#!/bin/sh\n#SBATCH {line}\n")
    assert caught.value.exit_status == status
    assert caught.value.stderr.startswith(words)


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("5", 300), ("5:30", 330), ("1:00:00", 3600), ("99:00:00", 356400), ("2-3", 183600), ("1-02:03", 93780),
        ("1-02:03:04", 93784), ("UNLIMITED", None), ("0", None),
    ],
)  # fmt: skip
def test_times(text, seconds):
    assert parse_time(text) == seconds


@pytest.mark.parametrize("text", ["soon", "1:2:3:4", "-5", "1-", ""])
def test_times_that_are_none(text):
    with pytest.raises(ValueError, match="Invalid --time specification"):
        parse_time(text)


def test_array_indices():
    assert parse_array("0-2") == ArraySpec((0, 1, 2))
    assert parse_array("1,3,5-9:2%4") == ArraySpec((1, 3, 5, 7, 9), 4)
    for bad in ("3-1", "0-2000", "a", "1-", "1%x"):
        with pytest.raises(ValueError, match=re.escape(bad)):
            parse_array(bad)


@given(st.sets(st.integers(0, 1000), min_size=1, max_size=15))
def test_a_label_of_waiting_tasks_reads_back_as_the_same_tasks(indices):
    ordered = sorted(indices)
    label = array_label(7, ordered, 2)
    inner = re.fullmatch(r"7_\[(.+)%2\]", label)[1]
    if not inner.endswith("..."):
        assert list(parse_array(inner).indices) == ordered
    assert len(label) < 80


def test_signals_and_begin_times():
    assert parse_signal("B:USR1@30") == SignalSpec(10, 30, batch=True)
    assert parse_signal("SIGTERM") == SignalSpec(15, 60)
    assert parse_begin("now+60", 100.0) == 160.0
    assert parse_begin("now+1hour", 100.0) == 3700.0
    assert parse_begin("now", 100.0) == 100.0


def test_file_name_patterns():
    values = {"j": "12", "x": "a b", "a": "3"}
    assert expand_pattern("o-%j-%5j-%x-%a-%%-%Q", values) == "o-12-00012-a b-3-%-%Q"
    assert expand_pattern("o\\%j", values) == "o%j"


def test_exports_are_cut_at_commas():
    assert export_values(["A=b c", "E=x,y=z", "N=l1\nl2", "S=1,2"]) == {
        "A": "b c", "E": "x", "y": "z", "N": "l1\nl2", "S": "1",
    }  # fmt: skip


def test_dependencies():
    assert parse_dependency("afterok:1:2,after:3+5") == (
        [Term("afterok", 1), Term("afterok", 2), Term("after", 3)],
        False,
    )
    assert parse_dependency("afterany:1?singleton") == ([Term("afterany", 1), Term("singleton", None)], True)
    for bad in ("foo:1", "afterok:x", "afterok"):
        with pytest.raises(ValueError, match=bad):
            parse_dependency(bad)


def job(**values):
    request = Request("alice", 2001, "users", "staff", "normal", "/home/alice", simulation=Simulation())
    return Job(**{"job_id": 1, "request": request, "name": "n", "priority": 1, "submitted": 100.0} | values)


@given(
    st.integers(1, 10**6),
    st.sampled_from(["PENDING", "RUNNING", "COMPLETED", "FAILED"]),
    st.floats(0, 40),
    st.booleans(),
    st.booleans(),
)
def test_accounting_tells_the_truth_after_the_lag_and_never_an_end_that_was_not(
    job_id, state, age, listing, allocation
):
    accounting = Accounting(lag=5.0, allocation_rows=allocation)
    ended = state in ("COMPLETED", "FAILED")
    record = job(job_id=job_id, state=state, start=None if state == "PENDING" else 100.0, end=100.0 if ended else None)
    view = accounting.view(record, 100.0 + age, listing=listing)
    if age >= 5:
        assert view is View.TRUE
    if not ended:
        assert view in ({View.TRUE, View.PENDING, View.MISSING} if listing else {View.TRUE, View.PENDING})
    if not listing:
        assert view is not View.MISSING


@given(st.text(max_size=30), st.none() | st.lists(st.integers(0, 99), max_size=4), st.integers(0, 255))
def test_a_record_reads_back_from_the_ledger_as_it_was(name, pending, exit_code):
    record = job(name=name, pending=pending, array_id=1 if pending else None, exit_code=exit_code)
    assert load_job(dump_job(record), record.request) == record
