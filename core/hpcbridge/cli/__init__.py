"""The `hpcbridge` command."""


def main() -> None:
    """Run the command line; ends with one of the codes of `hpcbridge.cli.exits`."""
    from hpcbridge.cli import output
    from hpcbridge.cli.app import app

    output.prepare_streams()
    app()
