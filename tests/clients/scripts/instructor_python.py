"""Instructor's `ollama/` provider, which speaks `/v1/chat/completions`."""

from __future__ import annotations

import os

import instructor
from uses import ANN, TOOLS, Person, raised, report, use

BASE_URL = os.environ["OPENAI_BASE_URL"]


@use
def structured_by_schema():
    client = instructor.from_provider(f"ollama/{TOOLS}", base_url=BASE_URL, mode=instructor.Mode.JSON_SCHEMA)
    return client.create(response_model=Person, messages=[{"role": "user", "content": ANN}], temperature=0)


@use
def partial():
    client = instructor.from_provider(f"ollama/{TOOLS}", base_url=BASE_URL, mode=instructor.Mode.JSON_SCHEMA)
    parts = client.create_partial(response_model=Person, messages=[{"role": "user", "content": ANN}], temperature=0)
    return list(parts)


@use
def errors():
    client = instructor.from_provider("ollama/nosuchmodel", base_url=BASE_URL, mode=instructor.Mode.JSON_SCHEMA)
    messages = [{"role": "user", "content": ANN}]
    return {"unknown model": raised(lambda: client.create(response_model=Person, messages=messages, max_retries=0))}


report("instructor")
