"""Headers for httpx: `httpx.Client(auth=BrokerAuth(...))`. Needs the extra `credentialbroker[httpx]`."""

from collections.abc import AsyncGenerator, Generator, ItemsView, Iterator, KeysView, ValuesView
from typing import Any, Final

import httpx

from credentialbroker.aio import AsyncClient
from credentialbroker.authorization import Authorization
from credentialbroker.client import Client
from credentialbroker.errors import BrokerError, ClosedError
from credentialbroker.origins import check_origin, origin_of_adapter


class _HeadersOnce(httpx.Headers):
    """
    Headers of a request with those of an authorization laid over them, which no copy has.

    A client that follows a redirect sends a copy of the request's headers, and httpx itself takes only `Authorization`
    out of it. A transport reads the headers of the request itself, as whoever looks at one by its name does.
    """

    def __init__(self, headers: httpx.Headers, authorization: Authorization) -> None:
        replaced = {name.encode("ascii") for name, _ in authorization.headers}
        super().__init__([(name, value) for name, value in headers.raw if name.lower() not in replaced])
        self._laid_over: Final = authorization.headers

    def _whole(self) -> httpx.Headers:
        return httpx.Headers([*super().multi_items(), *self._laid_over], encoding=self.encoding)

    @property
    def raw(self) -> list[tuple[bytes, bytes]]:
        return [*super().raw, *((name.encode("ascii"), value.encode("ascii")) for name, value in self._laid_over)]

    def keys(self) -> KeysView[str]:
        return self._whole().keys()

    def values(self) -> ValuesView[str]:
        return self._whole().values()

    def items(self) -> ItemsView[str, str]:
        return self._whole().items()

    def multi_items(self) -> list[tuple[str, str]]:
        return self._whole().multi_items()

    def get(self, key: str, default: Any = None) -> Any:
        return self._whole().get(key, default)

    def get_list(self, key: str, split_commas: bool = False) -> list[str]:
        return self._whole().get_list(key, split_commas)

    def __getitem__(self, key: str) -> str:
        return self._whole()[key]

    def __contains__(self, key: object) -> bool:
        return key in self._whole()

    def __iter__(self) -> Iterator[str]:
        return iter(self._whole())

    def __len__(self) -> int:
        return len(self._whole())

    def __repr__(self) -> str:
        return repr(httpx.Headers(self))


class _Flow:
    """What both kinds of auth know."""

    def __init__(self, origin: str, scope: str, thread: str, identity: str | None) -> None:
        self._origin: Final = origin_of_adapter(origin)
        self._asked: Final = {"scope": scope, "thread": thread, "identity": identity}

    def _arguments(self) -> dict[str, Any]:
        return {**self._asked, "target_url": str(self._origin)}

    def _check(self, request: httpx.Request) -> None:
        check_origin(str(request.url), self._origin)


def _attach(request: httpx.Request, plain: httpx.Headers, authorization: Authorization) -> None:
    request.headers = _HeadersOnce(plain, authorization)


def _rejected(request: httpx.Request, response: httpx.Response) -> bool:
    # After a redirect it is another server's answer to a request without these headers.
    return response.status_code == httpx.codes.UNAUTHORIZED and response.request is request


def _can_repeat(request: httpx.Request) -> bool:
    return isinstance(request.stream, httpx.ByteStream)


class BrokerAuth(_Flow, httpx.Auth):
    """
    Attaches headers to the requests of an `httpx.Client`, and after a 401 reports and sends once more, once.

    No redirect carries them, whether or not the client follows it. A request whose body can be sent only once gets the
    401, after the report.
    """

    def __init__(
        self, client: Client, origin: str, scope: str, thread: str = "", *, identity: str | None = None
    ) -> None:
        """
        Make it for one origin.

        Args:
            client: gives the headers.
            origin: `https://host[:port]` of the backend. A request to any other raises OriginError; nothing is sent.
            scope: as of `Client.authorization`.
            thread: as of `Client.authorization`.
            identity: as of `Client.authorization`.

        Raises:
            ValueError: this is no origin.
        """
        super().__init__(origin, scope, thread, identity)
        self._client: Final = client

    def sync_auth_flow(self, request: httpx.Request) -> Generator[httpx.Request, httpx.Response, None]:
        """Send a request; for httpx."""
        self._check(request)
        plain = request.headers
        authorization = self._client.authorization(**self._arguments())
        _attach(request, plain, authorization)
        response = yield request
        if not _rejected(request, response):
            return
        try:
            better = self._client.report_rejected(authorization)
        except (BrokerError, ClosedError):
            return  # nothing better can be had: the 401 is the answer
        if _can_repeat(request):
            _attach(request, plain, better)
            yield request


class AsyncBrokerAuth(_Flow, httpx.Auth):
    """Does for an `httpx.AsyncClient` what `BrokerAuth` does for an `httpx.Client`."""

    def __init__(
        self, client: AsyncClient, origin: str, scope: str, thread: str = "", *, identity: str | None = None
    ) -> None:
        """Make it for one origin. Args, errors: as of `BrokerAuth`."""
        super().__init__(origin, scope, thread, identity)
        self._client: Final = client

    async def async_auth_flow(self, request: httpx.Request) -> AsyncGenerator[httpx.Request, httpx.Response]:
        """Send a request; for httpx."""
        self._check(request)
        plain = request.headers
        authorization = await self._client.authorization(**self._arguments())
        _attach(request, plain, authorization)
        response = yield request
        if not _rejected(request, response):
            return
        try:
            better = await self._client.report_rejected(authorization)
        except (BrokerError, ClosedError):
            return  # nothing better can be had: the 401 is the answer
        if _can_repeat(request):
            _attach(request, plain, better)
            yield request
