"""What the ledger and the brokers know, as metrics: for what no process that Prometheus asks can tell.

Window runs live for seconds inside Dagster, a group's lag must be seen while its members are dead, and how the keys, budgets
and windows stand is shared by all processes. One exporter is enough; a second one tells the same, and rules take the maximum.
While the ledger or the brokers are away the last values stand, the failed looks are counted, and the log says why.
"""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable, Collection, Mapping
from datetime import datetime

import structlog
from kafka import KafkaAdminClient
from prometheus_client import Gauge
from sqlalchemy import Engine

from dangerous_driving.assessment.key_pool import Budget, Spent, key_usage
from dangerous_driving.assessment.keys import STATES, configured_hashes, policy_of
from dangerous_driving.contracts import Lane
from dangerous_driving.errors import BrokerError, ConfigError, LedgerError
from dangerous_driving.ledger.backlog import backlog, ended_calls
from dangerous_driving.ledger.spending import lane_spending
from dangerous_driving.messaging.topics import Topic, lag_of, open_admin
from dangerous_driving.observability.metrics import (
    API_KEYS,
    BUDGET_USED,
    GROUP_LAG,
    INCIDENTS_OPEN,
    LLM_CALLS,
    LLM_LATENCY,
    LOOKS_FAILED,
    TASKS_CLAIMED,
    TASKS_OLDEST,
    TASKS_WAITING,
    WINDOW_LENGTH,
    WINDOW_OVERDUE,
    WINDOWS_DUE,
    exemplar,
)
from dangerous_driving.settings import Settings

log = structlog.get_logger(__name__)

#: Their calls are made by processes that end before anybody could ask them; the other lanes' services tell of their own.
SHORT_LIVED = (Lane.WINDOW, Lane.EVALUATION)
#: s until a call that ended is looked at: its row may be in a transaction that is not over
SETTLE = 2.0
#: s beyond ``llm.timeout`` that a call may take until it ends (waits for the database)
CALL_MARGIN = 300.0


class Exporter:
    """Looks at ledger and brokers until it is stopped.

    Args:
        settings: the whole tree.
        engine: of the ledger.
        follows: the consumer groups, and the topics that each reads.
    """

    def __init__(self, settings: Settings, engine: Engine, follows: Mapping[str, Collection[Topic]]) -> None:
        self._settings = settings
        self._engine = engine
        self._follows = follows
        self._asked_until: datetime | None = None
        self._admin: KafkaAdminClient | None = None
        self._told: dict[Gauge, set[str]] = {}
        for part in ("ledger", "brokers"):
            LOOKS_FAILED.labels(part)

    def run(self, stop: threading.Event) -> None:
        """Work until `stop`. The brokers are asked in a thread of their own: their absence holds up nothing else."""
        brokers = threading.Thread(target=self._repeat, args=(self.look_at_brokers, stop), name="brokers", daemon=True)
        brokers.start()
        self._repeat(self.look_at_ledger, stop)
        brokers.join(self._settings.kafka.request_timeout)
        if self._admin is not None:
            self._admin.close()

    def look_at_ledger(self) -> None:
        """One look; the last values stand where the database does not answer."""
        try:
            self._tell_backlog()
            self._tell_keys()
            self._tell_budgets()
            self._tell_calls()
        except LedgerError as error:
            LOOKS_FAILED.labels("ledger").inc()
            log.warning("ledger_not_looked_at", reason=str(error))
        except ConfigError as error:  # the key file is being changed, or was changed for the worse
            LOOKS_FAILED.labels("ledger").inc()
            log.warning("keys_not_looked_at", reason=str(error))

    def look_at_brokers(self) -> None:
        """One look; the last values stand where no broker answers."""
        kafka = self._settings.kafka
        try:
            self._admin = self._admin or open_admin(kafka, "dangerous-driving.exporter")
            for group, topics in self._follows.items():
                lags: Counter[Topic] = Counter(dict.fromkeys(topics, 0))
                for (topic, _), lag in lag_of(kafka, self._admin, group, follows=topics).items():
                    lags[topic] += lag
                for topic, lag in lags.items():
                    GROUP_LAG.labels(group, topic.value).set(lag)
        except BrokerError as error:
            LOOKS_FAILED.labels("brokers").inc()
            log.warning("brokers_not_looked_at", reason=str(error))
            if self._admin is not None:
                self._admin.close()
                self._admin = None

    def _repeat(self, look: Callable[[], None], stop: threading.Event) -> None:
        while not stop.is_set():
            look()
            stop.wait(self._settings.observability.exporter_interval)

    def _tell_backlog(self) -> None:
        windows = self._settings.windows
        found = backlog(self._engine, lateness=windows.lateness)
        # a lane for which nothing waits has no row: it is 0, not as it was
        self._tell(TASKS_WAITING, dict.fromkeys(Lane, 0.0) | {item.lane: float(item.tasks) for item in found.waiting})
        self._tell(TASKS_OLDEST, dict.fromkeys(Lane, 0.0) | {item.lane: item.oldest for item in found.waiting})
        self._tell(INCIDENTS_OPEN, {kind: float(count) for kind, count in found.incidents.items()})
        TASKS_CLAIMED.set(found.claimed)
        WINDOWS_DUE.set(found.windows_due)
        WINDOW_OVERDUE.set(found.overdue)
        WINDOW_LENGTH.set(windows.length)

    def _tell_keys(self) -> None:
        keys = self._settings.keys
        configured = configured_hashes(keys)
        usages = {usage.key_hash: usage.status for usage in key_usage(self._engine, policy_of(keys))}
        # one that nobody has used yet has no row, and nothing is wrong with it
        states = Counter(usages.get(key_hash, "available") for key_hash in configured)
        for state in STATES:
            API_KEYS.labels(state).set(states[state])

    def _tell_budgets(self) -> None:
        spent = lane_spending(self._engine)
        for lane, budget in self._settings.keys.budgets.items():
            calls, cost = spent.get(lane, (0, 0.0))
            BUDGET_USED.labels(lane).set(Spent(calls, cost).share(Budget(budget.calls, budget.cost)))

    def _tell_calls(self) -> None:
        self._asked_until, calls = ended_calls(
            self._engine,
            self._asked_until,
            lanes=SHORT_LIVED,
            longest=self._settings.llm.timeout + CALL_MARGIN,
            settle=SETTLE,
        )
        for call in calls:
            # a row says more of an answer than the pool, to which one that could not be understood was one
            LLM_CALLS.labels(call.key_hash, "ok" if call.status == "unparsable" else call.status).inc()
            if call.status in {"ok", "unparsable"}:
                LLM_LATENCY.observe(call.seconds, exemplar("task_id", call.task_id))

    def _tell(self, gauge: Gauge, values: Mapping[str, float]) -> None:
        for name, value in values.items():
            gauge.labels(str(name)).set(value)
        before = self._told.get(gauge, set())
        self._told[gauge] = {str(name) for name in values}
        for name in before - self._told[gauge]:
            gauge.remove(name)
