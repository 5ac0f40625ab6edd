"""Pictures that came inside a message go to the object store.

A detector of another make may send `groupImageBase64` and no URL. The ledger keeps URLs only, and whoever comes after the
realtime lane (the window lane, a backfill, an operator who opens the alert) reads the picture there.
"""

from __future__ import annotations

import base64

from dangerous_driving.contracts import DetectionResult, TrafficGroup
from dangerous_driving.objects import ObjectStore
from dangerous_driving.objects.keys import group_key


def with_pictures_stored(result: DetectionResult, store: ObjectStore) -> DetectionResult:
    """The result with a URL for each group whose picture it carries; the same object if all have one already.

    Storing it again changes nothing: the key derives from the message.

    Raises:
        ObjectStoreError: the store refused or did not answer in time.
        ContractError: the message's id cannot be part of a key.
    """
    if all(group.group_image_url or not group.group_image_base64 for group in result.traffic_groups):
        return result
    groups = tuple(_stored(result, group, store) for group in result.traffic_groups)
    return result.model_copy(update={"traffic_groups": groups})


def _stored(result: DetectionResult, group: TrafficGroup, store: ObjectStore) -> TrafficGroup:
    if group.group_image_url or not group.group_image_base64:
        return group
    key = group_key(result.camera_id, result.timestamp, result.message_id, group.group_index)
    url = store.put(key, base64.b64decode(group.group_image_base64), "image/jpeg")
    return group.model_copy(update={"group_image_url": url})
