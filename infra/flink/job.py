"""Start the Flink job with the settings in force: ``python -m infra.flink.job [--config settings.yaml] [--target host:port]``.

Refuses unless ``tasks.generator: flink`` is set, by which the service `tasks` knows that it must not send tasks itself:
never both. Without a target the job runs on a mini-cluster in this process, until Ctrl-C or SIGTERM.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NoReturn

from dangerous_driving import settings as settings_module
from dangerous_driving.errors import ConfigError, DangerousDrivingError
from dangerous_driving.settings import Settings
from dangerous_driving.settings.tasks import Generator
from dangerous_driving.tasks.flink_job import LOGIN_VARIABLE
from infra.flink.cluster import PYTHON, connector, flink_home
from infra.flink.connection import client_properties, compression, login
from infra.kafka.cluster import ClusterError


def job_arguments(settings: Settings) -> list[str]:
    """What the job is told of the settings.

    Raises:
        ConfigError: the Python service sends the tasks, or a setting cannot be carried over.
    """
    if settings.tasks.generator is not Generator.FLINK:
        raise ConfigError(
            "tasks.generator",
            f"it is {settings.tasks.generator}, so the service `tasks` sends the tasks",
            "set it to flink for the service and for this job, and restart the service first",
        )
    return [
        "--bootstrap-servers", settings.kafka.bootstrap_servers,
        *(f"--client-property={name}={value}" for name, value in client_properties(settings.kafka).items()),
        "--compression", compression(settings.kafka),
        "--group", f"{settings.kafka.group_prefix}.tasks-flink",
        "--guarantee", settings.tasks.guarantee.value,
        "--checkpoint-interval", str(settings.tasks.checkpoint_interval),
        "--checkpoints", str(settings.tasks.checkpoints),
        "--parallelism", str(settings.tasks.parallelism),
    ]  # fmt: skip


def main(given: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--config", type=Path, default=None)
    parser.add_argument("--target", default="", help="host:port of a Flink cluster; default: a mini-cluster here")
    parser.add_argument("--savepoint", default="", help="checkpoint to go on from")
    asked = parser.parse_args(given)
    try:
        settings = settings_module.load(asked.config)
        arguments = job_arguments(settings)
        flink_home()
        jars = connector()
    except (DangerousDrivingError, ClusterError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    command = [str(PYTHON), "-m", "dangerous_driving.tasks.flink_job", "--jars", str(jars), *arguments]
    command += ["--target", asked.target] if asked.target else []
    command += ["--savepoint", asked.savepoint] if asked.savepoint else []
    environment = dict(os.environ)
    if (secret := login(settings.kafka)) is not None:
        environment[LOGIN_VARIABLE] = secret
    return _become(command, environment)


def _become(command: list[str], environment: Mapping[str, str]) -> NoReturn:
    # in the place of this process, so that a signal that ends it ends the job: one left behind would send all tasks twice
    os.execve(command[0], command, environment)  # noqa: S606 - there is no shell to want


if __name__ == "__main__":
    sys.exit(main())
