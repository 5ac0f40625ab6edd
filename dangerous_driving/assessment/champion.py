"""The prompt in use: the one that was promoted last, taken up by running services without a restart."""

from __future__ import annotations

import asyncio
from typing import Protocol

import structlog
from sqlalchemy import Engine

from dangerous_driving.assessment.prompt import Prompt, load_prompt
from dangerous_driving.errors import ConfigError, LedgerError
from dangerous_driving.ledger.promotions import champion_of
from dangerous_driving.settings import LlmSettings, Settings

log = structlog.get_logger(__name__)


class UsesPrompt(Protocol):
    """Whose prompt is changed."""

    prompt: Prompt


def current_version(llm: LlmSettings, engine: Engine) -> str:
    """The version in use: the one promoted last, else ``llm.prompt_version``.

    Raises:
        LedgerError: the promotions cannot be read.
    """
    champion = champion_of(engine)
    return llm.prompt_version if champion is None else champion.prompt_version


def current_prompt(llm: LlmSettings, engine: Engine) -> Prompt:
    """The prompt in use, ready to render.

    Raises:
        ConfigError: its file is not here, or is not the one that was promoted.
        LedgerError: the promotions cannot be read.
    """
    champion = champion_of(engine)
    version = llm.prompt_version if champion is None else champion.prompt_version
    prompt = load_prompt(version, folder=llm.prompt_folder, longest_side=llm.image_longest_side)
    if champion is not None and prompt.digest != champion.prompt_digest:
        raise ConfigError(
            f"prompt {version}",
            f"its file is not the one that was promoted on {champion.promoted_at:%Y-%m-%d}",
            "put it back, and make the change in a file of a new version",
        )
    return prompt


async def follow_promotions(user: UsesPrompt, settings: Settings, engine: Engine) -> None:
    """Look every ``evaluation.champion_refresh`` seconds which prompt is in use, for ever.

    A prompt whose file cannot be used here is told and not taken: the one in hand goes on.
    """
    while True:
        await asyncio.sleep(settings.evaluation.champion_refresh)
        try:
            prompt = await asyncio.to_thread(current_prompt, settings.llm, engine)
        except LedgerError as error:
            log.warning("promotions_not_read", reason=str(error))
            continue
        except ConfigError as error:
            log.error(  # noqa: TRY400  # the reason says it all
                "promoted_prompt_not_usable", reason=str(error), goes_on_with=user.prompt.version
            )
            continue
        if prompt.version != user.prompt.version:
            log.info("prompt_changed", before=user.prompt.version, after=prompt.version)
            user.prompt = prompt
