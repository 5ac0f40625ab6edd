"""A `detect` that starts while all brokers are away keeps what it sees in its spool."""

from __future__ import annotations

import signal
from pathlib import Path

import cv2
import numpy as np
import pytest

from dangerous_driving.messaging.spool import SUFFIX
from dangerous_driving.ports import free_port
from dangerous_driving.settings import DatabaseSettings
from tests.detection.conftest import WriteOnnx
from tests.detection.test_shared_cameras import PATIENCE, Detect, eventually

pytestmark = [pytest.mark.integration, pytest.mark.timeout(200)]


def test_cameras_are_read_and_spooled_though_no_broker_has_ever_answered(
    tmp_path: Path, database: DatabaseSettings, write_onnx: WriteOnnx
) -> None:
    (tmp_path / "pictures").mkdir()
    cv2.imwrite(str(tmp_path / "pictures/0.png"), np.zeros((48, 64, 3), dtype=np.uint8))
    detect = Detect(
        "gate",
        tmp_path,
        {
            "database": {"url": database.url.get_secret_value()},
            "kafka": {"bootstrap_servers": f"127.0.0.1:{free_port()}", "request_timeout": 1.0},
            "objects": {"folder": str(tmp_path / "objects")},
            "detection": {"weights": str(write_onnx(np.zeros((8, 10), np.float32))), "threads": 1},
            "camera": {"cameras": [{"id": "gate", "source": str(tmp_path / "pictures")}], "frame_interval": 0.2},
        },
    )
    with detect.running() as process:
        spool = tmp_path / "spool of gate"
        eventually(lambda: len(list(spool.glob(f"*{SUFFIX}"))) > 2, "frames wait in the spool")
        assert process.poll() is None
        process.send_signal(signal.SIGTERM)
        assert process.wait(PATIENCE) == 0
    assert len(list(spool.glob(f"*{SUFFIX}"))) > 2
