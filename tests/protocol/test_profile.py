"""What the gateway tells a worker of a model."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from vllama.ollama.infill import Infill
from vllama.protocol.profile import AdapterPart, Profile

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
    chat_template=_TEXT,
    infill=st.none() | st.builds(Infill, _TEXT, _TEXT, _TEXT, st.booleans()),
    adapter=st.none() | st.builds(AdapterPart, st.integers(1, 2**31 - 1), _TEXT, _TEXT),
)  # fmt: skip


@given(_PROFILES)
def test_a_profile_arrives_as_it_was_sent(profile: Profile) -> None:
    assert Profile.from_json(profile.to_json()) == profile


def test_what_a_model_does_not_say_is_empty() -> None:
    profile = Profile("name", ("completion",))
    assert (profile.parameters, profile.system, profile.messages) == ({}, "", ())
    assert (profile.chat_template, profile.infill, profile.adapter) == ("", None, None)
