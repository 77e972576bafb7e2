"""Relax the lattice of a crystal at an HPC centre as soon as its structure file arrives.

    wait_for_structure -> upload_structure, upload_potential -> relax -> download_result -> check_result -> clean_up

Copy this file and `rock_salt.sbatch` into your DAGs folder and set two connections (see docs/airflow.md):
`firecrest_default` of type FirecREST, and `fs_default` of type File for the sensor. The structure is expected in the
directory given by the parameter `inbox`, together with `potential.dat`. Remote paths that do not begin with `/` are
under your own directory on the cluster.
"""

from __future__ import annotations

import math
from datetime import timedelta
from pathlib import Path

from airflow.providers.standard.sensors.filesystem import FileSensor
from airflow.sdk import DAG, Param, task

from hpcbridge_airflow.hooks import FirecRESTHook
from hpcbridge_airflow.operators import FirecRESTSubmitOperator
from hpcbridge_airflow.transfers import FirecRESTDownloadOperator, FirecRESTUploadOperator

REMOTE = "rock-salt/{{ dag_run.run_after.strftime('%Y%m%dT%H%M%S') }}"

with DAG(
    dag_id="rock_salt",
    schedule=None,
    params={"inbox": Param("/data/rock-salt", type="string", description="Directory of structure.dat, potential.dat")},
    default_args={"retries": 2, "retry_delay": timedelta(seconds=10)},
    max_active_runs=1,
    doc_md=__doc__,
    tags=["firecrest"],
) as dag:
    wait_for_structure = FileSensor(
        task_id="wait_for_structure", filepath="{{ params.inbox }}/structure.dat", poke_interval=2, deferrable=True
    )
    upload_structure = FirecRESTUploadOperator(
        task_id="upload_structure",
        local_path="{{ params.inbox }}/structure.dat",
        remote_path=f"{REMOTE}/structure.dat",
        deferrable=True,
    )
    upload_potential = FirecRESTUploadOperator(
        task_id="upload_potential",
        local_path="{{ params.inbox }}/potential.dat",
        remote_path=f"{REMOTE}/potential.dat",
        deferrable=True,
    )
    relax = FirecRESTSubmitOperator(
        task_id="relax",
        script="rock_salt.sbatch",
        workdir=REMOTE,
        deferrable=True,
        execution_timeout=timedelta(minutes=30),
    )
    download_result = FirecRESTDownloadOperator(
        task_id="download_result",
        remote_path=f"{REMOTE}/result.dat",
        local_path="{{ params.inbox }}/result.dat",
        deferrable=True,
    )

    @task
    def check_result(result_file: str, potential_file: str) -> dict[str, float]:
        """Compare with a value found in another way: Benson's series for the Madelung constant, Newton's method."""
        result = {name: float(value) for name, value in _table(result_file)}
        p = {name: float(value) for name, value in _table(potential_file)}

        odd = range(1, 12, 2)
        madelung = 12 * math.pi * sum(math.cosh(math.pi / 2 * math.hypot(m, n)) ** -2 for m in odd for n in odd)
        r = 3.0  # angstrom, between neighbours; 6 of them
        for _ in range(50):
            push = 6 * p["A"] / p["rho"] * math.exp(-r / p["rho"])
            pull = madelung * p["coulomb"] / r**2
            r -= (pull - push) / (push / p["rho"] - 2 * pull / r)
        energy = -madelung * p["coulomb"] / r + 6 * p["A"] * math.exp(-r / p["rho"])

        expected = {"lattice_constant": 2 * r, "energy": energy}
        for name, tolerance in (("lattice_constant", 2e-3), ("energy", 2e-4)):
            if not math.isclose(result[name], expected[name], abs_tol=tolerance):
                raise ValueError(f"{name}: the cluster found {result[name]}, expected {expected[name]:.6f}")
        return {**{k: result[k] for k in expected}, **{f"expected_{k}": round(v, 6) for k, v in expected.items()}}

    @task
    def clean_up(remote: str, inbox: str) -> None:
        """Remove the run's directory on the cluster, and the structure, so that the next one starts the next run."""
        with FirecRESTHook().get_conn() as hpc:
            hpc.system().rm(remote)
        Path(inbox, "structure.dat").unlink()

    checked = check_result(download_result.output, "{{ params.inbox }}/potential.dat")
    wait_for_structure >> [upload_structure, upload_potential] >> relax >> download_result
    checked >> clean_up("{{ ti.xcom_pull('relax')['workdir'] }}", "{{ params.inbox }}")


def _table(path: str) -> list[tuple[str, str]]:
    """The first two columns of each line that is no comment."""
    rows = (line.split() for line in Path(path).read_text().splitlines())
    return [(row[0], row[1]) for row in rows if len(row) > 1 and not row[0].startswith("#")]
