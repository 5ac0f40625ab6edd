"""Settings: where they come from, what is refused, and that secrets stay secret."""

from __future__ import annotations

from pathlib import Path

import pytest
from pydantic import SecretStr, ValidationError

from dangerous_driving import settings
from dangerous_driving.camera.secrets import with_secrets
from dangerous_driving.demo.data_folder import DataFolder
from dangerous_driving.errors import ConfigError
from dangerous_driving.settings import CameraSpec


def write(folder: Path, text: str) -> Path:
    path = folder / "settings.yaml"
    path.write_text(text)
    return path


def test_the_environment_weighs_more_than_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write(tmp_path, "kafka: {bootstrap_servers: 'a:1', partitions: 4}\n")
    monkeypatch.setenv("DD_KAFKA__BOOTSTRAP_SERVERS", "b:2")
    loaded = settings.load(path)
    assert (loaded.kafka.bootstrap_servers, loaded.kafka.partitions) == ("b:2", 4)


def test_the_file_may_be_named_by_the_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DD_CONFIG", str(write(tmp_path, "node: edge-1\n")))
    assert settings.load().node == "edge-1"


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("kafka: {bootstrap: 'a:1'}", "kafka.bootstrap"),
        ("windows: {length: 17}", "windows.length"),
        ("detection: {confidence: 2}", "detection.confidence"),
        ("llm: {base_url: 'ftp://x'}", "llm.base_url"),
        ("database: {url: 'mysql://x'}", "database.url"),
        ("camera: {cameras: [{id: a, source: '0'}, {id: a, source: '1'}]}", "used twice: a"),
        ("camera: {cameras: [{id: '../x', source: '0'}]}", "camera.cameras.0.id"),
        ("kafka: {replication: 1, min_insync_replicas: 2}", "min_insync_replicas"),
        ("assessment: {heartbeat_interval: 6}", "heartbeat_interval"),
        ("keys: {lane_weights: {windows: 3}}", "keys.lane_weights.windows"),
        ("5: a", "5: unknown setting"),
        ("llm: {images: url}", "objects.kind"),
        ("- a list", "--config"),
        ("a: [", "--config"),
    ],
)
def test_a_wrong_setting_is_named_with_a_remedy(tmp_path: Path, text: str, named: str) -> None:
    with pytest.raises(ConfigError) as caught:
        settings.load(write(tmp_path, text))
    assert named in str(caught.value)
    assert caught.value.remedy


def test_a_mistyped_variable_is_not_passed_over(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DD_KAFAK__BOOTSTRAP_SERVERS", "b:2")
    with pytest.raises(ConfigError, match="DD_KAFAK__BOOTSTRAP_SERVERS"):
        settings.load()


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"nowhere\.yaml"):
        settings.load(tmp_path / "nowhere.yaml")


def test_secrets_and_credentials_are_never_shown(tmp_path: Path) -> None:
    text = """
camera: {cameras: [{id: a, source: 'rtsp://user:hunter2@10.0.0.1:554/live?token=hunter2'}]}
keys: {secrets: [sk-hunter2]}
llm: {base_url: 'https://llm.example/v1'}
objects: {secret_key: hunter2}
"""
    loaded = settings.load(write(tmp_path, text))
    assert "hunter2" not in repr(loaded) + loaded.model_dump_json()
    assert loaded.camera.cameras[0].shown_source == "rtsp://10.0.0.1:554/live"


@pytest.mark.parametrize("keys", ["{secrets: [sk-1]}", "{file: /run/secrets/keys.yaml}"])
def test_keys_and_pictures_go_to_no_endpoint_that_nobody_named(tmp_path: Path, keys: str) -> None:
    with pytest.raises(ConfigError, match=r"llm\.base_url"):
        settings.load(write(tmp_path, f"keys: {keys}"))
    assert settings.load(write(tmp_path, f"keys: {keys}\nllm: {{base_url: 'https://llm.example/v1'}}")).keys


def test_a_secret_in_a_wrong_value_does_not_reach_the_error(tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        settings.load(write(tmp_path, "keys: {secrets: sk-hunter2}"))
    assert "hunter2" not in str(caught.value)


def test_a_demo_s_folder_keeps_all_settings_readable_for_its_services_alone(tmp_path: Path) -> None:
    text = "camera: {cameras: [{id: a, source: 'rtsp://user:hunter2@10.0.0.1/live'}]}\nkeys: {secrets: [sk-1]}\nllm: {base_url: 'https://llm.example/v1'}\nkafka: {api_version: [2, 3]}\n"
    loaded = settings.load(write(tmp_path, text))
    folder = DataFolder(tmp_path / "demo")
    folder.open()
    folder.write_settings(loaded)
    assert settings.load(folder.settings_file) == loaded
    assert folder.settings_file.stat().st_mode & 0o077 == 0
    folder.close()


def test_a_source_gets_its_secrets_from_the_environment_or_a_folder(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("DD_SECRET_GATE", "p@ss/word")
    (tmp_path / "yard").write_text("from a file\n")
    source = "rtsp://operator:${GATE}@camera/${yard}"
    assert with_secrets(source, tmp_path) == "rtsp://operator:p%40ss%2Fword@camera/from%20a%20file"
    assert settings.load().camera.cameras == ()  # and the variable is no unknown setting
    for missing in ("${NOWHERE}", "rtsp://${../etc}@camera"):
        with pytest.raises(ConfigError, match="DD_SECRET_") as refused:
            with_secrets(missing.replace("../etc", "absent"), tmp_path)
        assert "secrets_folder" in str(refused.value)


@pytest.mark.parametrize(
    "source",
    [
        "rtsp://admin:hun/ter2@camera.example/live",
        "rtsp://admin:hun/ter2@camera.example:554/live",
        "rtsp://admin:hun#ter2@camera.example/live",
        "rtsp://admin:hun?ter2@camera.example/live",
        "rtsp://admin:hun/ter2@camera.example:0/live",
        "http://camera.example:hunter2/live",
    ],
)
def test_an_address_whose_password_would_be_taken_for_a_path_is_refused_without_showing_it(source: str) -> None:
    with pytest.raises(ValidationError) as error:
        CameraSpec(id="a", source=SecretStr(source))
    assert "%2F" in str(error.value)
    assert "ter2" not in str(error.value)


@pytest.mark.parametrize(
    ("source", "said"),
    [
        ("rtsp://admin:hun%2Fter2@camera.example:554/live?token=x", "rtsp://camera.example:554/live"),
        ("rtsp://u:p@[2001:db8::1]:554/live", "rtsp://[2001:db8::1]:554/live"),
        (
            "rtsp://camera.example:554/user=admin&password=hunter2&channel=1&stream=0.sdp?real_stream",
            "rtsp://camera.example:554/user=***&password=***&channel=***&stream=***",
        ),
        (
            "rtsp://camera.example/user=admin_password=hunter2_channel=1_stream=0.sdp?real_stream",
            "rtsp://camera.example/user=***_password=***_channel=***_stream=***",
        ),
        (
            "rtsp://camera.example/user=a&password=h_u/n&t,e;r2=&channel=1",
            "rtsp://camera.example/user=***&password=***&channel=***",
        ),
        ("rtsp://camera.example/token=aGVp/bQ==&channel=1", "rtsp://camera.example/token=***&channel=***"),
        ("rtsp://camera.example/h264/ch1/main/av_stream", "rtsp://camera.example/h264/ch1/main/av_stream"),
        ("https://camera.example/live@2x.m3u8", None),
        ("clip@home.mp4", "clip@home.mp4"),
        ("0", "0"),
    ],
)
def test_what_is_shown_of_a_source(source: str, said: str | None) -> None:
    if said is None:  # nobody knows whose "@" that is
        with pytest.raises(ValidationError):
            CameraSpec(id="a", source=SecretStr(source))
    else:
        assert CameraSpec(id="a", source=SecretStr(source)).shown_source == said


def test_a_file_that_is_no_text_is_refused_with_a_sentence(tmp_path: Path) -> None:
    (tmp_path / "settings.yaml").write_bytes(b"camera: \xff\xfe")
    with pytest.raises(ConfigError, match="UTF-8"):
        settings.load(tmp_path / "settings.yaml")


def refusal(text: str, folder: Path) -> ConfigError:
    with pytest.raises(ConfigError) as caught:
        settings.load(write(folder, text))
    return caught.value


@pytest.mark.parametrize(
    ("text", "setting", "first", "also"),
    [
        ("kafka: {bootstrap: 'a:1'}", "kafka.bootstrap", "bootstrap_servers", "partitions"),
        ("kafak: {}", "kafak", "kafka", "notifications"),
        ("camera: {cameras: [{id: a, source: '0', sourec: '1'}]}", "camera.cameras.0.sourec", "source", "privacy"),
        (
            "camera: {cameras: [{id: a, source: '0', privacy: {head: true}}]}",
            "camera.cameras.0.privacy.head",
            "heads",
            "plates",
        ),
        (
            "notifications: {receivers: [{kind: mqtt, name: a, host: b, topics: c}]}",
            "notifications.receivers.0.topics",
            "topic",
            "retain",
        ),
        ("keys: {budgets: {window: {cals: 1}}}", "keys.budgets.window.cals", "calls", "cost"),
    ],
)
def test_an_unknown_name_gets_the_names_that_there_are_and_the_closest_first(
    tmp_path: Path, text: str, setting: str, first: str, also: str
) -> None:
    refused = refusal(text, tmp_path)
    assert refused.setting == setting
    names = refused.remedy.split("are: ")[1].split(", ")
    assert names[0] == first
    assert also in names
    assert f"did you mean {first}" in refused.remedy
    assert "config check" not in refused.remedy  # it fails alike


def test_an_unknown_name_that_is_like_no_other_gets_the_names_in_their_order(tmp_path: Path) -> None:
    refused = refusal("spool: {xyz: 1}", tmp_path)
    assert refused.remedy == "the names in spool are: folder, max_bytes, retry"


def test_an_unknown_section_in_the_environment_gets_the_closest_variable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DD_KAFAK__BOOTSTRAP_SERVERS", "b:2")
    with pytest.raises(ConfigError, match="did you mean DD_KAFKA"):
        settings.load()


@pytest.mark.parametrize(
    ("text", "setting", "remedy"),
    [
        (
            "camera: {cameras: [{id: a}]}",
            "camera.cameras.0.source",
            "set it in the YAML file; in the environment the whole list is JSON: DD_CAMERA__CAMERAS='[…]'",
        ),
        (
            "camera: {cameras: [{id: a, source: '0', context: {speed_limit: 900}}]}",
            "camera.cameras.0.context.speed_limit",
            "mend it in the YAML file; in the environment the whole list is JSON: DD_CAMERA__CAMERAS='[…]'",
        ),
        (
            "notifications: {receivers: [{kind: webhook, name: a, url: 'ftp://x', secret: '${S}'}]}",
            "notifications.receivers.0.url",  # the kind is no part of the way in the file
            "mend it in the YAML file; in the environment the whole list is JSON: DD_NOTIFICATIONS__RECEIVERS='[…]'",
        ),
        (
            "notifications: {receivers: [{name: a}]}",
            "notifications.receivers.0.kind",
            "set it in the YAML file; in the environment the whole list is JSON: DD_NOTIFICATIONS__RECEIVERS='[…]'",
        ),
        (
            "notifications: {receivers: [{kind: pigeon, name: a}]}",
            "notifications.receivers.0.kind",
            "mend it in the YAML file; in the environment the whole list is JSON: DD_NOTIFICATIONS__RECEIVERS='[…]'",
        ),
        (
            "keys: {secrets: sk-hunter2}",
            "keys.secrets",
            "mend it in the YAML file; in the environment the whole list is JSON: DD_KEYS__SECRETS='[…]'",
        ),
        (
            "keys: {budgets: {wnidow: {calls: 1}}}",
            "keys.budgets.wnidow",
            "mend it in the YAML file; in the environment the whole mapping is JSON: DD_KEYS__BUDGETS='{…}'",
        ),
        ("kafka: {partitions: 0}", "kafka.partitions", "mend it in the YAML file or as DD_KAFKA__PARTITIONS"),
        ("kafka: 5", "kafka", "mend it in the YAML file or as DD_KAFKA__NAME"),
        (
            "kafka: {replication: 1, min_insync_replicas: 2}",
            "settings",
            "mend it in the YAML file or as DD_SECTION__NAME",
        ),
    ],
)
def test_the_remedy_of_a_wrong_value_names_a_variable_that_works(
    tmp_path: Path, text: str, setting: str, remedy: str
) -> None:
    refused = refusal(text, tmp_path)
    assert (refused.setting, refused.remedy) == (setting, remedy)


def test_the_variable_of_the_remedy_is_one_that_sets_the_list(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DD_CAMERA__CAMERAS", '[{"id": "a", "source": "0"}]')
    assert settings.load().camera.cameras[0].id == "a"


@pytest.mark.parametrize(
    ("variable", "value", "said"),
    [
        ("DD_KEYS__SECRETS", "sk-hunter2", "a list in the environment is JSON"),
        ("DD_KEYS__BUDGETS", "hunter2", "a mapping in the environment is JSON"),
        ("DD_KAFKA", "hunter2", "a mapping in the environment is JSON"),
    ],
)
def test_a_list_or_mapping_in_the_environment_that_is_no_json_is_refused_with_a_sentence(
    monkeypatch: pytest.MonkeyPatch, variable: str, value: str, said: str
) -> None:
    monkeypatch.setenv("DD_KAFKA__API_VERSION", "[2, 3]")  # others are in order
    monkeypatch.setenv(variable, value)
    with pytest.raises(ConfigError, match=said) as caught:
        settings.load()
    assert caught.value.setting == variable
    assert "hunter2" not in str(caught.value)


def test_null_in_the_environment_is_null_as_in_the_file(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DD_ALERTS__GEOMETRY_PRIORITY", "null")
    monkeypatch.setenv("DD_DETECTION__WEIGHTS", "null")
    loaded = settings.load()
    assert (loaded.alerts.geometry_priority, loaded.detection.weights) == (None, None)


def test_others_take_over_after_several_looks_at_the_earliest(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DD_CAMERA__REFRESH", "10")
    assert settings.load().camera.lease == 40  # a longer refresh alone is no mistake
    monkeypatch.setenv("DD_CAMERA__TAKEOVER_AFTER", "29")
    with pytest.raises(ConfigError, match="set it to 30 or more") as caught:
        settings.load()
    assert caught.value.setting == "camera.takeover_after"
    monkeypatch.setenv("DD_CAMERA__TAKEOVER_AFTER", "30")
    assert settings.load().camera.lease == 30
    assert settings.CameraSettings().lease == 20
