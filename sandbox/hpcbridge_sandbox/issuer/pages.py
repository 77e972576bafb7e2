"""The two pages that people see: login, and the device login's verification.

Plain HTML without scripts: labels belong to their fields, errors are announced, colours keep a contrast above 7:1, and
everything works with a keyboard, a screen reader, and at 400 % zoom.
"""

from __future__ import annotations

from collections.abc import Mapping

from jinja2 import DictLoader, Environment

CARRIED = (
    "response_type",
    "client_id",
    "redirect_uri",
    "scope",
    "state",
    "nonce",
    "code_challenge",
    "code_challenge_method",
)

_PAGES = {
    "base": """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<title>{{ title }} · hpcbridge sandbox</title>
<style>
 :root { color-scheme: light dark; }
 body { font: 1.1rem/1.5 system-ui, sans-serif; max-width: 32rem; margin: 2rem auto; padding: 0 1rem; }
 label { display: block; margin: 1rem 0 .25rem; font-weight: 600; }
 input, button { font: inherit; padding: .5rem 1rem; border: 2px solid ButtonText; border-radius: .25rem; }
 input { width: 100%; box-sizing: border-box; }
 button { margin: 1.5rem 1rem 0 0; }
 :focus-visible { outline: 3px solid Highlight; outline-offset: 2px; }
 .error { border-left: .4rem solid #b00020; padding: .5rem 1rem; font-weight: 600; }
</style>
</head>
<body>
<main>
<h1>{{ title }}</h1>
{% if error %}<p class="error" role="alert" id="error">{{ error }}</p>{% endif %}
{% block content %}{% endblock %}
</main>
</body>
</html>""",
    "credentials": """
<label for="username">User name</label>
<input id="username" name="username" autocomplete="username" autocapitalize="none" spellcheck="false" required
 {% if error %}aria-invalid="true" aria-describedby="error"{% endif %} value="{{ username }}">
<label for="password">Password (the user's client secret)</label>
<input id="password" name="password" type="password" autocomplete="current-password" required>
""",
    "login": """{% extends "base" %}{% block content %}
<p><strong>{{ client }}</strong> asks to work in your name.
This is a sandbox on one machine, not a computing centre.</p>
<form method="post" action="authorize">
{% for name, value in carried %}<input type="hidden" name="{{ name }}" value="{{ value }}">
{% endfor %}{% include "credentials" %}
<button type="submit" name="decision" value="allow">Log in</button>
<button type="submit" name="decision" value="deny" formnovalidate>Cancel</button>
</form>{% endblock %}""",
    "device": """{% extends "base" %}{% block content %}
<p>Type the code that your terminal shows, and log in.</p>
<form method="post">
<label for="user_code">Code</label>
<input id="user_code" name="user_code" required autocomplete="one-time-code" autocapitalize="characters"
 spellcheck="false" placeholder="ABCD-EFGH" value="{{ code }}">
{% include "credentials" %}
<button type="submit" name="decision" value="allow">Log the device in</button>
<button type="submit" name="decision" value="deny">Refuse</button>
</form>{% endblock %}""",
    "message": """{% extends "base" %}{% block content %}<p role="status">{{ text }}</p>{% endblock %}""",
}
_environment = Environment(loader=DictLoader(_PAGES), autoescape=True)


def login(parameters: Mapping[str, str], error: str = "") -> str:
    """Return the login page; the request's own parameters travel in hidden fields."""
    return _environment.get_template("login").render(
        title="Log in",
        client=parameters.get("client_id", "An unnamed client"),
        carried=[(name, parameters[name]) for name in CARRIED if name in parameters],
        username=parameters.get("username", ""),
        error=error,
    )


def device(code: str, error: str = "") -> str:
    """Return the verification page, with the code filled in where it is known."""
    return _environment.get_template("device").render(title="Log a device in", code=code, username="", error=error)


def message(title: str, text: str) -> str:
    """Return a page that only says something."""
    return _environment.get_template("message").render(title=title, text=text)
