"""The object store: frames, crops and detection results, in a folder or in S3."""

from dangerous_driving.objects.store import FolderStore, ObjectStore, S3Store, open_store

__all__ = ["FolderStore", "ObjectStore", "S3Store", "open_store"]
