"""The Flink job: detection results from the topic -> tasks on the topic, by the same pure function as the service.

Runs in an environment of its own (requirements-flink.txt), which has PyFlink and this package, not its dependencies; so it
takes arguments instead of settings. `infra/flink/job.py` starts it with those of the settings file.

The service `tasks` runs beside it for the ledger, and sets aside what cannot be used; here such a message makes no task.

Order: a partition is read, worked on and written by one chain of operators, so a camera's tasks keep their order.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from pathlib import Path

from dangerous_driving.errors import ContractError
from dangerous_driving.tasks.derivation import tasks_from_message

#: ms; brokers allow 15 minutes at most by default, and Flink's own default of an hour is refused
TRANSACTION_TIMEOUT = 600_000
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


SOURCE = """
CREATE TABLE detection_results (`key` BYTES, `value` BYTES) WITH (
    'connector' = 'kafka', 'topic' = 'detection-results', 'properties.bootstrap.servers' = '{servers}',
    'properties.group.id' = '{group}', 'scan.startup.mode' = 'group-offsets',
    'properties.auto.offset.reset' = 'earliest', 'properties.isolation.level' = 'read_committed',
    'key.format' = 'raw', 'key.fields' = 'key', 'value.format' = 'raw', 'value.fields-include' = 'EXCEPT_KEY')
"""

SINK = """
CREATE TABLE assessment_tasks (`key` BYTES, `value` BYTES) WITH (
    'connector' = 'kafka', 'topic' = 'assessment-tasks', 'properties.bootstrap.servers' = '{servers}',
    'key.format' = 'raw', 'key.fields' = 'key', 'value.format' = 'raw', 'value.fields-include' = 'EXCEPT_KEY',
    'sink.delivery-guarantee' = '{guarantee}', 'sink.transactional-id-prefix' = '{group}',
    'properties.transaction.timeout.ms' = '{timeout}', 'properties.acks' = 'all', 'properties.enable.idempotence' = 'true',
    'properties.linger.ms' = '10', 'properties.compression.type' = 'lz4')
"""

JOB = """
INSERT INTO assessment_tasks SELECT task_key, task
FROM detection_results, LATERAL TABLE(tasks_of(`key`, `value`)) AS made(task_key, task)
"""


def arguments(given: Sequence[str] | None = None) -> argparse.Namespace:
    """What the job is told."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--bootstrap-servers", required=True)
    parser.add_argument("--group", required=True, help="consumer group and prefix of the transactions")
    parser.add_argument("--guarantee", choices=["at-least-once", "exactly-once"], required=True)
    parser.add_argument("--checkpoint-interval", type=float, default=10.0, help="s")
    parser.add_argument("--checkpoints", type=Path, required=True, help="folder")
    parser.add_argument("--parallelism", type=int, default=2)
    parser.add_argument("--jars", type=Path, required=True, help="folder of the Kafka connector")
    parser.add_argument("--target", default="", help="host:port of a Flink cluster; default: a mini-cluster in here")
    parser.add_argument("--savepoint", default="", help="checkpoint or savepoint to go on from")
    return parser.parse_args(given)


def main(given: Sequence[str] | None = None) -> int:
    """Start the job; on a mini-cluster, until it is ended."""
    import pyflink
    from pyflink.common import Configuration
    from pyflink.table import DataTypes, EnvironmentSettings, TableEnvironment
    from pyflink.table.udf import udtf

    asked = arguments(given)
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
    names = {
        "servers": asked.bootstrap_servers, "group": asked.group, "guarantee": asked.guarantee,
        "timeout": TRANSACTION_TIMEOUT,
    }  # fmt: skip
    environment.execute_sql(SOURCE.format(**names))
    environment.execute_sql(SINK.format(**names))
    running = environment.execute_sql(JOB)
    client = running.get_job_client()
    sys.stdout.write(f"job {client.get_job_id() if client else '?'} runs, {asked.guarantee}\n")
    sys.stdout.flush()
    if not asked.target:
        running.wait()
    return 0


if __name__ == "__main__":
    sys.exit(main())
