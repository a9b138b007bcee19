"""Adapters of HTTP clients against a backend and a trap on loopback: no header of the set reaches another origin."""

from collections.abc import Iterator
from typing import Any

import httpx
import pytest
import requests
from credentialbroker import httpx_auth, requests_auth
from credentialbroker.aio import AsyncClient
from credentialbroker.client import Client
from credentialbroker.errors import OriginError

from tests.unit.client.conftest import Server, SmallBroker

OF_THE_SET = {"authorization", "chatgpt-account-id"}


class Httpx:
    """Requests with httpx."""

    def __init__(self, client: Client, origin: str) -> None:
        self.auth = httpx_auth.BrokerAuth(client, origin, "inference", "t")

    def send(self, method: str, url: str, *, follow: bool = False, **options: Any) -> int:
        if "data" in options:
            options["content"] = options.pop("data")
        with httpx.Client(auth=self.auth, follow_redirects=follow, trust_env=False) as http:
            return http.request(method, url, **options).status_code


class Requests:
    """Requests with requests."""

    def __init__(self, client: Client, origin: str) -> None:
        self.auth = requests_auth.BrokerAuth(client, origin, "inference", "t")

    def send(self, method: str, url: str, *, follow: bool = False, **options: Any) -> int:
        with requests.Session() as session:
            session.trust_env = False
            return session.request(method, url, auth=self.auth, allow_redirects=follow, **options).status_code


@pytest.fixture(params=[Httpx, Requests])
def http(
    request: pytest.FixtureRequest, broker: SmallBroker, servers: tuple[Server, Server]
) -> Iterator[Httpx | Requests]:
    """Each adapter, made for the backend."""
    with Client(broker.address) as client:
        yield request.param(client, servers[0].url)


Both = tuple[Server, Server]


def test_all_headers_take_the_place_of_the_users(http: Httpx | Requests, servers: Both, broker: SmallBroker) -> None:
    """One value each, whatever the case of the user's; the others stay. The origin is given to the broker."""
    mine = {"Authorization": "mine", "ChatGPT-Account-ID": "mine", "X-Kept": "yes"}
    assert http.send("GET", servers[0].url + "/x", headers=mine) == 200
    ((_, headers, _),) = servers[0].seen
    assert headers["authorization"] == ["AgentAssertion s3cret-r1"]
    assert (headers["chatgpt-account-id"], headers["x-kept"]) == (["account"], ["yes"])
    assert [call.target_url for call in broker.calls] == [servers[0].url]


@pytest.mark.parametrize("follow", [True, False])
def test_no_redirect_carries_them(http: Httpx | Requests, servers: Both, follow: bool) -> None:
    """Neither to another origin nor to the same one; not even after a repetition."""
    backend, trap = servers
    for url in (f"{trap.url}/caught", f"{backend.url}/again"):
        http.send("GET", f"{backend.url}/to/{url}", follow=follow)
    redirected = [headers for path, headers, _ in backend.seen + trap.seen if path in {"/caught", "/again"}]
    assert len(redirected) == (2 if follow else 0)
    assert [OF_THE_SET & set(headers) for headers in redirected] == [set()] * len(redirected)


def test_a_401_behind_a_redirect_is_not_reported(http: Httpx | Requests, servers: Both, broker: SmallBroker) -> None:
    """It is about a request without these headers."""
    backend, trap = servers
    assert http.send("GET", f"{backend.url}/to/{trap.url}/reject", follow=True) == 401
    assert broker.reports == []


def test_another_origin_is_sent_nothing(http: Httpx | Requests, servers: Both, broker: SmallBroker) -> None:
    """It fails before, and the broker is not asked."""
    with pytest.raises(OriginError):
        http.send("GET", servers[1].url)
    assert (servers[1].seen, broker.calls) == ([], [])


def test_after_a_401_it_is_sent_once_more_once(http: Httpx | Requests, servers: Both, broker: SmallBroker) -> None:
    """With the whole body and better headers; a second 401 is the answer."""
    assert http.send("POST", servers[0].url + "/heal", data=b"body") == 200
    assert http.send("POST", servers[0].url + "/reject", data=b"body") == 401
    assert servers[0].revisions() == ["r1", "better1", "better1", "better2"]
    assert {body for _, _, body in servers[0].seen} == {b"body"}
    assert len(broker.reports) == 2


def test_a_body_that_is_gone_is_not_sent_again(http: Httpx | Requests, servers: Both, broker: SmallBroker) -> None:
    """The 401 is the answer, after the report."""
    assert http.send("POST", servers[0].url + "/heal", data=iter([b"once"])) == 401
    assert [body for _, _, body in servers[0].seen] == [b"once"]
    assert len(broker.reports) == 1


def test_the_401_is_the_answer_where_nothing_is_better(
    http: Httpx | Requests, servers: Both, broker: SmallBroker
) -> None:
    """A report that the broker refuses never becomes an error of the request."""
    hopeless = broker.answer(1)
    hopeless.revision = "hopeless"
    broker.answer = lambda _: hopeless
    assert http.send("GET", servers[0].url + "/reject") == 401
    assert (len(servers[0].seen), len(broker.reports)) == (1, 1)


def test_the_401_is_the_answer_where_the_second_attempt_is_cut_off(broker: SmallBroker, servers: Both) -> None:
    """An answer never becomes an error; httpx gives an auth no say in that."""
    with Client(broker.address) as client:
        assert Requests(client, servers[0].url).send("GET", servers[0].url + "/cut") == 401
    assert servers[0].revisions() == ["r1", "better1"]


async def test_httpx_async_heals_and_leaks_nothing(servers: Both, broker: SmallBroker) -> None:
    """The async flow does the same."""
    backend, trap = servers
    async with AsyncClient(broker.address) as client:
        auth = httpx_auth.AsyncBrokerAuth(client, backend.url, "inference", "t")
        async with httpx.AsyncClient(auth=auth, follow_redirects=True, trust_env=False) as http:
            assert (await http.get(backend.url + "/heal")).status_code == 200
            await http.get(f"{backend.url}/to/{trap.url}/caught")
            with pytest.raises(OriginError):
                await http.get(trap.url)
    ((_, headers, _),) = trap.seen
    assert set(headers) & OF_THE_SET == set()
    assert len(broker.reports) == 1


def test_a_transport_of_the_users_own_sees_the_headers(broker: SmallBroker) -> None:
    """By name and as a list, and what a hook adds stays."""
    seen: list[httpx.Headers] = []

    def answer(request: httpx.Request) -> httpx.Response:
        seen.append(request.headers)
        return httpx.Response(200)

    def hook(request: httpx.Request) -> None:
        request.headers["x-hook"] = "yes"

    with Client(broker.address) as client:
        auth = httpx_auth.BrokerAuth(client, "https://backend.example", "inference", "t")
        hooks: dict[str, list[Any]] = {"request": [hook]}
        with httpx.Client(auth=auth, transport=httpx.MockTransport(answer), event_hooks=hooks) as http:
            http.get("https://backend.example/")
    (headers,) = seen
    assert headers["Authorization"] == "AgentAssertion s3cret-r1"
    assert OF_THE_SET | {"x-hook"} <= set(headers.keys()) == {name for name, _ in headers.items()}
    assert "s3cret" not in repr(headers)
