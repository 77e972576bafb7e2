"""How command lines are read, and what is said where one is wrong."""

from __future__ import annotations

from typing import Any

from typer.core import TyperCommand

COMMAND = "hpcbridge.command"
"""Key of the words after `--` in the context's `meta`; absent where there was no `--`."""


class Command(TyperCommand):
    """A command whose usage line reads as in a manual, and names the argument that is missing."""

    def collect_usage_pieces(self, ctx: Any) -> list[str]:
        """`[OPTIONS] LOCAL... REMOTE`: what is not in brackets is required."""
        pieces = [piece.replace("{", "").replace("}", "") for piece in super().collect_usage_pieces(ctx)]
        return [piece.removesuffix("...") if "... " in piece else piece for piece in pieces]

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Of `SOURCE... TARGET` with one word only, it is the target that is missing."""
        given = any(not word.startswith("-") for word in args)
        try:
            return super().parse_args(ctx, args)
        except Exception as error:
            missing = getattr(error, "param", None)
            last = [each for each in self.params if each.param_type_name == "argument"][-1:]
            if given and type(error).__name__ == "MissingParameter" and missing is not None and missing.nargs == -1:
                error.param = last[0]  # type: ignore[attr-defined]
            raise


class CommandOrScript(Command):
    """A command that takes another one after `--`: `run -- make check` is not `run make`."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Put what follows the first `--` aside; click would drop the word, and nobody could tell the two apart."""
        if "--" in args:
            index = args.index("--")
            ctx.meta[COMMAND] = args[index + 1 :]
            args = args[:index]
        return super().parse_args(ctx, args)

    def collect_usage_pieces(self, ctx: Any) -> list[str]:  # noqa: ARG002
        """`[OPTIONS] SCRIPT | -- COMMAND [ARG]...`."""
        return ["[OPTIONS]", "SCRIPT | -- COMMAND [ARG]..."]
