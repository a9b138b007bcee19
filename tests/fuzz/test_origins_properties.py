"""What the origin parser accepts, httpx reads the same way."""

import string

import httpx
from hypothesis import example, given, settings
from hypothesis import strategies as st

from broker.origins import DEFAULT_PORTS, OriginError, parse_origin

PIECES = st.sampled_from(
    [
        "https://", "http://", "HTTPS://", "https:", "//", "/", "\\", "@", ":", "#", "?", "%", "%2e", "%40", "%2f", "%00",
        ".", "..", "-", "_", "~", "[", "]", "::1", "[::1]", "[::ffff:127.0.0.1]", "127.0.0.1", "127.1", "0x7f", "017",
        "2130706433", "localhost", "chatgpt.com", "evil.example", "xn--", "xn--a", "xn--bcher-kva", "443", ":443", ":0",
        "\t", "\n", "\r", "\x00", " ", "\u3002", "\uff0f", "\u0430", "é", "a", "1", ";", ",", "$", "&", "=", "+", "|",
    ]
)  # fmt: skip
URLS = st.one_of(
    st.lists(PIECES, max_size=8).map("".join),
    st.lists(PIECES, max_size=6).map(lambda pieces: "https://" + "".join(pieces)),
    st.text(max_size=60).map(lambda text: "https://" + text),
    st.text(string.printable, max_size=60),
    st.from_regex(r"https://[a-zA-Z0-9.-]{1,20}(:[0-9]{1,6})?(/[ -~]{0,20})?", fullmatch=True),
    st.from_regex(r"https://\[[0-9a-fA-F:.%]{0,20}\](:[0-9]{0,6})?", fullmatch=True),
)


@settings(max_examples=1500, deadline=None)
@given(URLS)
@example("https://chatgpt.com\\@evil.example")
@example("https://evil.example#@chatgpt.com")
@example("https://xn--a.example")
@example("https://[::A]")
def test_an_accepted_url_leads_to_the_host_that_was_compared(url: str) -> None:
    """For every accepted URL, scheme, host and port that httpx connects to are those of the origin."""
    try:
        origin = parse_origin(url, allow_loopback_http=True)
    except OriginError:
        return
    try:
        read = httpx.Request("GET", url).url
    except UnicodeError:  # an xn-- label that decodes to nothing: httpx refuses to call it at all
        assert "xn--" in origin.host
        return
    # Letters of an IPv6 address in either case are one address; httpx leaves them as they were written.
    host = read.raw_host.decode().lower()
    assert (read.scheme, host, read.port or DEFAULT_PORTS[read.scheme]) == (
        origin.scheme,
        origin.host,
        origin.port,
    )
    assert not read.userinfo
    assert not read.fragment


@settings(max_examples=500, deadline=None)
@given(URLS)
def test_an_origin_is_its_own_origin(url: str) -> None:
    """Writing an accepted origin and parsing it again changes nothing."""
    try:
        origin = parse_origin(url, allow_loopback_http=True)
    except OriginError:
        return
    assert parse_origin(str(origin), allow_loopback_http=True) == origin
