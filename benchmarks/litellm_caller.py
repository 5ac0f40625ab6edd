"""LiteLLM's Router as a calling process of the key pool's benchmark; runs in its own environment (`make benchmark-litellm`)."""

from __future__ import annotations

import argparse
import asyncio
import logging
import os
import time
from typing import Any

os.environ.setdefault("LITELLM_LOCAL_MODEL_COST_MAP", "True")  # it would fetch one else

import litellm
from measure import MESSAGES, Count, arrivals, backlog

logging.getLogger("LiteLLM").setLevel(logging.CRITICAL)
logging.getLogger("LiteLLM Router").setLevel(logging.CRITICAL)


def router(given: argparse.Namespace) -> Any:
    """As its documentation shows it for several keys of one model."""
    deployments = [
        {
            "model_name": "vision",
            "litellm_params": {
                "model": "openai/simulated-vl", "api_base": given.url, "api_key": f"sk-simulated-{number}",
                "rpm": given.rpm, "timeout": 30,
            },
            "model_info": {"id": f"key-{number}"},
        }
        for number in range(given.keys)
    ]  # fmt: skip
    return litellm.Router(model_list=deployments, routing_strategy=given.kind, num_retries=2, retry_after=0)


async def run(given: argparse.Namespace) -> None:
    asked, count = router(given), Count()

    async def call() -> str:
        text = ""
        stream = await asked.acompletion(model="vision", messages=MESSAGES, stream=True)
        async for chunk in stream:
            text += chunk.choices[0].delta.content or ""
        return text

    await asyncio.sleep(max(given.start_at - time.time(), 0))
    if given.mode == "backlog":
        await backlog(count, call, workers=given.workers, seconds=given.seconds)
    else:
        await arrivals(count, call, rate=given.rate, seconds=given.seconds)
    count.tell()


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("kind")
    parser.add_argument("--url", required=True)
    parser.add_argument("--keys", type=int, default=10)
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--mode", default="backlog")
    parser.add_argument("--rate", type=float, default=40.0)
    parser.add_argument("--start-at", type=float, default=0.0)
    parser.add_argument("--workers", type=int, default=150)
    parser.add_argument("--rpm", type=int, default=300)
    asyncio.run(run(parser.parse_args()))
