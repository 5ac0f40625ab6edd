"""Keys from settings and file: every mistake is named, no text carries a key."""

from pathlib import Path

import pytest
from pydantic import SecretStr

from dangerous_driving.assessment.key_pool import key_hash
from dangerous_driving.assessment.keys import configured_hashes, load_keys, open_pool
from dangerous_driving.errors import ConfigError
from dangerous_driving.settings import KeysSettings

EXAMPLE = Path(__file__).parents[2] / "infra" / "config" / "api_keys.example.yaml"


def from_file(tmp_path: Path, content: str) -> KeysSettings:
    (tmp_path / "keys.yaml").write_text(content)
    return KeysSettings(file=tmp_path / "keys.yaml")


def test_the_example_is_valid() -> None:
    first, second = load_keys(KeysSettings(file=EXAMPLE))
    assert (first.label, first.qps_limit, first.rpm_limit) == ("team account 1", 10, 300)
    assert (second.qps_limit, second.rpm_limit) == (5, 120)


def test_keys_of_settings_and_file_come_together(tmp_path: Path) -> None:
    settings = from_file(tmp_path, "keys: [{secret: sk-b, rpm_limit: 7}]").model_copy(
        update={"secrets": (SecretStr(" sk-a\n"),), "rpm_limit": 60}
    )
    keys = load_keys(settings)
    assert [(key.key_hash, key.rpm_limit) for key in keys] == [(key_hash("sk-a"), 60), (key_hash("sk-b"), 7)]
    assert configured_hashes(settings) == {key.key_hash for key in keys}
    assert "sk-" not in repr(keys)


def test_no_keys_are_none_and_no_pool() -> None:
    assert load_keys(KeysSettings()) == ()
    with pytest.raises(ConfigError, match=r"keys\.file.*DD_KEYS__SECRETS"):
        open_pool(KeysSettings(), None)


@pytest.mark.parametrize(
    "content",
    [
        "",
        "keys: []",
        "- sk-secret",
        "keys: [sk-secret]",
        "keys: [{secret: sk-secret, qps_limit: 0}]",
        "keys: [{secret: sk-secret, rpm_limit: -1}]",
        "keys: [{secret: sk-secret, limit: 4}]",
        "keys: [{label: sk-secret}]",
        "keys: [{secret: sk-secret",
        "keys:\n  - secret: sk-secret: x",
        "keys: [{secret: '  '}]",
        "keys: [{secret: 'sk-secret 1'}]",
        "keys: [{secret: 'sk-secret密'}]",
        "keys: [{secret: sk-secret}, {secret: sk-secret}]",
    ],
)
def test_a_bad_file_is_named_and_no_key_shown(tmp_path: Path, content: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load_keys(from_file(tmp_path, content))
    assert caught.value.setting == "keys.file"
    assert "sk-secret" not in str(caught.value)


def test_a_missing_or_binary_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"keys\.file.*cannot be read"):
        load_keys(KeysSettings(file=tmp_path / "none.yaml"))
    (tmp_path / "binary").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ConfigError, match=r"keys\.file"):
        load_keys(KeysSettings(file=tmp_path / "binary"))


async def test_a_pool_of_the_configured_keys() -> None:
    pool = open_pool(KeysSettings(secrets=(SecretStr("sk-a"),), qps_limit=3), None)
    reservation = await pool.reserve("realtime")
    assert reservation.secret.get_secret_value() == "sk-a"
    (usage,) = pool.snapshot()
    assert (usage.qps_limit, usage.status) == (3, "in_use")
    await pool.close()


def test_the_real_file_is_kept_out_of_git() -> None:
    ignored = (Path(__file__).parents[2] / ".gitignore").read_text().split()
    assert "/infra/config/api_keys.yaml" in ignored
