"""Runs that failed and an endpoint that may not be asked: recorded in the ledger, logged, and posted to the webhook."""

import dagster as dg
import structlog
from sqlalchemy import Engine

from dangerous_driving.assessment.keys import configured_hashes
from dangerous_driving.contracts import Lane
from dangerous_driving.defs.resources import DatabaseResource
from dangerous_driving.errors import ConfigError
from dangerous_driving.ledger.incidents import HELD, Budget, Incident, end, hold_reason, record
from dangerous_driving.observability.webhook import post
from dangerous_driving.settings import OperationsSettings, Settings

log = structlog.get_logger(__name__)

#: Characters of a run's error that are kept.
ERROR_LENGTH = 500


def tell(engine: Engine, settings: OperationsSettings, incident: Incident) -> bool:
    """Record it; a new one is logged and posted. Returns whether it is new."""
    new = record(engine, incident)
    if new:
        log.error("incident", kind=incident.kind, subject=incident.subject, reason=incident.message)
        if settings.webhook is not None:
            body: dict[str, object] = {
                "text": f"{incident.kind}: {incident.subject}: {incident.message}",
                "kind": incident.kind,
                "subject": incident.subject,
                "message": incident.message,
            }
            post(settings.webhook, body, timeout=settings.webhook_timeout)
    return new


def budget_of(settings: Settings, lane: Lane) -> Budget | None:
    """The lane's daily budget, if the settings give one."""
    return next((budget for name, budget in settings.keys.budgets.items() if name == lane.value), None)


def held_back(engine: Engine, settings: Settings, lane: Lane) -> str | None:
    """Why no run of this lane should be launched now, or None. The key file is read anew: keys come and go in it."""
    try:
        keys = configured_hashes(settings.keys)
    except ConfigError as error:  # a run could not read them either
        return str(error)
    return hold_reason(engine, lane, budget_of(settings, lane), keys=keys)


def failed_runs_sensor(settings: Settings) -> dg.SensorDefinition:
    """Tells of every run that failed, of whatever job; what a window's run leaves, the next one takes up."""

    @dg.run_failure_sensor(
        name="failed_runs",
        default_status=dg.DefaultSensorStatus.RUNNING,
        minimum_interval_seconds=settings.windows.sensor_interval,
        monitor_all_code_locations=False,
        description="Records runs that failed, logs them and posts them to `operations.webhook`.",
    )
    def failed_runs(context: dg.RunFailureSensorContext, database: DatabaseResource) -> None:
        run = context.dagster_run
        tell(
            database.engine,
            settings.operations,
            Incident("run_failed", f"{run.job_name} {run.run_id}", failure_text(context)),
        )

    return failed_runs


def failure_text(context: dg.RunFailureSensorContext) -> str:
    """What the failed step said, else what Dagster says of the run."""
    for event in context.get_step_failure_events():
        failure = event.step_failure_data
        if failure.user_failure_data is not None and failure.user_failure_data.description:
            return failure.user_failure_data.description[:ERROR_LENGTH]
        if failure.error is not None:
            return failure.error.message.strip()[:ERROR_LENGTH]
    return (context.failure_event.message or "it ended without a message")[:ERROR_LENGTH]


def endpoint_sensor(settings: Settings) -> dg.SensorDefinition:
    """Tells when the window lane is held back, and when it goes on; `closed_windows` launches nothing in between."""

    @dg.sensor(
        name="endpoint_state",
        # it launches nothing; Dagster wants to know of what kind it is
        target=None,
        minimum_interval_seconds=settings.windows.sensor_interval,
        default_status=dg.DefaultSensorStatus.RUNNING,
        description="Keys and budget of the window lane: while they allow no call, `closed_windows` holds its runs back.",
    )
    def endpoint_state(database: DatabaseResource) -> dg.SkipReason:
        held = held_back(database.engine, settings, Lane.WINDOW)
        if held:
            new = tell(database.engine, settings.operations, Incident(HELD, Lane.WINDOW.value, held))
            return dg.SkipReason(f"window runs are held back{' from now on' if new else ''}: {held}")
        over = end(database.engine, HELD, Lane.WINDOW.value)
        return dg.SkipReason("window runs go on" if over else "nothing holds window runs back")

    return endpoint_state
