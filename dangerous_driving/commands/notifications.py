"""`dangerous-driving notifications …`: what is told to whom, and what became of it."""

from __future__ import annotations

import base64
import secrets
from datetime import UTC, datetime
from typing import Annotated, Literal

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from dangerous_driving.commands.alerts import ConfigOption, DataDirOption, opened
from dangerous_driving.errors import ConfigError

app = typer.Typer(help="Notifications: their outbox, and a test of a receiver.", no_args_is_help=True)
out = Console()

ReceiverOption = Annotated[str | None, typer.Option(help="Only of this receiver.")]


@app.command("list")
def list_(
    state: Annotated[
        Literal["pending", "sent", "merged", "failed"] | None, typer.Option(help="Only in this state.")
    ] = None,
    receiver: ReceiverOption = None,
    limit: Annotated[int, typer.Option(min=1, max=1000, help="How many, the newest first.")] = 20,
    config: ConfigOption = None,
    data_dir: DataDirOption = None,
) -> None:
    """The newest messages and what became of them."""
    from dangerous_driving.ledger.notifications import list_notifications

    with opened(config, data_dir, "notifications") as (_, engine):
        found = list_notifications(engine, limit=limit, state=state, receiver=receiver)
    table = Table("made", "receiver", "kind", "level", "camera", "state", "attempts", "what is wrong, or why it waits")
    for row in found:
        waits = f"{row.held_reason}, until {row.due_at:%Y-%m-%d %H:%M} UTC" if row.held_reason else ""
        table.add_row(
            f"{row.created_at:%Y-%m-%d %H:%M:%S}", row.receiver, row.kind, row.level, row.camera_id or "", row.state,
            str(row.attempts), escape(row.last_error or (waits if row.state == "pending" else "")),
        )  # fmt: skip
    out.print(table)


@app.command()
def retry(receiver: ReceiverOption = None, config: ConfigOption = None, data_dir: DataDirOption = None) -> None:
    """Send failed messages again."""
    from dangerous_driving.ledger import notifications

    with opened(config, data_dir, "notifications") as (_, engine):
        count = notifications.retry(engine, now=datetime.now(UTC), receiver=receiver)
    out.print(f"{count} failed messages are pending again", highlight=False)


@app.command("test")
def send_test(
    receiver: Annotated[str, typer.Argument(help="Its name in notifications.receivers.")], config: ConfigOption = None
) -> None:
    """Send a test message to a receiver now; neither database nor service is needed."""
    from dangerous_driving import settings as settings_module
    from dangerous_driving.contracts import RiskLevel
    from dangerous_driving.notifications.opening import open_posts
    from dangerous_driving.notifications.plan import notification_id_of
    from dangerous_driving.notifications.rendering import Item

    settings = settings_module.load(config)
    now = datetime.now(UTC)
    for post in open_posts(settings):
        if post.receiver.name == receiver:
            item = Item(notification_id_of(receiver, f"test:{now.isoformat()}"), "test", RiskLevel.NONE, None)
            try:
                post.channel.deliver(item, post.renderer.render(item, at=now))
            finally:
                post.channel.close()
            out.print(f"{receiver} has taken the test message", highlight=False)
            return
    known = ", ".join(each.name for each in settings.notifications.receivers) or "none"
    raise ConfigError("RECEIVER", f"there is no receiver {receiver!r}", f"those of the settings are: {known}")


@app.command("make-secret")
def make_secret() -> None:
    """Print a new secret for a signed webhook."""
    out.print("whsec_" + base64.b64encode(secrets.token_bytes(32)).decode(), highlight=False, soft_wrap=True)
