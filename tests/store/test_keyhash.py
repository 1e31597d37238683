"""Hashes put together from parts are those of the whole text."""

from hypothesis import given
from hypothesis import strategies as st

from store.keyhash import KeyHashes, key_hash

hex_digits = "0123456789ABCDEF"
unique_keys = st.sampled_from([32, 56]).flatmap(lambda n: st.text(hex_digits, min_size=n, max_size=n))
texts = st.text(max_size=60) | unique_keys


@given(st.lists(st.tuples(texts, texts | unique_keys), max_size=20))
def test_equals_the_hash_of_the_whole_text(pairs: list[tuple[str, str]]) -> None:
    hashes = KeyHashes()
    for topic, key in pairs + pairs:
        assert key_hash(f"{topic}#{key}") == hashes.slowly(topic, key)


def test_counting_keys_of_one_client() -> None:
    hashes = KeyHashes()
    for count in range(0, 70_000, 7):
        key = f"FD0000000000000000000000000000022971{30946000 + count:08X}97451E7A{count & 0xFFFF:04X}"
        assert len(key) == 56
        assert key_hash(f"bench#{key}") == hashes.slowly("bench", key)
