"""The prompt in use: the one that was promoted last, taken up by running services without a restart."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import Protocol, Self

import structlog
from sqlalchemy import Engine

from dangerous_driving.assessment.prompt import Prompt, known_digests, load_frame_prompt, load_prompt
from dangerous_driving.errors import ConfigError, LedgerError
from dangerous_driving.ledger.promotions import Promotion, champion_of
from dangerous_driving.settings import LlmSettings, Settings

log = structlog.get_logger(__name__)


@dataclass(frozen=True)
class Prompts:
    """A version in use. ``frame``: for several groups of a frame in one call; None: each group has a call of its own."""

    group: Prompt
    frame: Prompt | None = None

    @classmethod
    def of(cls, settings: Settings, version: str) -> Self:
        """The version's prompts, as far as the settings ask for them.

        Raises:
            ConfigError: there is no such version, or none for several groups where groups are to share calls.
        """
        llm = settings.llm
        group = load_prompt(version, folder=llm.prompt_folder, longest_side=llm.image_longest_side)
        if settings.assessment.coalesce_groups == 1:
            return cls(group)
        return cls(group, load_frame_prompt(version, folder=llm.prompt_folder, longest_side=llm.image_longest_side))


class UsesPrompts(Protocol):
    """Whose prompts are changed."""

    prompts: Prompts


def current_version(llm: LlmSettings, engine: Engine) -> str:
    """The version in use: the one promoted last, else ``llm.prompt_version``.

    Raises:
        LedgerError: the promotions cannot be read.
    """
    champion = champion_of(engine)
    return llm.prompt_version if champion is None else champion.prompt_version


def current_prompts(settings: Settings, engine: Engine) -> Prompts:
    """The prompts in use, ready to render.

    A promoted prompt that has none for several groups, or another one than when it was promoted, is used all the same, and
    its groups do not share calls.

    Raises:
        ConfigError: the file is not here, or is not the one that was promoted; or, of a version that only the settings
            name, there is none for several groups.
        LedgerError: the promotions cannot be read.
    """
    champion = champion_of(engine)
    if champion is None:
        return Prompts.of(settings, settings.llm.prompt_version)
    llm, version = settings.llm, champion.prompt_version
    prompt = load_prompt(version, folder=llm.prompt_folder, longest_side=llm.image_longest_side)
    if prompt.digest != known_digests(champion.prompt_digest)[0]:
        raise ConfigError(
            f"prompt {version}",
            f"its file is not the one that was promoted on {champion.promoted_at:%Y-%m-%d}",
            "put it back, and make the change in a file of a new version",
        )
    if settings.assessment.coalesce_groups == 1:
        return Prompts(prompt)
    try:
        return Prompts(prompt, _promoted_frame(llm, champion))
    except ConfigError as error:
        log.warning("groups_do_not_share_calls", prompt_version=version, reason=str(error))
        return Prompts(prompt)


def _promoted_frame(llm: LlmSettings, champion: Promotion) -> Prompt:
    version = champion.prompt_version
    prompt = load_frame_prompt(version, folder=llm.prompt_folder, longest_side=llm.image_longest_side)
    _, digest = known_digests(champion.prompt_digest)
    if digest is not None and prompt.digest != digest:
        raise ConfigError(
            f"prompt {prompt.version}",
            f"its file is not the one that was there when {version} was promoted on {champion.promoted_at:%Y-%m-%d}",
            "put it back, and make the change in a file of a new version",
        )
    return prompt


async def follow_promotions(user: UsesPrompts, settings: Settings, engine: Engine) -> None:
    """Look every ``evaluation.champion_refresh`` seconds which prompt is in use, for ever.

    A prompt whose file cannot be used here is told and not taken: the one in hand goes on.
    """
    while True:
        await asyncio.sleep(settings.evaluation.champion_refresh)
        try:
            prompts = await asyncio.to_thread(current_prompts, settings, engine)
        except LedgerError as error:
            log.warning("promotions_not_read", reason=str(error))
            continue
        except ConfigError as error:
            log.error(  # noqa: TRY400  # the reason says it all
                "promoted_prompt_not_usable", reason=str(error), goes_on_with=user.prompts.group.version
            )
            continue
        before, after = user.prompts.group.version, prompts.group.version
        if before != after:
            log.info("prompt_changed", before=before, after=after)
            user.prompts = prompts
