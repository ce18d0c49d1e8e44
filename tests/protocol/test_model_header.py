"""The header in which the gateway tells vLLM's own routes of a request's model."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from vllama.protocol.model_header import HEADER, ModelHeader
from vllama.protocol.profile import AdapterPart

texts = st.text(st.characters(exclude_categories=["Cs"]))


adapters = st.none() | st.builds(AdapterPart, st.integers(1, 2**31 - 1), texts, texts)


@given(texts, texts, st.dictionaries(texts, st.floats(allow_nan=False, allow_infinity=False)), adapters)
def test_a_header_carries_any_model(
    name: str, template: str, sampling: dict[str, float], adapter: AdapterPart | None
) -> None:
    spoken = ModelHeader(name, template, sampling, adapter)
    header, value = spoken.to_header()
    assert header == HEADER
    assert value.isascii()
    assert value.strip() != b""
    assert not set(value) & set(b"\r\n")
    assert ModelHeader.from_headers([(b"a", b"b"), (header, value)]) == spoken


def test_no_header_means_no_model() -> None:
    assert ModelHeader.from_headers([(b"host", b"x")]) is None
