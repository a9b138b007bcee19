"""Headers for requests: `requests.get(url, auth=BrokerAuth(...))`. Needs the extra `credentialbroker[requests]`."""

from typing import Any, Final

import requests
from requests.auth import AuthBase

from credentialbroker.authorization import Authorization
from credentialbroker.client import Client
from credentialbroker.errors import BrokerError, ClosedError
from credentialbroker.origins import check_origin, origin_of_adapter

_MOST_READ: Final = 65_536


class BrokerAuth(AuthBase):
    """
    Attaches headers to requests, and after a 401 reports and sends once more, once.

    No redirect carries them, whether or not it is followed: they are taken out of the request as soon as it was
    answered. A request whose body can be sent only once gets the 401, after the report.
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
        self._client: Final = client
        self._origin: Final = origin_of_adapter(origin)
        self._scope: Final = scope
        self._thread: Final = thread
        self._identity: Final = identity

    def __call__(self, request: requests.PreparedRequest) -> requests.PreparedRequest:
        """Attach the headers to a request; for requests."""
        check_origin(request.url or "", self._origin)
        authorization = self._client.authorization(
            self._scope, self._thread, identity=self._identity, target_url=str(self._origin)
        )
        request.headers.update(authorization.headers)

        def answered(response: requests.Response, **options: Any) -> requests.Response:
            # requests copies the request for a redirect after this, hooks and all; and it would drop `Authorization`
            # only, and that only for another host.
            if response.request is not request:
                return response
            _detach(request, authorization)
            return self._heal(response, authorization, options)

        request.register_hook("response", answered)  # type: ignore[no-untyped-call]
        return request

    def _heal(
        self, response: requests.Response, authorization: Authorization, options: dict[str, Any]
    ) -> requests.Response:
        if response.status_code != requests.codes.unauthorized:
            return response
        try:
            better = self._client.report_rejected(authorization)
        except (BrokerError, ClosedError):
            return response  # nothing better can be had: the 401 is the answer
        body: object = response.request.body
        if not isinstance(body, str | bytes | None):
            return response
        # A short answer is read to its end, so that its connection can be used again.
        length = response.headers.get("content-length", "")
        try:
            if length.isdecimal() and int(length) <= _MOST_READ:
                _ = response.content
        except requests.RequestException:
            return response
        response.close()
        repeated = response.request.copy()
        repeated.headers.update(better.headers)
        connection: Any = response.connection  # what requests' own digest auth uses too
        try:
            second: requests.Response = connection.send(repeated, **options)
        except requests.RequestException:
            return response
        finally:
            _detach(repeated, better)
        second.history.append(response)
        second.request = repeated
        return second


def _detach(request: requests.PreparedRequest, authorization: Authorization) -> None:
    for name, _ in authorization.headers:
        request.headers.pop(name, None)
