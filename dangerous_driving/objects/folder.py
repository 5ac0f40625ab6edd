"""The object store in a folder: for the demo, for tests and for one machine."""

from __future__ import annotations

import os
import uuid
from collections.abc import Iterable, Iterator
from pathlib import Path

from dangerous_driving.errors import ObjectNotFoundError, ObjectStoreError
from dangerous_driving.objects.keys import checked, checked_prefix
from dangerous_driving.objects.url import UrlMapping

#: A folder that has become empty may be removed just when the next object is written into it.
PUT_ATTEMPTS = 20


class FolderStore(UrlMapping):
    """Each object is the file of its key's path under ``root``, which is made when the first one comes.

    A file appears whole, by a rename within its folder. It is not forced to the disk: a machine that loses its power
    may lose the objects of the last seconds, which ``verify`` then names; forcing would cost each frame a wait for the
    disk. The content type follows from the key's ending and is not kept.
    """

    def __init__(self, root: Path, bucket: str = "traffic") -> None:
        super().__init__("folder", bucket)
        self._folder = root.absolute()

    def put(self, key: str, data: bytes, content_type: str) -> str:  # noqa: ARG002 - S3 wants it
        """See ``ObjectStore``."""
        path = self._path(key)
        # hidden, so never listed; no key can begin with a dot
        written = path.with_name(f".{uuid.uuid4().hex}")
        try:
            for attempt in range(PUT_ATTEMPTS):
                try:
                    path.parent.mkdir(parents=True, exist_ok=True)
                    written.write_bytes(data)
                    written.replace(path)
                    break
                except (FileNotFoundError, FileExistsError):
                    # delete() took the folder away in between (also between two steps of mkdir), time and again
                    if attempt == PUT_ATTEMPTS - 1:
                        raise
                except OSError:
                    written.unlink(missing_ok=True)
                    raise
        except OSError as error:
            raise self._error(f"cannot write {key!r}", error) from error
        return self.url(key)

    def get(self, key: str) -> bytes:
        """See ``ObjectStore``."""
        try:
            return self._path(key).read_bytes()
        except (FileNotFoundError, IsADirectoryError, NotADirectoryError) as error:
            raise ObjectNotFoundError(key) from error
        except OSError as error:
            raise self._error(f"cannot read {key!r}", error) from error

    def list(self, prefix: str) -> Iterator[str]:
        """See ``ObjectStore``."""
        folder, _, _ = checked_prefix(prefix).rpartition("/")
        return self._walk(folder + "/" if folder else "", prefix)

    def delete(self, keys: Iterable[str]) -> int:
        """See ``ObjectStore``. Folders that become empty go too."""
        count = 0
        folders: set[Path] = set()
        for key in keys:
            path = self._path(key)
            try:
                path.unlink()
            except (FileNotFoundError, IsADirectoryError, NotADirectoryError):
                pass  # gone already, or no object
            except OSError as error:
                raise self._error(f"cannot remove {key!r}", error) from error
            folders.add(path.parent)
            count += 1
        for folder in folders:
            self._remove_empty(folder)
        return count

    def _remove_empty(self, folder: Path) -> None:
        while folder != self._folder and self._folder in folder.parents:
            try:
                folder.rmdir()
            except OSError:
                return  # in use: another object is in it, or just comes; put() makes a folder that has gone
            folder = folder.parent

    def _walk(self, folder: str, prefix: str) -> Iterator[str]:
        try:
            with os.scandir(self._folder / folder) as scan:
                # S3 sorts by the whole key, in which a folder's name goes on with a slash
                names = sorted(
                    (entry.name + "/" if entry.is_dir(follow_symlinks=False) else entry.name for entry in scan),
                    key=str.encode,
                )
        except (FileNotFoundError, NotADirectoryError):
            return
        except OSError as error:
            raise self._error(f"cannot list {folder!r}", error) from error
        for name in names:
            key = folder + name
            if name.startswith(".") or not (key.startswith(prefix) or prefix.startswith(key)):
                continue
            if key.endswith("/"):
                yield from self._walk(key, prefix)
            else:
                yield key

    def _path(self, key: str) -> Path:
        return self._folder / checked(key)

    def _error(self, action: str, error: OSError) -> ObjectStoreError:
        return ObjectStoreError(
            f"{action} in the folder {self._folder} ({error.strerror}); check objects.folder: its rights and its space"
        )
