"""What is particular to the store in a folder."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from dangerous_driving.errors import ConfigError, ObjectStoreError
from dangerous_driving.objects import FolderStore


def files(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}


def test_an_object_is_one_file_under_the_folder_and_the_url_says_folder(tmp_path: Path) -> None:
    store = FolderStore(tmp_path / "not" / "yet")
    assert not (tmp_path / "not").exists()
    assert store.put("a/b.jpg", b"x", "image/jpeg") == "folder://traffic/a/b.jpg"
    assert files(tmp_path) == {"not/yet/a/b.jpg"}


def test_readers_see_one_version_or_the_other_never_a_part(tmp_path: Path) -> None:
    store = FolderStore(tmp_path)
    versions = [bytes([number]) * 500_000 for number in range(4)]
    store.put("a", versions[0], "x")
    stop = threading.Event()
    seen: list[bytes] = []
    listed: set[str] = set()

    def read() -> None:
        while not stop.is_set():
            seen.append(store.get("a"))
            listed.update(store.list(""))

    reader = threading.Thread(target=read)
    reader.start()
    for _ in range(20):
        for version in versions:
            store.put("a", version, "x")
    stop.set()
    reader.join()
    assert seen
    assert set(seen) <= set(versions)
    assert listed == {"a"}


def test_a_write_that_fails_leaves_nothing_and_names_the_setting(tmp_path: Path) -> None:
    store = FolderStore(tmp_path)
    (tmp_path / "a" / "b").mkdir(parents=True)
    (tmp_path / "c").write_text("a file where a folder is needed")
    for key in ("a/b", "c/d"):
        with pytest.raises(ObjectStoreError, match=r"objects\.folder"):
            store.put(key, b"x", "x")
    assert files(tmp_path) == {"c"}


def test_an_unfinished_file_of_a_killed_process_is_never_listed(tmp_path: Path) -> None:
    store = FolderStore(tmp_path)
    store.put("a/b", b"x", "x")
    (tmp_path / "a" / ".4f3c").write_bytes(b"half")
    assert list(store.list("")) == ["a/b"]


def test_links_to_other_folders_are_not_followed_by_a_listing(tmp_path: Path) -> None:
    store = FolderStore(tmp_path / "objects")
    store.put("a", b"x", "x")
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "secret").write_text("x")
    (tmp_path / "objects" / "link").symlink_to(tmp_path / "elsewhere")
    assert "link/secret" not in list(store.list(""))


def test_a_bucket_needs_a_name(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"objects\.bucket"):
        FolderStore(tmp_path, "")


def test_a_folder_that_empties_while_others_write_into_it_loses_nothing(tmp_path: Path) -> None:
    store = FolderStore(tmp_path)

    def write_and_delete(worker: int) -> str:
        for number in range(20):
            store.put(f"a/b/{worker}-{number}", b"x", "text/plain")
            store.delete([f"a/b/{worker}-{number}"])
        store.put(f"a/b/{worker}-kept", b"x", "text/plain")
        return f"a/b/{worker}-kept"

    with ThreadPoolExecutor(4) as threads:
        kept = sorted(threads.map(write_and_delete, range(4)))
    assert list(store.list("a/")) == kept
