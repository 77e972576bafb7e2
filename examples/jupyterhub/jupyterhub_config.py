"""A hub whose users log in at the site's OpenID issuer and whose servers run as batch jobs behind FirecREST.

Everything that differs from site to site comes from the environment, in the names that hpcbridge uses elsewhere:

    FIRECREST_URL, AUTH_TOKEN_URL, FIRECREST_SYSTEM     the deployment
    OIDC_CLIENT_ID, OIDC_CLIENT_SECRET                  the hub as a client of the issuer
    OIDC_AUTHORIZE_URL, OIDC_USERINFO_URL               the issuer's two other endpoints
    HUB_PUBLIC_URL, HUB_API_URL                         where browsers reach the hub, and where the nodes reach its API
    JUPYTERHUB_CRYPT_KEY                                `openssl rand -hex 32`; encrypts the users' tokens
    CONFIGPROXY_AUTH_TOKEN                              `openssl rand -hex 32`; shared with the proxy
"""

import os
from urllib.parse import urlsplit

import hpcbridge_jupyterhub

c = get_config()  # noqa: F821 (the hub defines it)

public, api = os.environ["HUB_PUBLIC_URL"].rstrip("/"), os.environ["HUB_API_URL"]

# -- the hub -----------------------------------------------------------------------------------------------------------
c.JupyterHub.bind_url = public
c.JupyterHub.hub_bind_url = api
c.JupyterHub.hub_connect_url = api
c.JupyterHub.allow_named_servers = True
c.JupyterHub.template_paths = [hpcbridge_jupyterhub.TEMPLATES]
# The proxy runs by itself, and servers outlive the hub: a restart of the hub goes unnoticed.
c.ConfigurableHTTPProxy.should_start = False
c.ConfigurableHTTPProxy.api_url = os.environ.get("PROXY_API_URL", "http://127.0.0.1:8001")
c.JupyterHub.cleanup_servers = False

# -- who comes in ------------------------------------------------------------------------------------------------------
c.JupyterHub.authenticator_class = "generic-oauth"
c.GenericOAuthenticator.client_id = os.environ["OIDC_CLIENT_ID"]
c.GenericOAuthenticator.client_secret = os.environ["OIDC_CLIENT_SECRET"]
c.GenericOAuthenticator.authorize_url = os.environ["OIDC_AUTHORIZE_URL"]
c.GenericOAuthenticator.token_url = os.environ["AUTH_TOKEN_URL"]
c.GenericOAuthenticator.userdata_url = os.environ["OIDC_USERINFO_URL"]
c.GenericOAuthenticator.oauth_callback_url = f"{public}/hub/oauth_callback"
c.GenericOAuthenticator.login_service = urlsplit(os.environ["OIDC_AUTHORIZE_URL"]).hostname
c.GenericOAuthenticator.scope = ["openid", "offline_access"]
c.GenericOAuthenticator.username_claim = "preferred_username"
c.GenericOAuthenticator.allow_all = True
c.GenericOAuthenticator.enable_auth_state = True  # the users' own tokens submit their jobs

# -- where servers run -------------------------------------------------------------------------------------------------
c.JupyterHub.spawner_class = "firecrest"
c.FirecRESTSpawner.systems = {
    "cluster": {
        "title": os.environ["FIRECREST_SYSTEM"],
        "url": os.environ["FIRECREST_URL"],
        "token_url": os.environ["AUTH_TOKEN_URL"],
        "system": os.environ["FIRECREST_SYSTEM"],
        "prologue": "export PATH=/opt/software/bin:$PATH",
        "time": "01:00:00",
        "max_time": "08:00:00",
        # The hub's own client watches everybody's jobs with one listing.
        "service": {"client_id": os.environ["OIDC_CLIENT_ID"], "client_secret_env": "OIDC_CLIENT_SECRET"},
    }
}
c.Spawner.default_url = "/lab"
