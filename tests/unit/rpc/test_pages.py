"""Page tokens: only those that a list gave out, for that list."""

from pathlib import Path

import pytest

from broker.errors import PageTokenInvalidError
from broker.keyring import Keyring
from broker.rpc.pages import PageTokens


@pytest.fixture
def keyring(tmp_path: Path) -> Keyring:
    """Make a key ring."""
    return Keyring.load_or_create(tmp_path / "keyring.json", may_create=True)


@pytest.mark.parametrize("place", ["agent", "a" * 63, "größer/会話"])
def test_a_token_leads_to_where_its_list_goes_on(keyring: Keyring, place: str) -> None:
    """What one process makes another reads that has the same key ring."""
    assert PageTokens(keyring).read("identities", PageTokens(keyring).make("identities", place)) == place


def test_no_token_is_the_first_page_and_the_last_page_has_none(keyring: Keyring) -> None:
    """Both ends of a list are empty."""
    tokens = PageTokens(keyring)
    assert tokens.read("identities", "") == ""
    assert tokens.make("identities", None) == ""


def test_a_token_of_another_list_or_filter_is_refused(keyring: Keyring) -> None:
    """The name of the list with its filter is bound into the token."""
    tokens = PageTokens(keyring)
    with pytest.raises(PageTokenInvalidError):
        tokens.read("identities/default/ACTIVE", tokens.make("identities/default/DISABLED", "agent"))


def test_a_token_of_another_key_ring_is_refused(keyring: Keyring, tmp_path: Path) -> None:
    """A broker with other keys gave it out, or nobody did."""
    other = Keyring.load_or_create(tmp_path / "other.json", may_create=True)
    with pytest.raises(PageTokenInvalidError):
        PageTokens(keyring).read("identities", PageTokens(other).make("identities", "agent"))


def test_a_token_with_any_character_changed_is_refused(keyring: Keyring) -> None:
    """Nobody can move a list to where they like."""
    tokens = PageTokens(keyring)
    token = tokens.make("identities", "agent-17")
    for at, character in enumerate(token[:-1]):  # the last one may hold bits that mean nothing
        changed = token[:at] + ("A" if character != "A" else "B") + token[at + 1 :]
        with pytest.raises(PageTokenInvalidError):
            tokens.read("identities", changed)


@pytest.mark.parametrize("token", ["x", "====", "!!!!", "AAAA", "A" * 16, "a\n", "n-7_" * 13, "=" * 1000])
def test_what_was_never_a_token_is_refused(keyring: Keyring, token: str) -> None:
    """Whatever it is, the answer is the same."""
    with pytest.raises(PageTokenInvalidError):
        PageTokens(keyring).read("identities", token)
