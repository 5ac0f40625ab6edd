"""What every store does, in a folder as in S3."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import pytest

from dangerous_driving.errors import ContractError, ObjectNotFoundError
from dangerous_driving.objects import PrunableStore as ObjectStore

NOT_KEYS = [
    "",
    "/etc/passwd",
    "../x",
    "a/../b",
    "a/..",
    "./a",
    "a//b",
    "a/",
    ".hidden",
    "a/.hidden",
    "a\\b",
    "a\nb",
    "\0",
]


def test_what_was_put_is_got_back_by_key_and_by_url(store: ObjectStore) -> None:
    data = bytes(range(256)) * 300
    url = store.put("frames/cam-1/2026/03/01/12/m.jpg", data, "image/jpeg")
    assert store.get("frames/cam-1/2026/03/01/12/m.jpg") == data
    assert store.get(store.key(url)) == data
    assert url == store.url("frames/cam-1/2026/03/01/12/m.jpg")
    assert url.endswith("/frames/cam-1/2026/03/01/12/m.jpg")


def test_an_object_is_replaced_and_may_be_empty(store: ObjectStore) -> None:
    store.put("a", b"first", "text/plain")
    store.put("a", b"", "text/plain")
    assert store.get("a") == b""
    assert list(store.list("")) == ["a"]


def test_keys_with_blanks_and_other_letters_survive_the_url(store: ObjectStore) -> None:
    key = "frames/cam/2026/03/01/12/a b%2F+ü#?.jpg"
    url = store.put(key, b"x", "image/jpeg")
    assert store.key(url) == key
    assert store.get(key) == b"x"
    assert list(store.list("frames/")) == [key]


def test_what_is_not_there_is_said_so_and_by_which_key(store: ObjectStore) -> None:
    with pytest.raises(ObjectNotFoundError) as caught:  # not even the bucket is there
        store.get("frames/none.jpg")
    assert caught.value.key == "frames/none.jpg"
    assert not caught.value.retriable
    store.put("frames/cam/a.jpg", b"x", "image/jpeg")
    for absent in ("frames/none.jpg", "frames/cam", "frames/cam/a.jpg/b"):
        with pytest.raises(ObjectNotFoundError):
            store.get(absent)


def test_a_listing_is_recursive_sorted_and_by_the_beginning_of_keys(store: ObjectStore) -> None:
    assert list(store.list("")) == []
    assert list(store.list("frames/")) == []
    # '-' and '.' sort before '/', '0' after it: the order is that of whole keys, not of folders
    keys = ["f/a-b/1", "f/a.b", "f/a/1", "f/a/2/x", "f/a0", "f/b/1", "g/1"]
    for key in reversed(keys):
        store.put(key, b"x", "text/plain")
    assert list(store.list("")) == sorted(keys)
    assert list(store.list("f/")) == sorted(keys)[:-1]
    assert list(store.list("f/a/")) == ["f/a/1", "f/a/2/x"]
    assert list(store.list("f/a")) == ["f/a-b/1", "f/a.b", "f/a/1", "f/a/2/x", "f/a0"]
    assert list(store.list("f/a/2")) == ["f/a/2/x"]
    assert list(store.list("h/")) == []


def test_a_long_listing_is_complete(store: ObjectStore) -> None:
    keys = [f"frames/cam/{number:04d}.jpg" for number in range(1100)]  # S3 answers with 1,000 at a time
    with ThreadPoolExecutor(8) as threads:  # and a store is shared by threads
        list(threads.map(lambda key: store.put(key, b"x", "image/jpeg"), keys))
    assert list(store.list("frames/cam/")) == keys


def test_what_was_deleted_is_gone_and_the_rest_is_not(store: ObjectStore) -> None:
    assert store.delete(["frames/cam/none.jpg"]) == 1  # not even the bucket is there
    keys = [f"frames/cam/{hour:02d}/{number}.jpg" for hour in range(2) for number in range(3)]
    for key in keys:
        store.put(key, b"x", "image/jpeg")
    assert store.delete(iter(keys[:4])) == 4
    assert list(store.list("")) == keys[4:]
    assert store.delete(keys[:5]) == 5  # again, as after a crash
    assert list(store.list("frames/cam/")) == keys[5:]
    with pytest.raises(ObjectNotFoundError):
        store.get(keys[0])
    store.put(keys[0], b"new", "image/jpeg")
    assert store.get(keys[0]) == b"new"


def test_many_are_deleted_and_nothing_is_no_error(store: ObjectStore) -> None:
    assert store.delete([]) == 0
    keys = [f"groups/cam/{number:04d}.jpg" for number in range(1100)]
    with ThreadPoolExecutor(8) as threads:
        list(threads.map(lambda key: store.put(key, b"x", "image/jpeg"), keys))
    assert store.delete(keys) == len(keys)
    assert list(store.list("")) == []


@pytest.mark.parametrize("key", NOT_KEYS, ids=repr)
def test_what_cannot_be_a_key_is_refused_by_name(store: ObjectStore, key: str) -> None:
    uses = (
        lambda: store.put(key, b"x", "text/plain"),
        lambda: store.get(key),
        lambda: store.url(key),
        lambda: store.delete([key]),
    )
    for use in uses:
        with pytest.raises(ContractError) as caught:
            use()
        assert repr(key) in str(caught.value)


@pytest.mark.parametrize("prefix", ["/", "/etc", "../", "a/../", "..", "a//"], ids=repr)
def test_what_no_key_begins_with_is_refused(store: ObjectStore, prefix: str) -> None:
    with pytest.raises(ContractError):
        store.list(prefix)


@pytest.mark.parametrize("rest", ["", "../x", "%2e%2e/x", "a/%2e%2e/%2e%2e/x", "%2Fetc"])
def test_a_url_leads_nowhere_else(store: ObjectStore, rest: str) -> None:
    root = store.url("a").removesuffix("a")
    with pytest.raises(ContractError):
        store.key(root + rest)


@pytest.mark.parametrize("url", ["a", "file:///etc/passwd", "s3://another/a", "folder://another/a", "http://x/a"])
def test_a_url_of_another_store_is_refused(store: ObjectStore, url: str) -> None:
    with pytest.raises(ContractError, match="not of this store"):
        store.key(url)
