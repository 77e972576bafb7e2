"""The streamer with a fault in it: ``python faulty.py FAULTS server …`` in the place of ``streamer server …``.

It runs inside the cluster, from a copy, beside the real package ``streamer`` and without the sandbox's own. FAULTS is a
JSON object of `hpcbridge_sandbox.streamer.rules`' names.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import AsyncIterator
from typing import Any

Message = bytes | str


class Faulty:
    """A WebSocket connection that spoils what passes through it; everything else is the real one's."""

    def __init__(self, websocket: Any, faults: dict[str, float]) -> None:
        self._websocket, self._faults = websocket, faults
        self._passed = 0
        self._begun = False

    def __getattr__(self, name: str) -> Any:
        return getattr(self._websocket, name)

    async def send(self, message: Message, text: bool | None = None) -> None:
        """Send, spoilt."""
        await self._websocket.send(self._spoilt(message, sending=True), text=text)

    async def __aiter__(self) -> AsyncIterator[Message]:
        async for message in self._websocket:
            yield self._spoilt(message, sending=False)

    def _spoilt(self, message: Message, *, sending: bool) -> Message:
        if not self._begun:
            self._begun = True
            return message
        if "wrong_hash" in self._faults and (end := _end(message)):
            end["sha256_hash"] = "0" * 64
            words = json.dumps(end, separators=None if sending else (",", ":"))
            return words if isinstance(message, str) else words.encode()
        self._passed += len(message)
        if "drop_after" in self._faults and self._passed > self._faults["drop_after"]:
            self._websocket.transport.abort()
        if "corruption" in self._faults and sending and isinstance(message, bytes) and message:
            del self._faults["corruption"]
            return bytes([message[0] ^ 0xFF]) + message[1:]
        return message


def _end(message: Message) -> dict[str, str] | None:
    """The frame that ends a transfer, taken apart; None for any other."""
    words: Any = message if isinstance(message, str) else message[:200]
    if len(message) > 200 or '"eof"' not in str(words):
        return None
    found: dict[str, str] = json.loads(words)
    return found


def _flip_first_byte(path: str) -> None:
    with open(path, "r+b") as file:  # noqa: PTH123
        first = file.read(1)
        file.seek(0)
        file.write(bytes([first[0] ^ 0xFF]) if first else b"x")


def main() -> None:
    """Run the real command line with the faults put in."""
    from streamer import __main__ as command
    from streamer import streamer_server

    faults = json.loads(sys.argv.pop(1))
    receive, send = streamer_server.stream_receive, streamer_server.stream_send

    async def faulty_receive(websocket: Any, target: str, *rest: Any, **options: Any) -> bool:
        done: bool = await receive(Faulty(websocket, faults), target, *rest, **options)
        if done and "corruption" in faults:
            _flip_first_byte(target)
        return done

    async def faulty_send(websocket: Any, *rest: Any, **options: Any) -> bool:
        done: bool = await send(Faulty(websocket, faults), *rest, **options)
        return done

    streamer_server.stream_receive, streamer_server.stream_send = faulty_receive, faulty_send
    if "deaf" in faults:
        time.sleep(86400)
    if "no_start" in faults:
        print("ERROR: Could not find a version that satisfies the requirement", file=sys.stderr)  # noqa: T201
        sys.exit(1)
    command.cli()


if __name__ == "__main__":
    main()
