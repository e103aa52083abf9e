"""Flower's SuperLink with a door: from other machines nothing but what SuperNodes need.

One port of a SuperLink serves SuperNodes, the apps that it runs, and whoever starts apps; the last
need no key. An app is code that runs at the hub and at every site, so that others may not reach
more than the SuperNodes' part, which is authenticated.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any, TypeAlias

Scope: TypeAlias = MutableMapping[str, Any]
Receive: TypeAlias = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send: TypeAlias = Callable[[MutableMapping[str, Any]], Awaitable[None]]
App: TypeAlias = Callable[[Scope, Receive, Send], Awaitable[None]]

LOCAL = ("127.0.0.1", "::1", "::ffff:127.0.0.1")
OPEN = ("/v1/fleet/", "/health")


def guarded(app: App) -> App:
    """The same ASGI application; others than this machine get 403 outside of ``OPEN``."""

    async def guard(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan" or _may(scope):
            await app(scope, receive, send)
            return
        if scope["type"] == "http":
            text = [(b"content-type", b"text/plain")]
            await send({"type": "http.response.start", "status": 403, "headers": text})
            await send({"type": "http.response.body", "body": b"only from the hub's own machine\n"})
            return
        await send({"type": "websocket.close", "code": 1008})

    return guard


def _may(scope: Scope) -> bool:
    client = scope.get("client")
    if client and client[0] in LOCAL:
        return True
    path: str = scope.get("path", "")
    opened = path == OPEN[1] or (path.startswith(OPEN[0]) and ".." not in path)
    return scope["type"] == "http" and opened


def main() -> None:
    """Takes the arguments of ``flower-superlink``."""
    import uvicorn
    from flwr.superlink.cli.flower_superlink import flower_superlink

    serve = uvicorn.run

    def run(*, app: App, **options: Any) -> None:
        # What a proxy says of a client must not count: it decides who is this machine.
        serve(app=guarded(app), **{**options, "proxy_headers": False})

    uvicorn.run = run  # type: ignore[assignment]
    flower_superlink()


if __name__ == "__main__":
    main()
