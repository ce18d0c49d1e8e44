"""The official client pulls through `/api/pull`, from a stand-in for the Hub (contract §1.7)."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import ollama
import pytest
from hub_stand_in import HubStandIn, Repository, hub_stand_in, sha256
from tiny_snapshot import write_snapshot

from vllama.names import ModelName

from .conftest import Running

pytestmark = pytest.mark.anyio

NAME = "hf.co/acme/tiny"


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[HubStandIn]:
    """Make the stand-in the only Hub there is; it has one model."""
    monkeypatch.delenv("HF_TOKEN", raising=False)
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    monkeypatch.setenv("HF_HOME", str(tmp_path / "huggingface"))
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    snapshot = write_snapshot(tmp_path / "remote", tensors={"model.embed_tokens.weight": ("BF16", [600, 1000])})
    files = {path.name: path.read_bytes() for path in snapshot.iterdir()}
    with hub_stand_in() as running:
        monkeypatch.setenv("HF_ENDPOINT", running.url)
        running.repositories["acme/tiny"] = Repository(files)
        yield running


@pytest.fixture
async def client(gateway: Running) -> AsyncIterator[ollama.AsyncClient]:
    client = ollama.AsyncClient(f"http://127.0.0.1:{gateway.port}", trust_env=False)
    yield client
    await client._client.aclose()


async def test_it_sees_ollamas_steps_with_a_bar_for_each_file(
    gateway: Running, hub: HubStandIn, client: ollama.AsyncClient
) -> None:
    steps = [step async for step in await client.pull(NAME, stream=True)]
    assert [step.status for step in steps if not step.digest] == [
        "pulling manifest",
        "verifying sha256 digest",
        "writing manifest",
        "success",
    ]
    bars: dict[str, list[ollama.ProgressResponse]] = {}
    for step in steps:
        if step.digest:
            bars.setdefault(step.digest, []).append(step)
    stored = gateway.store.get(ModelName.parse(NAME))
    assert bars.keys() == {f"sha256:{file.sha256}" for file in stored.files}
    for digest, seen in bars.items():
        assert {step.status for step in seen} == {f"pulling {digest[7:19]}"}
        assert len({step.total for step in seen}) == 1
        assert [step.completed or 0 for step in seen] == sorted(step.completed or 0 for step in seen)
        assert seen[-1].completed == seen[-1].total
    weights = hub.repositories["acme/tiny"].files["model.safetensors"]
    assert f"sha256:{sha256(weights)}" in bars


async def test_without_a_stream_it_is_told_of_success(
    gateway: Running, hub: HubStandIn, client: ollama.AsyncClient
) -> None:
    assert (await client.pull(NAME)).status == "success"


async def test_it_is_told_in_the_stream_what_is_not_there(
    gateway: Running, hub: HubStandIn, client: ollama.AsyncClient
) -> None:
    with pytest.raises(ollama.ResponseError, match="pull model manifest: file does not exist"):
        [step async for step in await client.pull("hf.co/acme/other", stream=True)]
    with pytest.raises(ollama.ResponseError, match="pull model manifest: file does not exist") as refused:
        await client.pull("hf.co/acme/other")
    assert refused.value.status_code == 500


async def test_show_tells_what_was_asked_for_and_what_is_served(
    gateway: Running, hub: HubStandIn, client: ollama.AsyncClient
) -> None:
    await client.pull(NAME)
    info = (await client.show(NAME)).modelinfo or {}
    assert info["vllama.asked"] == "hf.co/acme/tiny:latest"
    assert info["vllama.served"] == f"acme/tiny@{'a' * 12} (BF16)"
