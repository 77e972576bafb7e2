"""Recorded error answers and made-up ones, mapped to our errors: the table that submit once rests on."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import httpx
import pytest

from hpcbridge import errors
from hpcbridge.firecrest.answers import explain, explain_once

ANSWERS: dict[str, Any] = json.loads((Path(__file__).parent / "data" / "answers.json").read_text())


def recorded(name: str) -> httpx.Response:
    record = ANSWERS[name]
    content = json.dumps(record["body"]).encode()
    headers = {"content-type": "application/json"}
    return httpx.Response(
        record["status"], content=content, headers=headers, request=httpx.Request("POST", "http://h/")
    )


def made(status: int, message: str = "", **headers: str) -> httpx.Response:
    body = {"errorType": "error", "message": message, "data": None, "causedBy": None, "user": None}
    return httpx.Response(status, json=body, headers=headers, request=httpx.Request("POST", "http://h/"))


SBATCH = "Unexpected Slurm command response. exit_status:1 std_err:sbatch: error: Batch job submission failed: "

SUBMITS = [
    # a definite no: nothing was made, and the same request gets the same answer
    (recorded("jobs_submit_400_no_workdir"), errors.InvalidRequest),
    (recorded("auth_401_expired"), errors.AuthenticationError),
    (recorded("jobs_submit_403_quota"), errors.SubmitRejected),
    (made(403, "Forbidden"), errors.PermissionDenied),
    (recorded("jobs_submit_404_system"), errors.SystemNotFound),
    (made(413, "too large"), errors.TooLarge),
    (made(501, "scriptPath is not supported"), errors.InvalidRequest),
    (recorded("jobs_submit_500_bad_partition"), errors.SubmitRejected),
    (recorded("jobs_submit_500_bad_account"), errors.SubmitRejected),
    (recorded("jobs_submit_500_bad_directive"), errors.SubmitRejected),
    (recorded("jobs_submit_500_no_shebang"), errors.SubmitRejected),
    (recorded("jobs_submit_crlf_script"), errors.SubmitRejected),
    (recorded("jobs_submit_6MB_script"), errors.SubmitRejected),
    (recorded("jobs_submit_script_path_nope"), errors.SubmitRejected),
    # a definite no that may be repeated
    (recorded("jobs_submit_503"), errors.Unavailable),
    (recorded("ssh_424_permission_denied"), errors.Unavailable),
    # wait, then look
    (made(429), errors.RateLimited),
    # everything else is ambiguous
    (recorded("jobs_submit_neither_script"), errors.AmbiguousOutcome),  # 408: sbatch may have succeeded behind it
    (recorded("ssh_424_max_sessions"), errors.AmbiguousOutcome),
    (recorded("job_500_max_sessions"), errors.AmbiguousOutcome),
    (recorded("jobs_submit_env_list"), errors.AmbiguousOutcome),
    (recorded("jobs_submit_424"), errors.AmbiguousOutcome),
    (made(500), errors.AmbiguousOutcome),
    (made(502), errors.AmbiguousOutcome),
    (made(503, "upstream"), errors.AmbiguousOutcome),
    (made(504), errors.AmbiguousOutcome),
    # sbatch failed, but may have been heard by the controller
    (made(500, SBATCH + "Socket timed out on send/recv operation"), errors.AmbiguousOutcome),
    (made(500, SBATCH + "Unable to contact slurm controller (connect failure)"), errors.AmbiguousOutcome),
    (made(500, SBATCH + "Zero Bytes were transmitted or received"), errors.AmbiguousOutcome),
    # sbatch ended well, and the server stumbled over what it said
    (made(500, "Unexpected Slurm command response. exit_status:0 std_err:sbatch: warning: x"), errors.AmbiguousOutcome),
    # PBS
    (made(500, "exit_status:170 std_err:qsub: Unknown queue MSG=cannot locate queue"), errors.SubmitRejected),
]


@pytest.mark.parametrize(("response", "kind"), SUBMITS, ids=lambda item: getattr(item, "__name__", None))
def test_what_the_answer_to_a_submit_means(response: httpx.Response, kind: type[errors.HpcBridgeError]) -> None:
    error = explain_once(response, {"system": "daint", "request_id": "r"})
    assert type(error) is kind
    assert (error.system, error.request_id, error.status) == ("daint", "r", response.status_code)


def test_a_rejection_is_in_sbatchs_own_words() -> None:
    error = explain_once(recorded("jobs_submit_500_bad_partition"), {})
    assert error.message.startswith("sbatch: error: invalid partition specified: nosuch")


REPEATABLE = [
    ("job_404", errors.JobNotFound),
    ("job_cancel_unknown", errors.JobNotFound),
    ("job_letters", errors.JobNotFound),
    ("job_cancel_finished", errors.Conflict),
    ("job_cancel_other_users", errors.PermissionDenied),
    ("job_500_max_sessions", errors.Unavailable),
    ("jobs_list_500_after_a_pipe_in_a_job_name", errors.ServerError),
    ("jobs_list_400_window", errors.InvalidRequest),
    ("ops_ls_404", errors.PathNotFound),
    ("ops_ls_404_system", errors.SystemNotFound),
    ("ops_ls_403", errors.PermissionDenied),
    ("ops_ls_400_outside", errors.InvalidPath),
    ("ops_ls_503", errors.Unavailable),
    ("ops_ls_quote_in_path", errors.InvalidPath),
    ("ops_download_dir", errors.InvalidPath),
    ("ops_download_413_base64", errors.TooLarge),
    ("ops_upload_413", errors.TooLarge),
    ("ops_upload_404_dir", errors.PathNotFound),
    ("ops_mkdir_400_exists", errors.AlreadyExists),
    ("ops_symlink_400_exists", errors.AlreadyExists),
    ("ops_chmod_bad_mode", errors.InvalidRequest),
    ("ops_compress_408_timeout", errors.CommandTimeout),
    ("ssh_424_max_sessions", errors.Unavailable),
    ("fs_user_without_ssh_key", errors.PermissionDenied),
    ("http_404_route", errors.NotFound),
    ("http_trailing_slash_ls", errors.ConfigurationError),
    ("auth_401_shortlived", errors.AuthenticationError),
    ("auth_400_missing_claim", errors.InvalidRequest),
]


@pytest.mark.parametrize(("name", "kind"), REPEATABLE)
def test_what_a_recorded_error_means(name: str, kind: type[errors.HpcBridgeError]) -> None:
    assert type(explain(recorded(name), {})) is kind


@pytest.mark.parametrize("name", sorted(name for name, record in ANSWERS.items() if record["status"] >= 300))
def test_every_recorded_error_is_explained_in_words(name: str) -> None:
    error = explain(recorded(name), {"system": "lab"})
    assert error.message
    assert error.status == ANSWERS[name]["status"]
    assert "{'type':" not in str(error)


def test_validation_errors_name_the_field() -> None:
    assert "Field required" in explain(recorded("jobs_submit_400_no_workdir"), {}).message


@pytest.mark.parametrize(
    ("headers", "low", "high"),
    [
        ({"retry-after": "7"}, 7, 7),
        ({"ratelimit-reset": "3"}, 3, 3),
        ({"retry-after": "Wed, 21 Oct 2015 07:28:00 GMT"}, 0, 0),
        ({"retry-after": "soon", "ratelimit-reset": "2"}, 2, 2),
    ],
)
def test_when_to_come_back(headers: dict[str, str], low: float, high: float) -> None:
    error = explain(made(429, "slow down", **headers), {})
    assert isinstance(error, errors.RateLimited)
    assert error.retry_after is not None
    assert low <= error.retry_after <= high


def test_a_gateways_page_is_not_quoted() -> None:
    page = httpx.Response(502, html="<html><body>" + "x" * 5000, request=httpx.Request("GET", "http://h/"))
    assert explain(page, {}).message == "Bad Gateway"
