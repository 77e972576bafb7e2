"""``python -m hpcbridge_sandbox``."""

from hpcbridge_sandbox.cli import app

if __name__ == "__main__":
    app()
