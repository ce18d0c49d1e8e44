"""What the scheduler tells a worker of its model."""

from __future__ import annotations

import os
import subprocess
import sys
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from vllama.worker.profile import ENVIRONMENT_VARIABLE, Profile

_TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)
_PROFILES = st.builds(
    Profile,
    full_name=_TEXT,
    capabilities=st.lists(st.sampled_from(["completion", "tools", "thinking"]), max_size=3).map(tuple),
    parameters=st.dictionaries(
        st.sampled_from(["temperature", "top_k", "stop"]),
        st.integers(-(2**63), 2**63 - 1) | st.floats(allow_nan=False, allow_infinity=False)
        | st.lists(_TEXT, max_size=3).map(tuple),
    ),
    system=_TEXT,
    messages=st.lists(st.tuples(st.sampled_from(["user", "assistant"]), _TEXT), max_size=3).map(tuple),
)  # fmt: skip

FULL: dict[str, Any] = {
    "full_name": "registry.ollama.ai/library/mario:latest",
    "capabilities": ("completion",),
    "parameters": {"stop": ("\n", "é"), "temperature": 0.5},
    "system": "You are Mario.\nSay so.",
    "messages": (("user", "who?"), ("assistant", "me")),
}


@given(_PROFILES)
def test_a_profile_comes_out_of_the_environment_as_it_went_in(profile: Profile) -> None:
    assert Profile.from_environment(profile.to_environment()) == profile


def test_a_worker_without_our_gateway_has_no_profile() -> None:
    assert Profile.from_environment({}) is None
    assert Profile.from_environment({ENVIRONMENT_VARIABLE: ""}) is None


def test_a_profile_reaches_another_process() -> None:
    program = "import os; from vllama.worker.profile import Profile; print(Profile.from_environment(os.environ))"
    profile = Profile(**FULL)
    environment = {**os.environ, **profile.to_environment(), "PYTHONUTF8": "1"}
    printed = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, check=True)
    assert printed.stdout.decode().strip() == repr(profile)


def test_what_a_model_does_not_say_is_empty() -> None:
    profile = Profile("name", ("completion",))
    assert (profile.parameters, profile.system, profile.messages) == ({}, "", ())
