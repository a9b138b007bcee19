import itertools
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from broker.keyring import Keyring, KeyringInvalidError, SealBrokenError, SealContext, SealPurpose
from broker.model import IdentityId

small = settings(max_examples=60, deadline=None)

words = st.text(alphabet="ab\x00", max_size=3) | st.text(max_size=20)
contexts = st.builds(
    SealContext,
    purpose=st.sampled_from(SealPurpose),
    identity_id=words.map(IdentityId),
    generation=st.integers(0, 3) | st.integers(0, 2**63 - 1),
    record_id=words,
)


@pytest.fixture(scope="module")
def ring(tmp_path_factory: pytest.TempPathFactory) -> Keyring:
    """One ring for all examples."""
    return Keyring.load_or_create(tmp_path_factory.mktemp("ring") / "keyring.json", may_create=True)


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A private file to fill with anything."""
    made = tmp_path_factory.mktemp("file") / "keyring.json"
    made.touch(0o600)
    return made


@small
@given(plaintext=st.binary(max_size=300), context=contexts)
def test_what_is_sealed_opens_in_its_place(ring: Keyring, plaintext: bytes, context: SealContext) -> None:
    """Any secret in any place comes back unchanged."""
    assert ring.open(ring.seal(plaintext, context=context), context=context) == plaintext


@small
@given(places=st.sets(contexts, min_size=2, max_size=4))
def test_no_two_places_are_the_same(ring: Keyring, places: set[SealContext]) -> None:
    """However the fields of two places are split, a value of one stays closed in the other."""
    for place, other in itertools.permutations(places, 2):
        sealed = ring.seal(b"secret", context=place)
        with pytest.raises(SealBrokenError):
            ring.open(sealed, context=other)


@small
@given(sealed=st.binary(max_size=200), context=contexts, real_head=st.booleans())
def test_arbitrary_bytes_raise_only_one_error(
    ring: Keyring, sealed: bytes, context: SealContext, real_head: bool
) -> None:
    """Whatever a database returns, it opens or is broken; nothing else is raised."""
    head = bytes([1]) + bytes.fromhex(ring.current_key_id) if real_head else b""
    with pytest.raises(SealBrokenError):
        ring.open(head + sealed, context=context)


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=10),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from(["version", "current", "keys", "mac", "id", "key"]), inner, max_size=6)
    ),
    max_leaves=12,
).map(lambda value: repr(value).replace("'", '"').encode())


@small
@given(content=st.binary(max_size=200) | json_values)
def test_arbitrary_files_raise_only_one_error(path: Path, content: bytes) -> None:
    """Whatever stands in the file, it is a ring or invalid; nothing else is raised."""
    path.write_bytes(content)
    with pytest.raises(KeyringInvalidError):
        Keyring.load(path)
