"""A site configuration: the partition of a cluster that is reached through FirecREST only.

Deployment, client and system come from the environment (FIRECREST_URL, AUTH_TOKEN_URL, FIRECREST_CLIENT_ID,
FIRECREST_CLIENT_SECRET, FIRECREST_SYSTEM); a site of hpcbridge's configuration file is named by `firecrest_site`.
"""

import os

import hpcbridge_reframe  # noqa: F401  (registers the scheduler "firecrest")

site_configuration = {
    "systems": [
        {
            "name": "cluster",
            "descr": "behind FirecREST",
            "hostnames": [".*"],
            "modules_system": "nomod",
            "partitions": [
                {
                    "name": "normal",
                    "scheduler": "firecrest",
                    "sched_options": {
                        # The same mirror for every run of a CI job, whatever its container is called.
                        "firecrest_stage_name": os.environ.get("CI_PROJECT_PATH_SLUG"),
                        "firecrest_outage_budget": 1800,
                    },
                    "access": [f"--account={os.environ['ACCOUNT']}"] if "ACCOUNT" in os.environ else [],
                    "launcher": "local",
                    "environs": ["gnu"],
                    "max_jobs": 100,
                }
            ],
        }
    ],
    "environments": [{"name": "gnu", "cc": "gcc", "cxx": "g++", "ftn": ""}],
}
