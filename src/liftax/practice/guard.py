"""Who may speak to the page: this machine's browser, and only with the token of this run."""

from __future__ import annotations

import secrets
from collections.abc import Awaitable, Callable, MutableMapping
from http.cookies import CookieError, SimpleCookie
from typing import Any
from urllib.parse import parse_qs

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Any]]
Send = Callable[[Any], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]


class Guard:
    """A layer of the server that refuses whatever is not the learner's own page.

    The page runs what it is sent, so anyone who reaches it can run code. It listens on loopback
    alone; other users of the machine lack the token; a page of another site that the learner has
    open sends its origin; a name of that site that was made to point here is no name of ours.
    """

    def __init__(self, app: App, token: str, port: int) -> None:
        self.app, self.token = app, token
        self.hosts = {f"127.0.0.1:{port}", f"localhost:{port}"}
        # Cookies do not tell ports apart.
        self.cookie = f"liftax_practice_{port}"

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Hands the request on, or refuses it."""
        if scope["type"] not in ("http", "websocket"):
            await self.app(scope, receive, send)
            return
        headers = {name.lower(): value.decode("latin-1") for name, value in scope["headers"]}
        by_address = self._same(parse_qs(scope["query_string"].decode()).get("token", [""])[0])
        if not self.allowed(headers) or not (by_address or self._same(self.kept(headers))):
            await refuse(scope, receive, send)
            return

        async def answered(message: Any) -> None:
            # The token goes with the address once, and with a cookie from then on.
            if by_address and message["type"] == "http.response.start":
                cookie = f"{self.cookie}={self.token}; Path=/; HttpOnly; SameSite=Strict"
                message["headers"] = [*message["headers"], (b"set-cookie", cookie.encode())]
            await send(message)

        await self.app(scope, receive, answered)

    def allowed(self, headers: dict[bytes, str]) -> bool:
        """Whether the request was meant for this server, by a page of this server."""
        origin = headers.get(b"origin")
        return headers.get(b"host") in self.hosts and (
            origin is None or origin.removeprefix("http://") in self.hosts
        )

    def kept(self, headers: dict[bytes, str]) -> str:
        """The token that the browser has kept."""
        try:
            found = SimpleCookie(headers.get(b"cookie", "")).get(self.cookie)
        except CookieError:
            return ""
        return found.value if found else ""

    def _same(self, token: str) -> bool:
        # In constant time: how long a refusal takes tells nothing of the token.
        return secrets.compare_digest(token.encode(), self.token.encode())


async def refuse(scope: Scope, receive: Receive, send: Send) -> None:
    """Answers that this is not for the one who asks."""
    if scope["type"] == "websocket":
        await receive()
        await send({"type": "websocket.close", "code": 1008})
        return
    text = b"Open the address that `liftax practice --serve` has printed: it has the token in it.\n"
    headers = [(b"content-type", b"text/plain; charset=utf-8")]
    await send({"type": "http.response.start", "status": 403, "headers": headers})
    await send({"type": "http.response.body", "body": text})
