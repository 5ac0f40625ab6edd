"""The image built and run on a Debian machine without a container engine, as root: for proofs, not for a site.

debootstrap makes what stands for ``debian:12-slim``, buildah runs the Dockerfile's steps (chroot isolation), and a process of the image
runs as a container's would: its root read-only, in a mount namespace of its own, as the image's user, without any capability.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

REPOSITORY = Path(__file__).resolve().parents[2]
CACHE = REPOSITORY / ".cache" / "image"
BASE = "localhost/debian:12-slim"
#: The machine's own certificates, for networks that have an authority of their own.
CERTIFICATES = Path("/etc/ssl/certs/ca-certificates.crt")

#: Mounts, then the command in place of this shell, so that signals reach it. Arguments: root, user, mounts…, "--", command…
ENTER = """
set -eu
root=$1; user=$2; shift 2
mount --make-rprivate /
mount --bind "$root" "$root"
mount -o remount,bind,ro "$root"
mount -t proc proc "$root/proc"
mount --rbind /dev "$root/dev"
mount -t tmpfs -o mode=1777,size=256m tmpfs "$root/tmp"
while [ "$1" != -- ]; do
    mount --bind "$1" "$root$2"
    if [ "$3" = ro ]; then mount -o remount,bind,ro "$root$2"; fi
    shift 3
done
shift
cd "$root"
exec /usr/sbin/chroot "$root" /usr/bin/setpriv --reuid "$user" --regid "$user" --clear-groups --bounding-set=-all --inh-caps=-all --no-new-privs \\
    /bin/sh -c 'cd /var/lib/dangerous-driving && exec "$@"' sh "$@"
"""


class ImageError(Exception):
    """The image cannot be built here."""


@dataclass(frozen=True)
class Mount:
    """A folder or file of this machine in the container."""

    source: Path
    target: str
    read_only: bool

    @property
    def place(self) -> str:
        """The target within the image's root: there /var/run is an absolute link, which would lead out of it."""
        return self.target.replace("/var/run/", "/run/", 1)


def missing() -> str | None:
    """What is lacking here; None: nothing."""
    lacking = [name for name in ("debootstrap", "buildah", "unshare", "setpriv") if shutil.which(name) is None]
    if lacking:
        return f"{', '.join(lacking)}: not installed; on Debian: apt-get install debootstrap buildah"
    return None if os.geteuid() == 0 else "needs root"


def _buildah(*arguments: str) -> str:
    store = ["--root", str(CACHE / "storage"), "--runroot", str(CACHE / "run"), "--storage-driver", "vfs"]
    done = subprocess.run(["buildah", *store, *arguments], capture_output=True, text=True, check=False)
    if done.returncode:
        raise ImageError(f"buildah {arguments[0]}: {(done.stdout + done.stderr).strip()[-3000:]}")
    return done.stdout.strip()


def _base(mirror: str) -> None:
    if BASE in _buildah("images", "--format", "{{.Name}}:{{.Tag}}").split():
        return
    root = CACHE / "base"
    shutil.rmtree(root, ignore_errors=True)
    command = ["debootstrap", "--variant=minbase", "bookworm", str(root), *([mirror] if mirror else [])]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise ImageError(f"debootstrap: {done.stdout.strip()[-2000:]}")
    for archive in (root / "var/cache/apt/archives").glob("*.deb"):
        archive.unlink()
    archive = CACHE / "base.tar"
    subprocess.run(["tar", "-C", str(root), "-cf", str(archive), "."], check=True)
    container = _buildah("from", "scratch")
    _buildah("add", container, str(archive), "/")
    _buildah("commit", "--quiet", container, BASE)
    _buildah("rm", container)
    archive.unlink()
    shutil.rmtree(root)


class LocalImage:
    """The image under `tag`, built, and its root to run processes in."""

    def __init__(self, tag: str, *, mirror: str = "") -> None:
        if lacking := missing():
            raise ImageError(lacking)
        CACHE.mkdir(parents=True, exist_ok=True)
        self.tag = tag
        _base(mirror)
        configuration = CACHE / "pip.conf"
        configuration.write_text("[global]\ncert = /etc/build-certificates.crt\n", encoding="utf-8")
        volumes = [
            f"--volume={CERTIFICATES}:/etc/build-certificates.crt:ro",
            f"--volume={configuration}:/etc/pip.conf:ro",
        ]
        dockerfile = REPOSITORY / "infra/image/Dockerfile"
        how = ["--isolation=chroot", "--pull-never"]  # no layers kept: this driver copies the whole root for each
        self.log = _buildah("bud", *how, *volumes, f"--file={dockerfile}", f"--tag={tag}", str(REPOSITORY))
        inspected: dict[str, Any] = json.loads(_buildah("inspect", "--type=image", tag))
        self.config: dict[str, Any] = inspected["OCIv1"]["config"]
        self._container = _buildah("from", "--pull-never", tag)
        self.root = Path(_buildah("mount", self._container))

    def close(self) -> None:
        """Remove the container; the image stays until the next build."""
        _buildah("umount", self._container)
        _buildah("rm", self._container)

    def entry_point(self) -> list[str]:
        """What the image starts."""
        return list(self.config["Entrypoint"])

    def owner_of(self, target: str) -> tuple[int, int, int]:
        """User, group and mode of a folder of the image, which a new named volume takes."""
        status = (self.root / target.lstrip("/")).stat()
        return status.st_uid, status.st_gid, status.st_mode & 0o7777

    def command(self, arguments: Sequence[str], mounts: Sequence[Mount]) -> list[str]:
        """The command of this machine that runs `arguments` in the image."""
        user = self.config["User"].partition(":")[0]
        flat: list[str] = []
        for mount in sorted(mounts, key=lambda item: item.place):
            self._make_place(mount, mounts)
            flat += [str(mount.source), mount.place, "ro" if mount.read_only else "rw"]
        return ["unshare", "--mount", "/bin/sh", "-c", ENTER, "sh", str(self.root), user, *flat, "--", *arguments]

    def _make_place(self, mount: Mount, mounts: Sequence[Mount]) -> None:
        """The file or folder that is mounted over, as engines make it: in the image's root or on the volume around it."""
        target = Path(mount.place)
        around = [other for other in mounts if other is not mount and target.is_relative_to(other.place)]
        outer = max(around, key=lambda other: len(other.place), default=None)
        place = outer.source / target.relative_to(outer.place) if outer else self.root / str(target).lstrip("/")
        if mount.source.is_dir():
            place.mkdir(parents=True, exist_ok=True)
        elif not place.exists():
            place.parent.mkdir(parents=True, exist_ok=True)
            place.touch()

    def environment(self, given: Mapping[str, str]) -> dict[str, str]:
        """The image's variables, and those given."""
        own = dict(item.split("=", 1) for item in self.config["Env"])
        return own | {"HOME": "/var/lib/dangerous-driving"} | dict(given)
