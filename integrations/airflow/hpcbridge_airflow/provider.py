"""What Airflow's provider manager reads: the entry point `apache_airflow_provider` names `get_provider_info`.

It is loaded by every Airflow process, so it imports nothing.
"""

from typing import Any

CONNECTION_TYPE = "firecrest"


def get_provider_info() -> dict[str, Any]:
    """Describe the provider in the form of Airflow's `provider_info.schema.json` (keys in kebab case)."""
    return {
        "package-name": "hpcbridge",
        "name": "FirecREST",
        "description": "Run batch jobs and move files at HPC centres that speak the FirecREST v2 REST interface.",
        "integrations": [
            {
                "integration-name": "FirecREST",
                "external-doc-url": "https://eth-cscs.github.io/firecrest-v2/",
                "tags": ["service"],
            }
        ],
        "hooks": [{"integration-name": "FirecREST", "python-modules": ["hpcbridge_airflow.hooks"]}],
        "operators": [
            {
                "integration-name": "FirecREST",
                "python-modules": ["hpcbridge_airflow.operators", "hpcbridge_airflow.transfers"],
            }
        ],
        "triggers": [{"integration-name": "FirecREST", "python-modules": ["hpcbridge_airflow.triggers"]}],
        "extra-links": ["hpcbridge_airflow.links.FirecRESTJobLink"],
        "connection-types": [
            {
                "connection-type": CONNECTION_TYPE,
                "hook-class-name": "hpcbridge_airflow.hooks.FirecRESTHook",
                "hook-name": "FirecREST",
                "conn-fields": _CONNECTION_FIELDS,
                "ui-field-behaviour": _CONNECTION_FORM,
            }
        ],
    }


def _text(label: str, description: str) -> dict[str, Any]:
    return {"label": label, "description": description, "schema": {"type": ["string", "null"]}}


_CONNECTION_FIELDS = {
    "token_url": _text("Token URL", "Where the identity provider gives access tokens (its OAuth2 token endpoint)."),
    "system": _text("System", "The cluster to use where a task names none."),
    "account": _text("Account", "The project that jobs and server-side transfers are charged to, where required."),
    "ca_file": _text("CA file", "A file of certificate authorities to trust instead of the usual ones (PEM)."),
    "proxy": _text("Proxy", "The HTTP proxy to go through, as a URL."),
    "job_url": _text("Job page", "A web page about one job, with {system} and {job_id} in its address, for the link."),
    "polling_rate": {
        "label": "Polling rate",
        "description": "The most requests per second that one process may spend on watching jobs.",
        "schema": {"type": ["number", "null"], "minimum": 0.1},
    },
}

_CONNECTION_FORM = {
    "hidden-fields": ["schema", "port"],
    "relabeling": {"host": "FirecREST URL", "login": "Client ID", "password": "Client secret"},
    "placeholders": {
        "host": "https://firecrest.example.org/v2",
        "login": "the client's id",
        "password": "the client's secret",
    },
}
