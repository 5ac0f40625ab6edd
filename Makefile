# make demo    the whole platform on this machine (arguments: make demo ARGS="--source clip.mp4 --weights yolo.onnx")
# make test    installs what the tests need, Debian packages included, and runs them
# make test-ultralytics  the tests of the extra ultralytics alone; make test runs them where 25 GB of disk are free
# make benchmark-key-pool  the key pool against others (16 min; ARGS=--quick: 3 min); make proof-schedulers: kills schedulers for 5 min
# make check   lint, types, format, definitions
SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help

PYTHON ?= python3
VENV := .venv
ULTRALYTICS := .venv-ultralytics
LITELLM := .venv-litellm
BIN := $(VENV)/bin
ARGS ?=
CACHE := .cache

# make weights trains the project's own weights on simulated scenes, anew
.PHONY: help demo test test-ultralytics check lock weights benchmark-litellm benchmark-key-pool proof-schedulers opencv-libraries s3-server system-packages clean

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

test: $(VENV)/.dev opencv-libraries system-packages s3-server
	$(BIN)/python -m pytest $(ARGS)
	@free=$$(df --output=avail -BG . | tail -1 | tr -dc 0-9); \
	if [ "$$free" -ge 25 ]; then $(MAKE) test-ultralytics; \
	else echo "SKIPPED tests of the engine ultralytics: torch needs 25 GB of free disk, there are $$free GB"; fi

# The engine ultralytics and `weights export` for real, in an environment of their own: torch is several GB.
test-ultralytics: $(ULTRALYTICS)/.ready opencv-libraries
	$(ULTRALYTICS)/bin/python -m pytest -W default tests/ultralytics tests/detection/test_cpu.py

# A real Chromium for the page tests, and GStreamer's RTSP server for those of the cameras.
# Elsewhere than on Debian, or without root, tests say what is missing.
SYSTEM_PACKAGES := chromium fonts-dejavu-core python3-gi gir1.2-gst-rtsp-server-1.0 gstreamer1.0-plugins-base \
	gstreamer1.0-plugins-good gstreamer1.0-plugins-bad
system-packages:
	@if ! { command -v chromium && /usr/bin/python3 tests/servers/stream.py check; } >/dev/null 2>&1 \
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

# New pins; needs uv. No index address is written, so that the files work with any index.
UV_COMPILE := uv pip compile --quiet --universal --python-version 3.11 --generate-hashes --no-header --no-emit-index-url --no-annotate --no-strip-extras
lock:
	$(UV_COMPILE) --extra embedded --extra dev pyproject.toml --output-file requirements-dev.txt
	$(UV_COMPILE) --extra embedded --constraint requirements-dev.txt pyproject.toml --output-file requirements.txt
	$(UV_COMPILE) --extra embedded --extra dev --extra ultralytics --constraint requirements-dev.txt pyproject.toml --output-file requirements-ultralytics.txt
	echo 'litellm>=1.109,<2' | $(UV_COMPILE) - --output-file requirements-litellm.txt

clean:
	rm -rf $(VENV) $(CACHE) build dist
