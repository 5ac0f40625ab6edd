"""The Flink job: detection results from the topic -> tasks on the topic, by the same pure function as the service.

Runs in an environment of its own (requirements-flink.txt), which has PyFlink and this package, not its dependencies; so it
takes arguments instead of settings. `infra/flink/job.py` starts it with those of the settings file.

The service `tasks` runs beside it for the ledger, and sets aside what cannot be used; here such a message makes no task.

Order: a partition is read, worked on and written by one chain of operators, so a camera's tasks keep their order.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path

from dangerous_driving.errors import ContractError
from dangerous_driving.tasks.derivation import tasks_from_message

#: ms; brokers allow 15 minutes at most by default, and Flink's own default of an hour is refused. For so long a dead job
#: holds back who reads committed messages; and so long it may be down without its last transaction being given up.
TRANSACTION_TIMEOUT = 600_000
#: bytes before compression; as much as the Python producer allows. `tasks_from_message` makes none that is larger
MAX_REQUEST_BYTES = 2 * 1024 * 1024
#: environment variable of the clients' login: whoever lists the processes sees their arguments
LOGIN_VARIABLE = "TASKS_FLINK_JAAS_CONFIG"
#: ms a bundle of messages waits for more on its way to the Python worker; Flink's default of a second is for batches
BUNDLE_TIME = 20


def tasks_of(key: bytes | None, value: bytes | None) -> Iterator[tuple[bytes, bytes]]:
    """Keys and messages for ``assessment-tasks``; none for what cannot be used."""
    try:
        yield from tasks_from_message(value or b"", key, datetime.now(UTC))
    except ContractError:
        return  # the tasks service, which reads the same messages, sends it to dead-letter


def configuration(asked: argparse.Namespace, flink_home: Path) -> dict[str, str]:
    """Flink's settings for this job; PyFlink keeps Flink in ``flink_home``."""
    exactly = asked.guarantee == "exactly-once"
    jars = sorted(asked.jars.glob("*.jar"))
    if asked.target:  # a cluster knows nothing of Python: the job brings what calls it
        jars += sorted((flink_home / "opt").glob("flink-python-*.jar"))
    settings = {
        "pipeline.name": "tasks-from-detection",
        "pipeline.jars": ";".join(f"file://{jar}" for jar in jars),
        "parallelism.default": str(asked.parallelism),
        "execution.checkpointing.interval": f"{round(asked.checkpoint_interval * 1000)} ms",
        "execution.checkpointing.mode": "EXACTLY_ONCE" if exactly else "AT_LEAST_ONCE",
        "execution.checkpointing.dir": asked.checkpoints.resolve().as_uri(),
        "execution.checkpointing.storage": "filesystem",
        "execution.checkpointing.externalized-checkpoint-retention": "RETAIN_ON_CANCELLATION",
        "restart-strategy.type": "fixed-delay",
        "restart-strategy.fixed-delay.attempts": str(2**31 - 1),
        "restart-strategy.fixed-delay.delay": "1 s",
        # by their paths: else Flink starts whatever is called python on PATH, and the job restarts for ever
        "python.executable": sys.executable,
        "python.client.executable": sys.executable,
        "python.fn-execution.bundle.time": str(BUNDLE_TIME),
    }
    if asked.savepoint:
        settings["execution.state-recovery.path"] = asked.savepoint
    if asked.target:
        host, _, port = asked.target.rpartition(":")
        settings |= {"execution.target": "remote", "rest.address": host, "rest.port": port}
    return settings


def source(asked: argparse.Namespace, login: str | None) -> dict[str, str]:
    """Options of the table that is read."""
    return _topic("detection-results", asked, login) | {
        "properties.group.id": asked.group,
        "scan.startup.mode": "group-offsets",
        "properties.auto.offset.reset": "earliest",
        "properties.isolation.level": "read_committed",
    }


def sink(asked: argparse.Namespace, login: str | None) -> dict[str, str]:
    """Options of the table that is written."""
    return _topic("assessment-tasks", asked, login) | {
        "sink.delivery-guarantee": asked.guarantee,
        "sink.transactional-id-prefix": asked.group,
        "properties.transaction.timeout.ms": str(TRANSACTION_TIMEOUT),
        "properties.acks": "all",
        "properties.enable.idempotence": "true",
        "properties.linger.ms": "10",
        "properties.compression.type": asked.compression,
        "properties.max.request.size": str(MAX_REQUEST_BYTES),
    }


def _topic(name: str, asked: argparse.Namespace, login: str | None) -> dict[str, str]:
    properties = {"bootstrap.servers": asked.bootstrap_servers, **dict(asked.client_property)}
    if login is not None:
        properties["sasl.jaas.config"] = login
    return {
        "connector": "kafka",
        "topic": name,
        "key.format": "raw",
        "key.fields": "key",
        "value.format": "raw",
        "value.fields-include": "EXCEPT_KEY",
        **{f"properties.{key}": value for key, value in properties.items()},
    }


def table(name: str, options: Mapping[str, str]) -> str:
    """The statement that makes a table of keys and messages; options may hold any character."""
    written = ", ".join(f"{_literal(option)} = {_literal(value)}" for option, value in options.items())
    return f"CREATE TABLE {name} (`key` BYTES, `value` BYTES) WITH ({written})"


def _literal(text: str) -> str:
    return "'" + text.replace("'", "''") + "'"


JOB = """
INSERT INTO assessment_tasks SELECT task_key, task
FROM detection_results, LATERAL TABLE(tasks_of(`key`, `value`)) AS made(task_key, task)
"""


def arguments(given: Sequence[str] | None = None) -> argparse.Namespace:
    """What the job is told."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--bootstrap-servers", required=True)
    parser.add_argument(
        "--client-property", type=_property, action="append", default=[], metavar="NAME=VALUE",
        help=f"of Kafka's clients; their login, which is secret, comes in the environment as {LOGIN_VARIABLE}",
    )  # fmt: skip
    parser.add_argument("--compression", default="lz4", help="of the tasks")
    parser.add_argument("--group", required=True, help="consumer group and prefix of the transactions")
    parser.add_argument("--guarantee", choices=["at-least-once", "exactly-once"], required=True)
    parser.add_argument("--checkpoint-interval", type=float, default=10.0, help="s")
    parser.add_argument("--checkpoints", type=Path, required=True, help="folder")
    parser.add_argument("--parallelism", type=int, default=2)
    parser.add_argument("--jars", type=Path, required=True, help="folder of the Kafka connector")
    parser.add_argument("--target", default="", help="host:port of a Flink cluster; default: a mini-cluster in here")
    parser.add_argument("--savepoint", default="", help="checkpoint or savepoint to go on from")
    return parser.parse_args(given)


def _property(text: str) -> tuple[str, str]:
    name, _, value = text.partition("=")
    return name, value


def main(given: Sequence[str] | None = None) -> int:
    """Start the job; on a mini-cluster, until it is ended."""
    import pyflink
    from pyflink.common import Configuration
    from pyflink.table import DataTypes, EnvironmentSettings, TableEnvironment
    from pyflink.table.udf import udtf

    asked = arguments(given)
    login = os.environ.pop(LOGIN_VARIABLE, None)  # of no use to the processes that this one starts
    # workers as processes of the task managers, never in this one, which may end after it has submitted the job
    os.environ["_python_worker_execution_mode"] = "process"  # noqa: SIM112 - PyFlink's own name
    settings = Configuration()
    for name, value in configuration(asked, Path(pyflink.__file__).parent).items():
        settings.set_string(name, value)
    environment = TableEnvironment.create(
        EnvironmentSettings.new_instance().in_streaming_mode().with_configuration(settings).build()
    )
    environment.create_temporary_system_function(
        "tasks_of",
        udtf(
            tasks_of,
            input_types=[DataTypes.BYTES(), DataTypes.BYTES()],
            result_types=[DataTypes.BYTES(), DataTypes.BYTES()],
        ),
    )
    environment.execute_sql(table("detection_results", source(asked, login)))
    environment.execute_sql(table("assessment_tasks", sink(asked, login)))
    running = environment.execute_sql(JOB)
    client = running.get_job_client()
    sys.stdout.write(f"job {client.get_job_id() if client else '?'} runs, {asked.guarantee}\n")
    sys.stdout.flush()
    if not asked.target:
        with contextlib.suppress(KeyboardInterrupt):
            running.wait()
    return 0


if __name__ == "__main__":
    sys.exit(main())
