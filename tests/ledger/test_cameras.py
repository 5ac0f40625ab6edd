"""Cameras that an operator keeps in the table."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest
from pydantic import SecretStr
from sqlalchemy import Engine, text

from dangerous_driving.errors import ConfigError
from dangerous_driving.ledger.cameras import (
    put_camera,
    register_cameras,
    remove_camera,
    set_camera_status,
    set_enabled,
    set_running,
    stopped_cameras,
    table_cameras,
)
from dangerous_driving.settings import CameraSpec, PrivacySpec


def spec(camera_id: str = "north", source: str = "rtsp://camera/1", **more: object) -> CameraSpec:
    return CameraSpec(id=camera_id, source=SecretStr(source)).model_copy(update=more)


def test_what_is_put_comes_back_whole(ledger: Engine) -> None:
    camera = spec(
        name="North gate",
        frame_interval=0.5,
        ignore=(((0.0, 0.0), (1.0, 0.0), (1.0, 0.2)),),
        privacy=PrivacySpec(heads=True),
    )
    put_camera(ledger, camera, frame_interval=1.8)
    put_camera(ledger, spec("east"), frame_interval=1.8)
    assert table_cameras(ledger) == (spec("east"), camera)


def test_putting_again_changes_a_camera(ledger: Engine) -> None:
    put_camera(ledger, spec(), frame_interval=1.8)
    put_camera(ledger, spec(source="rtsp://camera/2"), frame_interval=1.8)
    assert table_cameras(ledger) == (spec(source="rtsp://camera/2"),)


def test_disabled_and_removed_cameras_are_not_watched_and_can_come_back(ledger: Engine) -> None:
    put_camera(ledger, spec(), frame_interval=1.8)
    set_enabled(ledger, "north", False)
    assert table_cameras(ledger) == ()
    set_enabled(ledger, "north", True)
    assert table_cameras(ledger) == (spec(),)
    remove_camera(ledger, "north")
    assert table_cameras(ledger) == ()
    put_camera(ledger, spec(), frame_interval=1.8)
    assert table_cameras(ledger) == (spec(),)


def test_cameras_of_the_settings_are_not_the_tables(ledger: Engine) -> None:
    register_cameras(ledger, [spec()], frame_interval=1.8)
    assert table_cameras(ledger) == ()
    with pytest.raises(ConfigError, match="no camera north"):
        set_enabled(ledger, "north", False)
    with pytest.raises(ConfigError, match="no camera north"):
        remove_camera(ledger, "north")


def test_the_newest_state_stays_and_a_camera_never_registered_gets_its_row(ledger: Engine) -> None:
    register_cameras(ledger, [spec()], frame_interval=1.8)
    at = datetime.now(UTC) + timedelta(minutes=1)
    set_camera_status(ledger, "north", "offline", "frozen", at)
    set_camera_status(ledger, "north", "online", "", at - timedelta(hours=1))
    set_camera_status(ledger, "unheard-of", "degraded", "black", at)
    register_cameras(ledger, [spec(name="North gate")], frame_interval=0.5)
    with ledger.connect() as connection:
        query = text("SELECT id, name, frame_interval, status, status_reason FROM camera ORDER BY id")
        rows = [tuple(row) for row in connection.execute(query)]
    assert rows == [
        ("north", "North gate", 0.5, "offline", "frozen"),
        ("unheard-of", "unheard-of", 1.8, "degraded", "black"),
    ]


@pytest.mark.parametrize(
    "source",
    [
        "http://camera/1?token=hunter2",
        "http://camera/1?channel=3&apiKey=hunter2",
        "rtsp://${USER}:hunter2@camera/1",
        "rtsp://operator:${PREFIX}hunter2@camera/1",
        "rtsp://camera:554/user=admin&password=hunter2&channel=1&stream=0.sdp?real_stream",
        "rtsp://camera/user=admin_password=hunter2_channel=1_stream=0.sdp?real_stream",
        "rtsp://camera/user=${U}_password=${PREFIX}hunter2_channel=1",
        "rtsp://camera/user=${U}&password=${PREFIX}_hunter2&channel=1",
        "rtsp://camera/token=hunter2/live",
        "rtsp://camera/live?user=admin_password=hunter2_channel=1",
    ],
)
def test_no_secret_gets_into_the_table_whatever_its_place_in_the_address(ledger: Engine, source: str) -> None:
    with pytest.raises(ConfigError, match="DD_SECRET_") as refused:
        put_camera(ledger, spec(source=source), frame_interval=1.8)
    assert "hunter2" not in str(refused.value)


@pytest.mark.parametrize(
    "source",
    [
        "http://camera/1?token=${T}&channel=3",
        "rtsp://${U}:${P}@camera/1",
        "7",
        "rtsp://camera/user=${U}&password=${P}&channel=1",
        "rtsp://camera/user=${U}_password=${P}_channel=1_stream=0.sdp?real_stream",
        "rtsp://camera/token=${T}/live",
        "rtsp://camera/h264/ch1/main/av_stream",
    ],
)
def test_addresses_without_a_secret_are_kept(ledger: Engine, source: str) -> None:
    put_camera(ledger, spec(source=source), frame_interval=1.8)
    assert table_cameras(ledger) == (spec(source=source),)


def test_no_password_gets_into_the_table(ledger: Engine) -> None:
    with pytest.raises(ConfigError, match="DD_SECRET_") as refused:
        put_camera(ledger, spec(source="rtsp://operator:hunter2@camera/1"), frame_interval=1.8)
    assert "hunter2" not in str(refused.value)
    put_camera(ledger, spec(source="rtsp://operator:${GATE}@camera/1"), frame_interval=1.8)
    with ledger.connect() as connection:
        row = connection.execute(text("SELECT source, spec::text FROM camera")).one()
    assert "hunter2" not in str(row)
    assert row.source == "rtsp://camera/1"


def test_what_a_camera_of_the_settings_has_in_its_path_is_kept_without_values(ledger: Engine) -> None:
    # of the settings, where a password may stand: only what is shown of it gets into the table
    source = "rtsp://camera/user=admin&password=hunter2&channel=1"
    register_cameras(ledger, [spec(source=source)], frame_interval=1.8)
    with ledger.connect() as connection:
        assert connection.execute(text("SELECT source FROM camera")).scalar() == (
            "rtsp://camera/user=***&password=***&channel=***"
        )


def test_a_row_that_cannot_be_read_takes_no_other_with_it(ledger: Engine) -> None:
    put_camera(ledger, spec("a"), frame_interval=1.8)
    put_camera(ledger, spec("b"), frame_interval=1.8)
    put_camera(ledger, spec("c"), frame_interval=1.8)
    with ledger.begin() as connection:
        connection.execute(text("UPDATE camera SET spec = spec || '{\"frame_interval\": -3}' WHERE id = 'a'"))
        connection.execute(text("UPDATE camera SET spec = '[1, 2]' WHERE id = 'c'"))
    assert [camera.id for camera in table_cameras(ledger)] == ["b"]


def test_any_known_camera_is_stopped_and_started_wherever_it_is_kept(ledger: Engine) -> None:
    put_camera(ledger, spec("kept"), frame_interval=1.8)
    register_cameras(ledger, [spec("configured")], frame_interval=1.8)
    for camera_id in ("kept", "configured"):
        assert set_running(ledger, camera_id, False)
    assert not set_running(ledger, "unknown", False)
    assert stopped_cameras(ledger) == {"kept", "configured"}
    register_cameras(ledger, [spec("configured")], frame_interval=1.8)  # a restart of detection starts nothing
    assert stopped_cameras(ledger) == {"kept", "configured"}
    assert table_cameras(ledger) == ()
    assert set_running(ledger, "kept", True)
    assert [camera.id for camera in table_cameras(ledger)] == ["kept"]
