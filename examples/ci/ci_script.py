"""A pipeline's test in Python: it passes when the system is there and the job ends well.

    python ci_script.py --system daint --account ci_user submission_script.sh

Who we are comes from FIRECREST_URL, AUTH_TOKEN_URL, FIRECREST_CLIENT_ID and FIRECREST_CLIENT_SECRET. The shell's way to
the same, with files, results and a live log: `hpcbridge run --system daint --account ci_user submission_script.sh`.
"""

import argparse
import os
import sys
from pathlib import Path

from hpcbridge import HpcBridgeError, JobSpec, blocking

parser = argparse.ArgumentParser()
parser.add_argument("--system", required=True)
parser.add_argument("--account")
parser.add_argument("script", type=Path)
options = parser.parse_args()

# The same attempt of the same CI job is one job on the cluster, however often it has to ask.
key = os.environ.get("CI_JOB_ID") or "-".join(
    os.environ[name] for name in ("GITHUB_RUN_ID", "GITHUB_RUN_ATTEMPT", "GITHUB_JOB") if name in os.environ
)

try:
    with blocking.connect() as hpc:
        system = hpc.system(options.system)
        if not system.info().healthy:
            sys.exit(f"{options.system} is not available")
        spec = JobSpec(script=options.script.read_text(), name="ci", account=options.account)
        job = system.submit(spec, key=key or None)
        print(f"Submitted job {job.id}", flush=True)
        for chunk in job.logs(follow=True):
            sys.stdout.buffer.write(chunk)
            sys.stdout.flush()
        job.wait(check=True)
except HpcBridgeError as error:
    sys.exit(str(error))
