"""`dangerous-driving topics …`: topics as code, how far groups are behind, and what could not be used."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from dangerous_driving.errors import ConfigError

if TYPE_CHECKING:
    from dangerous_driving.messaging.dead_letter import StoredLetter
    from dangerous_driving.settings import Settings

app = typer.Typer(help="Kafka topics, consumer lag, dead letters.", no_args_is_help=True)
dead_letter = typer.Typer(help="Messages that could not be used, whole, with the reason.", no_args_is_help=True)
app.add_typer(dead_letter, name="dead-letter")

out = Console()
err = Console(stderr=True)

ConfigOption = Annotated[Path | None, typer.Option("--config", help="YAML settings file (default: $DD_CONFIG).")]
TopicOption = Annotated[str | None, typer.Option("--topic", help="Only what lay on this topic.")]
GroupOption = Annotated[str | None, typer.Option("--group", help="Only what this consumer group set aside.")]


def _settings(path: Path | None) -> Settings:
    from dangerous_driving import settings

    return settings.load(path)


@app.command("apply")
def topics_apply(
    add_partitions: Annotated[
        bool,
        typer.Option(
            "--add-partitions",
            help="Also give topics more partitions; messages of a camera then change theirs, so do it while none are under way.",
        ),
    ] = False,
    config: ConfigOption = None,
) -> None:
    """Create the topics that are missing, and set what differs from the table."""
    from dangerous_driving.messaging import topics

    for line in topics.apply(_settings(config).kafka, add_partitions=add_partitions):
        changes = f" ({', '.join(line.changes)})" if line.changes else ""
        out.print(
            f"{line.state.topic} {line.outcome}: {line.state.partitions} partitions, kept {line.state.replication} times{changes}",
            highlight=False,
            soft_wrap=True,
        )


@app.command("check")
def topics_check(config: ConfigOption = None) -> None:
    """Compare the topics with the table; name each difference and its remedy, exit code 1 if there is one."""
    from dangerous_driving.messaging import topics

    problems = topics.check(_settings(config).kafka)
    for problem in problems:
        out.print(problem, highlight=False, soft_wrap=True)
    if problems:
        raise typer.Exit(1)
    out.print("topics as wanted")


@app.command("describe")
def topics_describe(config: ConfigOption = None) -> None:
    """Show the topics as the brokers have them."""
    from dangerous_driving.messaging import topics

    table = Table("topic", "partitions", "kept", "in sync", "retention", "min in sync", "largest message")
    for topic, state in topics.describe(_settings(config).kafka).items():
        settings = state.configuration
        retention = settings.get("retention.ms", "")
        table.add_row(
            topic.value,
            str(state.partitions),
            str(state.replication),
            str(state.in_sync),
            f"{int(retention) / 3_600_000:g} h" if retention else "-",
            settings.get("min.insync.replicas", "-"),
            settings.get("max.message.bytes", "-"),
        )
    out.print(table)


@app.command("lag")
def topics_lag(
    as_json: Annotated[bool, typer.Option("--json", help="For scripts: {group: {topic: messages}}.")] = False,
    config: ConfigOption = None,
) -> None:
    """Show how many messages each consumer group has before it."""
    from dangerous_driving.services import EXTRA_GROUPS, GROUPS, group_name, lag_by_topic

    settings = _settings(config)
    lags = {
        group_name(settings, service): {
            topic.value: lag for topic, lag in sorted(lag_by_topic(settings, service).items())
        }
        for service in [*GROUPS, *(EXTRA_GROUPS if settings.redis.url else ())]
    }
    if as_json:
        sys.stdout.write(json.dumps(lags) + "\n")
        return
    table = Table("group", "topic", "lag")
    for group, by_topic in lags.items():
        for topic, lag in by_topic.items():
            table.add_row(group, topic, str(lag))
    out.print(table)


def _chosen(letters: Iterable[StoredLetter], topic: str | None, group: str | None) -> list[StoredLetter]:
    return [
        stored
        for stored in letters
        if (topic is None or (stored.letter is not None and stored.letter.source_topic == topic))
        and (group is None or (stored.letter is not None and stored.letter.consumer_group == group))
    ]


@dead_letter.command("list")
def letters_list(
    topic: TopicOption = None,
    group: GroupOption = None,
    limit: Annotated[int, typer.Option(help="The newest so many.")] = 50,
    config: ConfigOption = None,
) -> None:
    """List what was set aside, oldest first."""
    from dangerous_driving.messaging.dead_letter import read_letters

    found = _chosen(read_letters(_settings(config).kafka), topic, group)
    table = Table("letter", "at (UTC)", "from", "group", "reason")
    for stored in found[-limit:] if limit else []:
        letter = stored.letter
        if letter is None:
            table.add_row(stored.name, "", "", "", escape(f"the letter itself cannot be read: {stored.problem}"))
            continue
        place = f"{letter.source_topic}[{letter.source_partition}]@{letter.source_offset}"
        table.add_row(
            stored.name, f"{letter.failed_at:%Y-%m-%d %H:%M:%S}", place, letter.consumer_group, escape(letter.reason)
        )
    out.print(table)
    out.print(f"{len(found)} dead letters" + (f", the newest {limit} shown" if len(found) > limit else ""))


LettersArgument = Annotated[list[str], typer.Argument(help="Names as `list` shows them.")]


@dead_letter.command("show")
def letters_show(
    letter: Annotated[str, typer.Argument(help="Its name as `list` shows it.")],
    raw: Annotated[bool, typer.Option("--raw", help="Only the message's bytes, as they were.")] = False,
    config: ConfigOption = None,
) -> None:
    """Show one message with the reason."""
    from dangerous_driving.messaging.dead_letter import content, read_letters

    [stored] = _named(read_letters(_settings(config).kafka), [letter])
    found = stored.letter
    if found is None:
        raise ConfigError(f"letter {letter}", f"it cannot be read ({stored.problem})", "name another one")
    value = content(found)
    if raw:
        sys.stdout.buffer.write(value)
        return
    out.print(
        f"from     {found.source_topic}[{found.source_partition}] at offset {found.source_offset}\n"
        f"by       {found.consumer_group} at {found.failed_at:%Y-%m-%d %H:%M:%S} UTC\n"
        f"field    {escape(found.field) or '-'}\n"
        f"reason   {escape(found.reason)}\n"
        f"bytes    {found.value_bytes or len(value)}{' (only the beginning is kept)' if found.value_bytes else ''}\n"
        f"message  {escape(value.decode(errors='backslashreplace'))}",
        highlight=False,
        soft_wrap=True,
    )


@dead_letter.command("replay")
def letters_replay(
    letters: Annotated[list[str] | None, typer.Argument(help="Names as `list` shows them.")] = None,
    every: Annotated[bool, typer.Option("--all", help="All of them, or all of --topic and --group.")] = False,
    topic: TopicOption = None,
    group: GroupOption = None,
    config: ConfigOption = None,
) -> None:
    """Send messages again to the topic that they lay on, after what refused them was mended.

    All readers of that topic get them; derived ids make it harmless for those that had them already.
    """
    from dangerous_driving.messaging.dead_letter import read_letters, replay

    if bool(letters) == every:
        raise ConfigError("LETTERS", "neither letters nor --all are given, or both", "name letters, or use --all")
    kafka = _settings(config).kafka
    stored = read_letters(kafka)
    chosen = _chosen(stored, topic, group) if every else _named(stored, letters or [])
    for position in replay(kafka, chosen):
        out.print(f"sent to {position.topic}[{position.partition}] at offset {position.offset}", highlight=False)
    out.print(f"{len(chosen)} messages sent again")


def _named(letters: Iterable[StoredLetter], names: list[str]) -> list[StoredLetter]:
    found = {stored.name: stored for stored in letters if stored.name in names}
    for name in names:
        if name not in found:
            raise ConfigError(
                f"letter {name}", "there is none of that name", "see: dangerous-driving topics dead-letter list"
            )
    return [found[name] for name in names]
