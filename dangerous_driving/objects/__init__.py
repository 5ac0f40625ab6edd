"""The object store: pictures and detection results under keys, in a folder or in S3."""

from dangerous_driving.objects.folder import FolderStore
from dangerous_driving.objects.keys import (
    Kind,
    camera_prefix,
    day_prefix,
    detection_key,
    frame_key,
    group_key,
    hour_prefix,
    hour_prefixes,
    is_detection,
)
from dangerous_driving.objects.s3 import S3Store
from dangerous_driving.objects.store import ObjectStore, PrunableStore, open_store, reachable_url

__all__ = [
    "FolderStore",
    "Kind",
    "ObjectStore",
    "PrunableStore",
    "S3Store",
    "camera_prefix",
    "day_prefix",
    "detection_key",
    "frame_key",
    "group_key",
    "hour_prefix",
    "hour_prefixes",
    "is_detection",
    "open_store",
    "reachable_url",
]
