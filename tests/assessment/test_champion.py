"""Running services take up the prompt that was promoted, and only one that they can use."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest
from sqlalchemy import Engine

from dangerous_driving.assessment.champion import Prompts, current_prompts, current_version, follow_promotions
from dangerous_driving.assessment.prompt import load_prompt, promoted_digest
from dangerous_driving.errors import ConfigError
from dangerous_driving.ledger.promotions import promote
from dangerous_driving.settings import AssessmentSettings, EvaluationSettings, LlmSettings, Settings


def put_into_use(engine: Engine, version: str, before: str, digest: str | None = None) -> None:
    digest = digest or load_prompt(version).digest
    promote(
        engine, kind="promoted", prompt_version=version, prompt_digest=digest, previous=before, by="t", decision_id=1
    )


class User:
    def __init__(self, prompts: Prompts) -> None:
        self.prompts = prompts


def test_until_the_first_promotion_it_is_the_settings(ledger: Engine) -> None:
    llm = LlmSettings(prompt_version="v1")
    assert current_version(llm, ledger) == "v1"
    put_into_use(ledger, "v2", "v1")
    assert current_version(llm, ledger) == "v2"
    assert current_prompts(Settings(llm=llm), ledger).group.version == "v2"


def test_a_promotion_against_another_champion_than_the_one_in_use_is_refused(ledger: Engine) -> None:
    put_into_use(ledger, "v2", "v1")
    with pytest.raises(ConfigError, match="v2 was promoted meanwhile"):
        put_into_use(ledger, "v2-zh", "v1")


def test_a_file_that_is_not_the_promoted_one_is_refused(ledger: Engine, tmp_path: Path) -> None:
    (tmp_path / "ours.yaml").write_text("version: ours\ndescription: d\nsystem: s\nuser: u")
    put_into_use(ledger, "ours", "v2", load_prompt("ours", folder=tmp_path).digest)
    llm = LlmSettings(prompt_folder=tmp_path)
    assert current_prompts(Settings(llm=llm), ledger).group.version == "ours"
    (tmp_path / "ours.yaml").write_text("version: ours\ndescription: d\nsystem: other\nuser: u")
    with pytest.raises(ConfigError, match="not the one that was promoted"):
        current_prompts(Settings(llm=llm), ledger)


def test_groups_share_no_calls_under_a_promoted_prompt_that_has_none_for_several(ledger: Engine) -> None:
    settings = Settings(llm=LlmSettings(prompt_version="v2"), assessment=AssessmentSettings(coalesce_groups=4))
    assert current_prompts(settings, ledger).frame is not None
    put_into_use(ledger, "v1", "v2")
    assert current_prompts(settings, ledger).group.version == "v1"
    assert current_prompts(settings, ledger).frame is None
    with pytest.raises(ConfigError, match="for several groups"):
        Prompts.of(settings, "v1")  # where only the settings say so, they have to agree


def write_both(folder: Path, *, frame: str) -> None:
    (folder / "ours.yaml").write_text("version: ours\ndescription: d\nsystem: s\nuser: u")
    (folder / "ours-frame.yaml").write_text(
        f"version: ours-frame\ndescription: d\ntakes: frame\nsystem: {frame}\nuser: u"
    )


@pytest.mark.parametrize("before", ["s", None])
def test_a_file_for_several_groups_that_is_not_the_one_of_the_promotion_is_not_used(
    ledger: Engine, tmp_path: Path, before: str | None
) -> None:
    write_both(tmp_path, frame="s")
    if before is None:  # it came only after the promotion
        (tmp_path / "ours-frame.yaml").unlink()
    digest = promoted_digest(load_prompt("ours", folder=tmp_path), folder=tmp_path)
    put_into_use(ledger, "ours", "v2", digest)
    settings = Settings(llm=LlmSettings(prompt_folder=tmp_path), assessment=AssessmentSettings(coalesce_groups=4))
    assert (current_prompts(settings, ledger).frame is None) == (before is None)
    write_both(tmp_path, frame="other")
    found = current_prompts(settings, ledger)
    assert (found.group.version, found.frame) == ("ours", None)


def test_a_promotion_that_knows_nothing_of_a_file_for_several_groups_holds_all_the_same(
    ledger: Engine, tmp_path: Path
) -> None:
    write_both(tmp_path, frame="s")
    put_into_use(ledger, "ours", "v2", load_prompt("ours", folder=tmp_path).digest)
    settings = Settings(llm=LlmSettings(prompt_folder=tmp_path), assessment=AssessmentSettings(coalesce_groups=4))
    assert current_prompts(settings, ledger).frame is not None


async def test_a_running_service_changes_its_prompt_and_goes_on_with_the_old_one_where_it_cannot(
    ledger: Engine,
) -> None:
    user = User(Prompts(load_prompt("v1")))
    settings = Settings(llm=LlmSettings(prompt_version="v1"), evaluation=EvaluationSettings(champion_refresh=0.02))
    following = asyncio.create_task(follow_promotions(user, settings, ledger))
    try:
        put_into_use(ledger, "v2", "v1")
        async with asyncio.timeout(60):
            while user.prompts.group.version != "v2":
                await asyncio.sleep(0.01)
        put_into_use(ledger, "absent-here", "v2", "x")  # a file that another node has
        await asyncio.sleep(0.2)
        assert user.prompts.group.version == "v2"
        put_into_use(ledger, "v2-zh", "absent-here")
        async with asyncio.timeout(60):
            while user.prompts.group.version != "v2-zh":
                await asyncio.sleep(0.01)
    finally:
        following.cancel()
