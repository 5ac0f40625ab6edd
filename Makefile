# make demo    the whole platform on this machine (arguments: make demo ARGS="--source clip.mp4 --weights yolo.onnx")
# make test    installs what the tests need, Debian packages included, and runs them
# make test-ultralytics  the tests of the extra ultralytics alone; make test runs them where 25 GB of disk are free
# make test-flink  the Flink job on a real cluster, short
# make kafka   three Apache Kafka brokers on this machine, with all topics, until Ctrl-C
# make proof-kafka  nothing is lost or doubled while processes and brokers are killed (15 to 30 minutes)
# make proof-flink  the same for the Flink job, in both guarantees (6 to 30 minutes)
# make proof-bridge  bridges killed -9 in turn during 60 s of alerts with 50 clients (docs/proof/bridge.md)
# make benchmark-key-pool  the key pool against others (18 min; ARGS=--quick: 3 min); make proof-schedulers: kills schedulers for 5 min
# make grafana  the dashboards' JSON, from infra/grafana/boards; make benchmark-marts: dbt on ten million assessments (25 minutes; ARGS=--quick)
# make dashboards  each alert rule fires and resolves: a demo, real Prometheus and Alertmanager, one fault after the other (10 min)
# make pictures  the documentation's pictures of the page, from a demo that runs beside it
# make proof-logs  logs through rsyslog into OpenSearch, which is killed on the way: every line once
# make image   the container image, by docker or podman (docs/deployment.md)
# make proof-deployment  manifests on a real Kubernetes API server, the image's steps for real (as root on Debian, 30 minutes)
# make check   lint, types, format, definitions
SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help

PYTHON ?= python3
VENV := .venv
ULTRALYTICS := .venv-ultralytics
FLINK := .venv-flink
LITELLM := .venv-litellm
BIN := $(VENV)/bin
ARGS ?=
CACHE := .cache

# make weights trains the project's own weights on simulated scenes, anew
.PHONY: help demo image proof-deployment test-flink kafka kafka-jars flink-environment flink proof-kafka proof-flink test test-ultralytics check lock weights opencv-libraries s3-server system-packages clean proof-bridge page-scripts api-documents benchmark-litellm benchmark-key-pool proof-schedulers proof-backfill dashboards proof-logs pictures grafana benchmark-marts

help:
	@grep -E '^# make' Makefile | sed 's/^# //'

# Two stamps, so that `make demo` on a laptop does not wait for linters and test tools.
$(VENV)/.demo: requirements.txt pyproject.toml
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed: make PYTHON=python3.12 …")'
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --require-hashes --requirement requirements.txt
	$(BIN)/python -m pip install --quiet --no-deps --editable .
	touch $@

$(VENV)/.dev: requirements-dev.txt pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --require-hashes --requirement requirements-dev.txt
	$(BIN)/python -m pip install --quiet --no-deps --editable .
	touch $@ $(VENV)/.demo

demo: $(VENV)/.demo opencv-libraries
	$(BIN)/dangerous-driving demo $(ARGS)

# OpenCV's wheel needs two libraries that minimal Debian and Ubuntu images lack; desktops have them.
opencv-libraries: $(VENV)/.demo
	@$(BIN)/python -c 'import cv2' 2>/dev/null || { \
		if command -v apt-get >/dev/null && [ "$$(id -u)" = 0 ]; then \
			apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends libgl1 libglib2.0-0 >/dev/null; \
		else \
			echo "OpenCV cannot be loaded; on Debian or Ubuntu: sudo apt-get install libgl1 libglib2.0-0" >&2; exit 2; \
		fi; }

check: $(VENV)/.dev
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	DAGSTER_HOME="$$(mktemp -d)" $(BIN)/dagster definitions validate --module-name dangerous_driving.definitions --log-level warning

# A folder of its own for each run: any other pytest closes the common one to other users, and PostgreSQL, which is one where root
# tests, loses its data then. It stays when tests fail. The two large environments are built beside the first tests. SUBMAKE: a line with MAKE itself would be run by `make -n`.
SUBMAKE := $(MAKE)
test: $(VENV)/.dev opencv-libraries system-packages s3-server kafka-jars
	@free=$$(df --output=avail -BG . | tail -1 | tr -dc 0-9); \
	if [ "$$free" -ge 25 ]; then nice -n 19 $(SUBMAKE) --silent $(FLINK)/.ready $(ULTRALYTICS)/.ready & environments=$$!; fi; \
	scratch=$$(mktemp -d /tmp/dd-XXXXXX); \
	PYTEST_DEBUG_TEMPROOT=$$scratch $(BIN)/python -m pytest $(ARGS) || { kill $${environments:-} 2>/dev/null; exit 1; }; \
	rm -rf $$scratch; \
	if [ -n "$${environments:-}" ]; then wait $$environments && $(SUBMAKE) test-flink test-ultralytics; \
	else echo "SKIPPED the Flink job and the engine ultralytics: their environments need 25 GB of free disk, there are $$free GB"; fi

# The engine ultralytics and `weights export` for real, in an environment of their own: torch is several GB.
test-ultralytics: $(ULTRALYTICS)/.ready opencv-libraries
	$(ULTRALYTICS)/bin/python -m pytest -W default tests/ultralytics tests/detection/test_cpu.py

# Apache Kafka's jars through Maven, once; without Java or Maven its tests say so.
kafka-jars: $(VENV)/.demo system-packages
	@$(BIN)/python -m infra.kafka.cluster jars >/dev/null || test $$? = 3

kafka: $(VENV)/.demo
	$(BIN)/python -m infra.kafka.cluster run

proof-kafka: $(VENV)/.dev opencv-libraries system-packages kafka-jars
	$(BIN)/python -m proofs.kafka $(ARGS)

# The Flink job (tasks.generator: flink), on a mini-cluster in its own process; --target HOST:PORT for a real one.
flink: $(VENV)/.demo $(FLINK)/.ready
	$(BIN)/python -m infra.flink.job $(ARGS)

proof-flink: $(VENV)/.dev $(FLINK)/.ready opencv-libraries system-packages kafka-jars
	$(BIN)/python -m proofs.flink $(ARGS)

flink-environment: $(FLINK)/.ready

# The short version of proof-flink: 5,000 messages, a task manager killed, both guarantees. Without Java or Maven it says so.
test-flink: $(VENV)/.dev $(FLINK)/.ready kafka-jars
	@if command -v java >/dev/null && command -v mvn >/dev/null; then $(BIN)/python -m proofs.flink --quick; \
	elif [ -n "$${CI:-}" ]; then echo "no Java or Maven" >&2; exit 2; \
	else echo "SKIPPED the Flink job: Java and Maven are missing"; fi

# PyFlink pins what it needs to versions of its own, so it has an environment of its own.
$(FLINK)/.ready: requirements-flink.txt
	test -x $(FLINK)/bin/python || $(PYTHON) -m venv $(FLINK)
	$(FLINK)/bin/python -m pip install --quiet --require-hashes --requirement requirements-flink.txt
	$(FLINK)/bin/python -m pip install --quiet --no-deps --editable .
	touch $@

# The image of all services, by whichever of the two is there.
VERSION := $(shell sed -n 's/^version = "\(.*\)"/\1/p' pyproject.toml)
image:
	@builder=$$(command -v docker || command -v podman || true); \
	test -n "$$builder" || { echo "neither docker nor podman is on PATH" >&2; exit 2; }; \
	"$$builder" build --file infra/image/Dockerfile --tag dangerous-driving:$(VERSION) $(ARGS) .

# The image's steps, its services and the manifests, for real as far as that goes without a container engine and without nodes.
proof-deployment: $(VENV)/.dev opencv-libraries system-packages kafka-jars
	@command -v buildah >/dev/null && command -v debootstrap >/dev/null || { [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null \
		&& apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends debootstrap buildah >/dev/null; }
	$(BIN)/python -m proofs.deployment --record docs/proof/deployment.md $(ARGS)

pictures: $(VENV)/.dev system-packages
	$(BIN)/python -m proofs.pictures $(ARGS)

# What it prints is kept, with commit and machine.
proof-backfill: $(VENV)/.dev system-packages
	mkdir -p docs/proof
	set -o pipefail; { echo "commit $$(git rev-parse --short HEAD), $$(nproc) cores, $$(date -u +%F)"; \
		$(BIN)/python -m pytest tests/defs/proof_backfill.py -s -q -p no:cacheprovider $(ARGS); } | tee docs/proof/backfill.txt

# A real Chromium for the page tests, Java and Maven for Apache Kafka, GStreamer's RTSP server for the cameras' tests, an MQTT
# broker and Redis for those of notifications, Prometheus and Alertmanager for the alert
# rules, rsyslog for the logs. Elsewhere than on Debian, or without root, tests say what is missing.
SYSTEM_PACKAGES := chromium fonts-dejavu-core python3-gi gir1.2-gst-rtsp-server-1.0 gstreamer1.0-plugins-base \
	gstreamer1.0-plugins-good gstreamer1.0-plugins-bad default-jre-headless maven mosquitto redis-server \
	prometheus prometheus-alertmanager rsyslog rsyslog-elasticsearch
system-packages:
	@if ! { command -v chromium && command -v java && command -v mvn && command -v mosquitto && command -v redis-server \
			&& command -v promtool && command -v amtool && ls /usr/lib/*/rsyslog/omelasticsearch.so \
			&& /usr/bin/python3 tests/servers/stream.py check; } >/dev/null 2>&1 \
			&& command -v apt-get >/dev/null && [ "$$(id -u)" = 0 ]; then \
		apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends $(SYSTEM_PACKAGES) >/dev/null; \
	fi

# A real S3 server for the object store's tests, built by the Go toolchain; without Go its tests say so.
s3-server:
	@tests/servers/versitygw.sh >/dev/null || test $$? = 3

# Torch and ultralytics: several GB.
$(ULTRALYTICS)/.ready: requirements-ultralytics.txt pyproject.toml
	test -x $(ULTRALYTICS)/bin/python || $(PYTHON) -m venv $(ULTRALYTICS)
	$(ULTRALYTICS)/bin/python -m pip install --quiet --require-hashes --requirement requirements-ultralytics.txt
	$(ULTRALYTICS)/bin/python -m pip install --quiet --no-deps --editable .
	touch $@

# The project's own weights, trained anew on simulated scenes (under an hour).
weights: $(ULTRALYTICS)/.ready
	$(ULTRALYTICS)/bin/python -m dangerous_driving.simulation.training --out build/training $(ARGS)

# LiteLLM's Router, which the key pool is measured against, in an environment of its own.
$(LITELLM)/.ready: requirements-litellm.txt
	test -x $(LITELLM)/bin/python || $(PYTHON) -m venv $(LITELLM)
	$(LITELLM)/bin/python -m pip install --quiet --require-hashes --requirement requirements-litellm.txt
	touch $@

benchmark-litellm: $(LITELLM)/.ready

benchmark-key-pool: $(VENV)/.dev benchmark-litellm
	$(BIN)/python -m benchmarks.key_pool $(ARGS)

# Four schedulers, one killed (-9) ten times in five minutes, an endpoint with faults: every task ends, every request is a row.
proof-schedulers: $(VENV)/.dev opencv-libraries
	$(BIN)/python -m benchmarks.scheduler_kills $(ARGS)

# Every alert rule, each by a fault of its own, until it is told at a webhook and until it is over (ARGS="--only slow": one of them).
dashboards: $(VENV)/.dev opencv-libraries system-packages
	$(BIN)/python -m proofs.alert_rules --record docs/proof/alert-rules.md $(ARGS)

# A demo's logs through a real rsyslog into a real OpenSearch (Maven Central) that is killed on the way: every line once.
proof-logs: $(VENV)/.dev opencv-libraries system-packages
	$(BIN)/python -m proofs.logs --record docs/proof/logs.md $(ARGS)

# New pins; needs uv. No index address is written, so that the files work with any index.
UV_COMPILE := uv pip compile --quiet --universal --python-version 3.11 --generate-hashes --no-header --no-emit-index-url --no-annotate --no-strip-extras
lock:
	$(UV_COMPILE) --extra embedded --extra dev pyproject.toml --output-file requirements-dev.txt
	$(UV_COMPILE) --extra embedded --constraint requirements-dev.txt pyproject.toml --output-file requirements.txt
	$(UV_COMPILE) --extra k8s --extra redis --extra tracing --constraint requirements-dev.txt pyproject.toml --output-file requirements-image.txt
	echo 'hatchling>=1.26,<2' | $(UV_COMPILE) - --output-file requirements-build.txt
	$(UV_COMPILE) infra/flink/requirements.in --output-file requirements-flink.txt
	$(UV_COMPILE) --extra embedded --extra dev --extra ultralytics --constraint requirements-dev.txt pyproject.toml --output-file requirements-ultralytics.txt
	echo 'litellm>=1.109,<2' | $(UV_COMPILE) - --output-file requirements-litellm.txt

# Two bridges behind a load balancer, killed -9 in turn while 50 clients get alerts: none lost, none twice.
proof-bridge: $(VENV)/.dev
	$(BIN)/python -m tests.realtime.bridges $(ARGS)

# The page's one third-party script, again from its npm package: the very files that are kept here.
UPLOT := 1.6.32
PAGE_SCRIPTS := dangerous_driving/realtime/page/vendor/uplot
page-scripts:
	rm -rf build/uplot && mkdir -p build/uplot && cd build/uplot && npm pack --silent uplot@$(UPLOT) && tar -xzf uplot-$(UPLOT).tgz
	cp build/uplot/package/LICENSE build/uplot/package/dist/uPlot.iife.min.js build/uplot/package/dist/uPlot.min.css $(PAGE_SCRIPTS)/
	git diff --stat --exit-code -- $(PAGE_SCRIPTS)

# infra/grafana/dashboards, from infra/grafana/boards.
grafana: $(VENV)/.dev
	$(BIN)/python -m infra.grafana.generate $(ARGS)

benchmark-marts: $(VENV)/.dev
	$(BIN)/python -m benchmarks.marts $(ARGS)

# docs/asyncapi.yaml, from the models of the messages, and docs/settings.md, from the classes of the settings.
api-documents: $(VENV)/.dev
	$(BIN)/python -m dangerous_driving.realtime.asyncapi > docs/asyncapi.yaml
	$(BIN)/dangerous-driving config reference > docs/settings.md

clean:
	rm -rf $(VENV) $(CACHE) build dist
