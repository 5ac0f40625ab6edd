"""Keys from settings and file: every mistake is named, no text carries a key."""

import asyncio
from pathlib import Path

import pytest
from pydantic import SecretStr
from sqlalchemy import Engine
from typer.testing import CliRunner

from dangerous_driving.assessment.key_pool import key_hash
from dangerous_driving.assessment.keys import configured_hashes, follow_file, load_keys, open_pool
from dangerous_driving.commands import keys as key_commands
from dangerous_driving.errors import ConfigError, NoKeyError
from dangerous_driving.settings import DatabaseSettings, KeysSettings

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


# -- keys that come and go


@pytest.fixture
def key_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    file = tmp_path / "keys.yaml"
    file.write_text("keys: [{secret: sk-first, label: one}]")
    monkeypatch.setenv("DD_KEYS__FILE", str(file))
    monkeypatch.setenv("DD_LLM__BASE_URL", "http://127.0.0.1:9/v1")
    return file


def run(*arguments: str, **more: object) -> str:
    result = CliRunner().invoke(key_commands.app, list(arguments), **more)  # type: ignore[arg-type]
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    assert "sk-" not in result.output
    return result.output


def test_keys_are_added_and_removed_and_no_secret_is_shown(key_file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NEW_KEY", "sk-second")
    assert key_hash("sk-second") in run("add", "--env", "NEW_KEY", "--label", "two", "--rpm-limit", "60")
    run("add", input="sk-third\n")
    found = load_keys(KeysSettings(file=key_file))
    assert [(key.label, key.rpm_limit) for key in found] == [("one", 300), ("two", 60), ("", 300)]
    assert key_file.stat().st_mode & 0o077 == 0
    with pytest.raises(ConfigError, match="is there already"):
        run("add", "--env", "NEW_KEY")
    run("remove", "two")
    run("remove", key_hash("sk-third")[:16])
    with pytest.raises(ConfigError, match="last key"):
        run("remove", "one")
    with pytest.raises(ConfigError, match="no configured key"):
        run("remove", "nobody")


async def test_a_running_pool_follows_the_file_and_a_bad_file_changes_nothing(key_file: Path) -> None:
    settings = KeysSettings(file=key_file, refresh=0.05)
    pool = open_pool(settings, None)
    following = asyncio.create_task(follow_file(settings, pool))
    await asyncio.sleep(0.1)
    key_file.write_text("keys: [{secret: sk-second}, {secret: sk-third}]")  # noqa: ASYNC240
    async with asyncio.timeout(60):
        while {item.key_hash for item in pool.snapshot()} != {key_hash("sk-second"), key_hash("sk-third")}:
            await asyncio.sleep(0.02)
    assert (await pool.reserve("realtime")).secret.get_secret_value() in {"sk-second", "sk-third"}
    key_file.write_text("keys: [")  # noqa: ASYNC240
    await asyncio.sleep(0.3)
    assert len(pool.snapshot()) == 2
    assert not following.done()
    following.cancel()
    await pool.close()


@pytest.mark.integration
async def test_keys_are_disabled_and_enabled_for_all_processes(
    ledger: Engine, database: DatabaseSettings, key_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DD_DATABASE__URL", database.url.get_secret_value())
    pool = open_pool(KeysSettings(file=key_file), ledger)
    await pool.report(await pool.reserve("realtime"))
    await asyncio.to_thread(run, "disable", "one", "--reason", "billing")
    async with asyncio.timeout(60):
        while pool.snapshot()[0].status != "disabled":
            try:
                await pool.report(await pool.reserve("realtime"))
            except NoKeyError:
                continue
            await asyncio.sleep(0.2)
    with pytest.raises(NoKeyError, match="billing"):
        await pool.reserve("realtime")
    assert "disabled" in await asyncio.to_thread(run, "list")
    await asyncio.to_thread(run, "enable", "one")
    async with asyncio.timeout(60):
        await pool.reserve("realtime", timeout=15)
    await pool.close()
    assert "calls" in await asyncio.to_thread(run, "stats")
