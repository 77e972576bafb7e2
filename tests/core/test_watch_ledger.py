"""The ledger: what listings and by-id reads mean for watched jobs. No job ends early, none is forgotten."""

import itertools
import json
from datetime import UTC, datetime
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hpcbridge.firecrest.models import JobRow
from hpcbridge.jobs.ledger import Ledger, WatchPolicy
from hpcbridge.jobs.state import JobInfo, JobState

POLICY = WatchPolicy(lag=30, misses=3, grace=10)
NOW = datetime(2026, 11, 20, tzinfo=UTC)


def row(job_id, state="RUNNING", *, name="a", exit_code=0, signal=0, reason=None, nodes="n1", placeholder=False):
    return JobRow.from_json(
        {
            "jobId": job_id,
            "name": "allocation" if placeholder else name,
            "status": {
                "state": state,
                "exitCode": exit_code,
                "interruptSignal": signal,
                "stateReason": reason or "None",
            },
            "time": {"start": 1795166107, "end": 1795166112},
            "nodes": nodes,
            "partition": None if placeholder else "normal",
            "workingDirectory": None if placeholder else "/w",
        }
    )


def watching(*ids, submitted=NOW, **options):
    ledger = Ledger(POLICY)
    for job_id in ids:
        ledger.watch(job_id, 0.0, name="a", submitted=submitted, **options)
    return ledger


def ends(changes):
    return {change.job_id: change.info for change in changes if change.ended}


def test_an_end_is_told_at_the_first_answer_that_shows_it():
    ledger = watching("7")
    assert not ends(ledger.on_listing([row("7", "PENDING")], 1))
    (info,) = ends(ledger.on_listing([row("7", "FAILED", exit_code=3)], 2)).values()
    assert (info.state, info.exit_code, info.signal, info.reason) == (JobState.FAILED, 3, 0, "NonZeroExitCode")
    assert len(ledger) == 0


def test_another_reason_to_wait_is_news():
    ledger, told = watching("7"), []
    for now, reason in enumerate(("Priority", "Priority", "Resources", "Resources"), 1):
        waiting = row("7", "PENDING", reason=reason, nodes=None)
        told += [change.info.reason for change in ledger.on_listing([waiting], now)]
    assert told == ["Priority", "Resources"]


@pytest.mark.parametrize(
    ("state", "exit_code", "signal", "reason"),
    [
        ("COMPLETED", 0, 0, "None"),
        ("FAILED", 5, 0, "NonZeroExitCode"),
        ("FAILED", 0, 11, "RaisedSignal:11"),
        ("CANCELLED by 2001", None, None, "CANCELLED by 2001"),
        ("TIMEOUT", 0, 0, "TimeLimit"),
        ("DEADLINE", 0, 0, "DeadLine"),
        ("OUT_OF_MEMORY", 0, 9, "OutOfMemory"),
        ("REVOKED", 0, 0, "REVOKED"),
    ],
)
def test_every_terminal_state_carries_exit_code_signal_and_reason(state, exit_code, signal, reason):
    rows = [row("7", state, exit_code=exit_code, signal=signal)]
    (info,) = ends(watching("7").on_listing(rows, 1)).values()
    assert (info.exit_code, info.signal, info.reason) == (exit_code or 0, signal or 0, reason)
    assert info.ended is not None


NOT_OVER = [*(s for s in JobState if not s.is_terminal), "SOMETHING_NEW", "COMPLETED COMPLETING", ""]


@pytest.mark.parametrize("state", NOT_OVER)
def test_other_states_even_unknown_ones_are_no_end(state):
    assert not ends(watching("7").on_listing([row("7", str(state))], 1))


def test_a_missing_job_keeps_its_last_state_and_is_asked_for_after_three_misses():
    ledger = watching("7", "8")
    ledger.on_listing([row("7"), row("8")], 1)
    for now in (2, 3):
        assert ledger.on_listing([row("8")], now) == []
        assert ledger.question() is None
    ledger.on_listing([row("8")], 4)
    assert ledger.question() == "7"
    assert ledger.jobs["7"].info.state is JobState.RUNNING


def test_the_longest_absent_is_asked_for_first_and_failed_questions_do_not_starve_others():
    ledger = watching("1", "2", "3")
    ledger.on_listing([row("1"), row("2"), row("3")], 1)
    ledger.on_listing([row("2"), row("3")], 2)
    ledger.on_listing([row("3")], 3)
    for now in (4, 5, 6):
        ledger.on_listing([], now)
    assert ledger.question() == "1"
    ledger.asked("1", 6.5)
    assert ledger.question() == "2"
    ledger.on_answer("2", [row("2")], 7)
    assert ledger.question() == "3"


def test_a_job_of_unknown_age_is_asked_for_at_the_first_miss():
    ledger = watching("7", submitted=None)
    ledger.on_listing([], 1)
    assert ledger.question() == "7"


def test_absence_counts_only_confirmed_and_past_the_lag():
    ledger = watching("7")
    assert ledger.on_answer("7", [], 5) is None
    assert ledger.on_answer("7", [], 25) is None
    change = ledger.on_answer("7", [], 31)
    assert change.gone
    assert len(ledger) == 0


def test_a_sight_between_two_absences_begins_it_anew():
    ledger = watching("7")
    ledger.on_answer("7", [], 5)
    ledger.on_listing([row("7")], 30)
    assert ledger.on_answer("7", [], 40) is None
    assert ledger.on_answer("7", [], 59) is None
    assert ledger.on_answer("7", [], 61).gone


def test_one_absence_alone_is_never_enough():
    assert watching("7").on_answer("7", [], 1000) is None


def test_a_placeholder_in_a_listing_is_not_the_truth_but_is_asked_about_at_once():
    ledger = watching("7")
    assert ledger.on_listing([row("7", "COMPLETED", placeholder=True)], 1) == []
    assert ledger.question() == "7"
    change = ledger.on_answer("7", [row("7", "FAILED", exit_code=2)], 2)
    assert (change.ended, change.info.exit_code) == (True, 2)


def test_a_placeholder_in_a_by_id_read_is_not_waited_for():
    change = watching("7").on_answer("7", [row("7", "COMPLETED", placeholder=True)], 1)
    assert (change.ended, change.info.name) == (True, "a")


def test_a_job_that_is_called_allocation_is_a_job():
    ledger = Ledger(POLICY)
    ledger.watch("7", 0.0, name="allocation", submitted=NOW)
    assert ends(ledger.on_listing([row("7", "COMPLETED", placeholder=True)], 1))


@pytest.mark.parametrize("state", ["NODE_FAIL", "PREEMPTED", "BOOT_FAIL"])
def test_an_end_that_a_requeue_may_follow_must_stand(state):
    ledger = watching("7")
    assert not ends(ledger.on_listing([row("7", state)], 1))
    assert not ends(ledger.on_listing([row("7", "PENDING")], 5))
    assert not ends(ledger.on_listing([row("7", state)], 12))
    (info,) = ends(ledger.on_listing([row("7", state)], 23)).values()
    assert info.state == state


def test_an_array_is_complete_only_when_every_task_is():
    ledger = watching("144", expected=range(3))
    assert not ends(ledger.on_listing([row("144_0", "COMPLETED"), row("144_[1-2%1]", "PENDING")], 1))
    assert not ends(ledger.on_listing([row("144_0", "COMPLETED"), row("144_1", "COMPLETED")], 2))
    assert not ends(ledger.on_listing([row("144_0", "COMPLETED"), row("144_1", "COMPLETED"), row("144_2")], 3))
    (info,) = ends(ledger.on_listing([row("144_2", "FAILED", exit_code=4)], 4)).values()
    assert (info.state, info.exit_code, [task.job_id for task in info.tasks]) == (
        JobState.FAILED,
        4,
        ["144_0", "144_1", "144_2"],
    )


def test_a_task_that_accounting_has_not_got_yet_is_waited_for():
    ledger = watching("144", expected=range(2))
    first, both = [row("144_0", "COMPLETED")], [row("144_0", "COMPLETED"), row("144_1", "COMPLETED")]
    assert not ledger.on_answer("144", first, 1).ended
    assert ledger.on_answer("144", first, POLICY.lag) is None
    assert len(ledger.on_answer("144", both, POLICY.lag + 0.5).info.tasks) == 2


def test_a_task_that_never_shows_does_not_keep_the_array_for_ever():
    ledger = watching("144", expected=range(2))
    assert not ledger.on_answer("144", [row("144_0", "COMPLETED")], 1).ended
    assert ledger.on_answer("144", [row("144_0", "COMPLETED")], 1 + POLICY.lag).ended


def test_an_array_of_unknown_size_is_complete_only_by_id():
    ledger = watching("144")
    rows = [row("144_0", "COMPLETED"), row("144_1", "COMPLETED")]
    assert not ends(ledger.on_listing(rows, 1))
    assert ledger.question() == "144"
    assert ledger.on_answer("144", [*rows, row("146", "RUNNING")], 2) is None
    assert ledger.on_answer("144", rows, 3).ended


def test_the_row_of_what_still_waits_keeps_an_array_going():
    ledger = watching("144")
    change = ledger.on_answer("144", [row("144_0", "COMPLETED"), row("144", "PENDING")], 1)
    assert (change.ended, change.info.state) == (False, JobState.RUNNING)


def test_an_array_cancelled_in_the_queue_has_ended():
    ledger = watching("144")
    change = ledger.on_answer("144", [row("144_[0-2]", "CANCELLED by 0", exit_code=None)], 1)
    assert (change.ended, change.info.state, len(change.info.tasks)) == (True, JobState.CANCELLED, 3)


def test_a_cut_list_of_indices_is_not_all():
    assert not watching("144").on_answer("144", [row("144_0", "COMPLETED"), row("144_[1-2,...]", "PENDING")], 1).ended


def test_a_cut_list_of_cancelled_tasks_has_ended():
    """sacct cuts the list for good: no later answer will show the rest, which has ended with what it shows."""
    ledger = watching("144", expected=range(0, 200, 2))
    change = ledger.on_answer("144", [row("144_[0,2,4,...]", "CANCELLED by 2001", exit_code=None)], 1)
    assert (change.ended, change.info.state) == (True, JobState.CANCELLED)


def test_an_absence_before_an_outage_confirms_nothing_after_it():
    ledger = watching("7")
    ledger.on_listing([row("7")], 1)
    assert ledger.on_answer("7", [], 20) is None
    ledger.interrupted()
    assert ledger.on_answer("7", [], 7200) is None
    assert ledger.on_answer("7", [], 7205) is None
    assert ledger.on_answer("7", [], 7211).gone


def test_the_gravest_task_speaks_for_the_array():
    ledger = watching("9", expected=range(3))
    rows = [row("9_0", "COMPLETED"), row("9_1", "FAILED", exit_code=1), row("9_2", "OUT_OF_MEMORY", signal=9)]
    (info,) = ends(ledger.on_listing(rows, 1)).values()
    assert (info.state, info.signal, info.describe().count("2 of 3 tasks failed")) == (JobState.OUT_OF_MEMORY, 9, 1)


def test_recorded_answers_of_a_real_server():
    """The shapes that were measured: an array that runs, and one that has ended (FirecREST 2.5.7, Slurm 22.05)."""
    recorded = json.loads((Path(__file__).parent / "data" / "array_answers.json").read_text())
    for name, ended, tasks in (("running", False, 0), ("mixed", False, 5), ("done", True, 3)):
        rows = [JobRow.from_json(job) for job in recorded[name]]
        job_id = rows[0].array_job_id or rows[0].job_id
        change = watching(job_id).on_answer(job_id, rows, 1)
        assert (change.ended, len(change.info.tasks)) == (ended, tasks), name


def test_on_change_hears_of_news_only():
    ledger = watching("7")
    assert len(ledger.on_listing([row("7", "PENDING", reason="Priority", nodes="")], 1)) == 1
    assert ledger.on_listing([row("7", "PENDING", reason="Priority", nodes="")], 2) == []
    assert len(ledger.on_listing([row("7", "RUNNING")], 3)) == 1


def test_info_survives_json():
    info = JobInfo.from_row(row("7", "FAILED", exit_code=3))
    assert JobInfo.from_json(json.loads(json.dumps(info.to_json()))).to_json() == info.to_json()


# -- a property: a truth, seen through lag, flicker and placeholders
# -----------------------------------------------------

STATES = ("PENDING", "RUNNING", "COMPLETED")


@st.composite
def histories(draw):
    """For each of some jobs: when it starts and when it ends; and for each tick what of it a listing shows."""
    jobs = {}
    for number in range(draw(st.integers(1, 6))):
        start = draw(st.integers(1, 20))
        jobs[str(number)] = (start, start + draw(st.integers(0, 40)))
    lag = draw(st.integers(0, 20))
    fates = draw(st.lists(st.sampled_from(["shown", "missing", "placeholder", "outage"]), min_size=10, max_size=400))
    return jobs, lag, fates


@settings(max_examples=80, deadline=None)
@given(histories())
def test_no_job_ends_early_and_every_end_is_told_within_a_tick_of_the_answer_that_shows_it(history):
    jobs, lag, fates = history
    ledger = watching(*jobs)
    told, shown, fate = {}, {}, itertools.cycle(fates)

    def truth(job_id, now):
        start, end = jobs[job_id]
        at = now - lag
        return None if at < 0 else row(job_id, STATES[(at >= start) + (at >= end)])

    for tick in range(1, 400):
        now = float(tick)
        if next(fate) != "outage":
            rows = []
            for job_id in jobs:
                seen, what = truth(job_id, now), next(fate)
                if seen is None or what == "missing":
                    continue
                if what == "placeholder":
                    seen = row(job_id, "COMPLETED" if now >= jobs[job_id][1] else "PENDING", placeholder=True)
                elif seen.state == "COMPLETED":
                    shown.setdefault(job_id, now)
                rows.append(seen)
            changes = ledger.on_listing(rows, now)
            question = ledger.question()
            if question is not None and next(fate) != "outage":
                seen = truth(question, now)
                if seen is not None and seen.state == "COMPLETED":
                    shown.setdefault(question, now)
                answer = ledger.on_answer(question, [seen] if seen else [], now)
                changes += [answer] if answer else []
            for change in changes:
                assert not change.gone, "a job that exists was called vanished"
                if change.ended:
                    assert now >= jobs[change.job_id][1], "ended early"
                    told[change.job_id] = now
        if len(told) == len(jobs):
            break
    assert told == {job_id: shown[job_id] for job_id in told}
    if "shown" in fates and len(set(fates)) == 1:
        assert len(told) == len(jobs)


def test_a_listing_taken_in_slices_meets_jobs_that_come_and_go():
    """Between two slices a waiter may leave and another may come: neither is judged by this listing."""
    ledger = watching("1", "2", "3")
    slices = ledger.take_listing([row("1"), row("2"), row("3")], 10.0)
    first = next(slices)
    assert first is not None
    assert first.job_id == "1"
    ledger.forget("2")
    ledger.watch("4", 11.0)
    assert [change.job_id for change in slices if change] == ["3"]
    assert ledger.jobs["4"].misses == 0
