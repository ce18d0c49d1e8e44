"""What models there are: tags, ps, show and /v1/models, whatever the engines do meanwhile (contract §4, §5.3)."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import ollama
import pytest
from tiny_snapshot import make_manifest, write_snapshot

from vllama.errors import LoadFailed
from vllama.names import ModelName
from vllama.store.manifest import Manifest

from .conftest import MODEL, RunGateway, Running

pytestmark = pytest.mark.anyio

DETAILS = {
    "parent_model": "",
    "format": "safetensors",
    "family": "llama",
    "families": ["llama"],
    "parameter_size": "264",
    "quantization_level": "BF16",
    "context_length": 8192,
    "embedding_length": 8,
}


async def expiries(gateway: Running) -> dict[str, timedelta]:
    """How long each resident has left, in the order of /api/ps."""
    models = (await gateway.get("/api/ps")).json()["models"]
    return {model["name"]: datetime.fromisoformat(model["expires_at"]) - datetime.now(UTC) for model in models}


async def test_the_version_is_one_that_clients_can_compare(gateway: Running) -> None:
    version = (await gateway.get("/api/version")).json()["version"]
    assert [int(part) for part in version.split(".")] >= [0, 24, 0]


async def test_tags_lists_the_store_newest_first(gateway: Running, manifest: Manifest) -> None:
    newer = replace(manifest, name=ModelName.parse("b"), modified_at=manifest.modified_at + timedelta(days=1))
    gateway.store.put(newer)
    models = (await gateway.get("/api/tags")).json()["models"]
    assert [model["name"] for model in models] == ["b:latest", MODEL]
    assert models[1] == {
        "name": MODEL,
        "model": MODEL,
        "modified_at": "2026-09-01T12:00:00+00:00",
        "size": manifest.size,
        "digest": manifest.digest,
        "details": DETAILS,
        "capabilities": ["completion"],
    }


async def test_ps_shows_what_a_worker_holds(gateway: Running, manifest: Manifest) -> None:
    await gateway.load()
    (model,) = (await gateway.get("/api/ps")).json()["models"]
    del model["expires_at"]
    assert model == {
        "name": MODEL,
        "model": MODEL,
        "size": 1000,
        "digest": manifest.digest,
        "details": DETAILS,
        "size_vram": 800,
        "context_length": 4096,
    }


async def test_ps_shows_a_model_that_loads_with_what_is_known_of_it(gateway: Running) -> None:
    gateway.launcher.may_load.clear()
    loading = gateway.send("POST", "/api/generate", json={"model": MODEL})
    await gateway.worker()
    reply = (await gateway.get("/api/ps")).json()
    (model,) = reply["models"]
    assert (model["name"], model["context_length"]) == (MODEL, 8192)
    assert model["load"] == {"phase": "weights", "percent": 40, "line": "Loading shards: 40% Completed"}
    assert ollama.ProcessResponse(**reply).models[0].name == MODEL  # the official client passes over `load`
    gateway.launcher.may_load.set()
    await loading


@pytest.mark.parametrize(
    ("keep_alive", "seconds"),
    [(None, 300), (10, 10), ("1h", 3600), ("90s", 90), (7.5, 7.5), ("300", 300)],
)
async def test_ps_says_when_an_idle_model_will_go(gateway: Running, keep_alive: object, seconds: float) -> None:
    await gateway.load(keep_alive=keep_alive)
    assert (await expiries(gateway))[MODEL].total_seconds() == pytest.approx(seconds, abs=5)


@pytest.mark.parametrize("keep_alive", [-1, "-1m", "-1", -0.5], ids=repr)
async def test_ps_shows_for_ever_as_a_time_that_every_client_can_read(gateway: Running, keep_alive: object) -> None:
    """The CLI shows "Forever" beyond 20 years; Go's times end 292 years from now."""
    await gateway.load(keep_alive=keep_alive)
    assert timedelta(days=100 * 365) < (await expiries(gateway))[MODEL] < timedelta(days=290 * 365)


async def test_ps_has_the_longest_to_stay_first(gateway: Running, manifest: Manifest) -> None:
    for name, keep_alive in (("b", 60), ("c", -1), ("d", "1h")):
        gateway.store.put(replace(manifest, name=ModelName.parse(name), engine_flags=("--seed", str(keep_alive))))
        await gateway.load(name, keep_alive)
    assert list(await expiries(gateway)) == ["c:latest", "d:latest", "b:latest"]


async def test_times_have_an_offset_and_at_most_six_digits_of_fraction(gateway: Running) -> None:
    """Python before 3.11, under some clients, reads no others."""
    await gateway.load()
    (model,) = (await gateway.get("/api/ps")).json()["models"]
    time, _, offset = model["expires_at"].partition("+")
    assert len(time.partition(".")[2]) <= 6
    assert offset


async def test_a_model_that_sleeps_is_loaded_for_nobody_but_those_who_ask_for_all(run_gateway: RunGateway) -> None:
    async with run_gateway(keep_alive=1) as gateway:
        gateway.launcher.can_sleep = True
        worker = await gateway.load()
        while not worker.sleeps:
            await asyncio.sleep(0)
        assert (await gateway.get("/api/ps")).json() == {"models": []}
        (model,) = (await gateway.get("/api/ps?all=true")).json()["models"]
        assert (model["name"], model["state"], model["size_vram"]) == (MODEL, "asleep", 0)
        await gateway.load(keep_alive="5m")
        (model,) = (await gateway.get("/api/ps?x=1&all=true")).json()["models"]
        assert model["state"] == "ready"
        assert len(gateway.launcher.workers) == 1


@pytest.mark.parametrize("path", ["/api/version", "/api/tags", "/api/ps", "/v1/models", "/"])
async def test_lists_answer_while_a_model_loads(gateway: Running, path: str) -> None:
    gateway.launcher.may_load.clear()
    loading = gateway.send("POST", "/api/generate", json={"model": MODEL})
    await gateway.worker()
    assert (await gateway.get(path)).status_code == 200
    assert (await gateway.post("/api/show", {"model": MODEL})).status_code == 200
    gateway.launcher.may_load.set()
    assert (await loading).json()["done_reason"] == "load"


@pytest.mark.parametrize("asked", [MODEL, "SmolLM2:135M", "registry.ollama.ai/library/smollm2:135m", f" {MODEL} "])
@pytest.mark.parametrize("field", ["model", "name"])
async def test_show_finds_a_model_under_every_spelling(gateway: Running, field: str, asked: str) -> None:
    reply = await gateway.post("/api/show", {field: asked})
    assert reply.status_code == 200
    assert reply.json()["details"] == DETAILS
    assert reply.json()["capabilities"] == ["completion"]
    assert reply.json()["model_info"]["general.architecture"] == "llama"


async def test_show_takes_the_body_of_ollama_s_own_cli(gateway: Running) -> None:
    body = {"model": "", "system": "", "template": "", "verbose": False, "options": None, "name": MODEL}
    assert (await gateway.post("/api/show", body)).status_code == 200


async def test_show_says_the_context_that_is_served_once_it_is_known(gateway: Running) -> None:
    async def context() -> tuple[int, int]:
        reply = (await gateway.post("/api/show", {"model": MODEL})).json()
        return reply["model_info"]["llama.context_length"], reply["details"]["context_length"]

    assert await context() == (8192, 8192)
    gateway.launcher.may_load.clear()
    loading = gateway.send("POST", "/api/generate", json={"model": MODEL})
    await gateway.worker()
    assert await context() == (8192, 8192)
    gateway.launcher.may_load.set()
    await loading
    assert await context() == (4096, 4096)


async def test_show_gives_copilot_the_name_it_asked_for(gateway: Running) -> None:
    reply = await gateway.post("/api/show", {"model": MODEL}, headers={"user-agent": "GitHubCopilotChat/1.0"})
    assert reply.json()["model_info"]["general.basename"] == MODEL
    reply = await gateway.post("/api/show", {"model": MODEL})
    assert reply.json()["model_info"]["general.basename"] == "smollm2"


async def test_show_with_a_system_shows_it(gateway: Running) -> None:
    reply = await gateway.post("/api/show", {"model": MODEL, "system": "Be brief."})
    assert reply.json()["system"] == "Be brief."


async def test_verbose_show_has_the_vocabulary(gateway: Running) -> None:
    reply = await gateway.post("/api/show", {"model": MODEL, "verbose": True})
    assert reply.json()["model_info"]["tokenizer.ggml.tokens"] == ["a", "b"]


async def test_show_asks_for_no_load(gateway: Running) -> None:
    await gateway.post("/api/show", {"model": MODEL})
    assert gateway.launcher.workers == []


@pytest.mark.parametrize(
    ("body", "status", "error"),
    [
        ({}, 400, "model is required"),
        ({"model": ""}, 400, "model is required"),
        ({"model": "!!bad"}, 400, "invalid model name"),
        ({"model": "nope"}, 404, "model 'nope' not found"),
        ({"model": "NOPE:7b"}, 404, "model 'NOPE:7b' not found"),
        ({"model": 7}, 400, "json: cannot unmarshal number into Go struct field ShowRequest.model of type string"),
        ([], 400, "json: cannot unmarshal array into Go value of type api.ShowRequest"),
    ],
)
async def test_show_refuses_with_ollama_s_words(gateway: Running, body: object, status: int, error: str) -> None:
    reply = await gateway.post("/api/show", body)
    assert (reply.status_code, reply.json()) == (status, {"error": error})


async def test_a_damaged_model_is_a_500_that_says_what_to_do(gateway: Running, manifest: Manifest) -> None:
    (manifest.snapshot / "config.json").unlink()
    reply = await gateway.post("/api/show", {"model": MODEL})
    assert reply.status_code == 500
    assert "config.json is missing; pull the model again" in reply.json()["error"]


async def test_v1_models_lists_the_store(gateway: Running, manifest: Manifest) -> None:
    gateway.store.put(replace(manifest, name=ModelName.parse("me/b"), modified_at=datetime(2020, 1, 1, tzinfo=UTC)))
    assert (await gateway.get("/v1/models")).json() == {
        "object": "list",
        "data": [
            {"id": MODEL, "object": "model", "created": 1788264000, "owned_by": "library"},
            {"id": "me/b:latest", "object": "model", "created": 1577836800, "owned_by": "me"},
        ],
    }


async def test_v1_models_of_an_empty_store_is_a_list(run_gateway: RunGateway) -> None:
    async with run_gateway(empty=True) as gateway:
        assert (await gateway.get("/v1/models")).json() == {"object": "list", "data": []}


@pytest.mark.parametrize("asked", [MODEL, "smollm2%3A135m", "SMOLLM2:135m", "registry.ollama.ai/library/smollm2:135m"])
async def test_v1_models_shows_one_under_the_name_it_was_asked_for(gateway: Running, asked: str) -> None:
    reply = await gateway.get(f"/v1/models/{asked}")
    assert reply.json()["id"] == asked.replace("%3A", ":")


@pytest.mark.parametrize(
    ("asked", "status", "kind"), [("nope", 404, "not_found_error"), ("!!", 400, "invalid_request_error")]
)
async def test_v1_models_refuses_in_the_shape_of_openai(gateway: Running, asked: str, status: int, kind: str) -> None:
    reply = await gateway.get(f"/v1/models/{asked}")
    assert reply.status_code == status
    assert reply.json()["error"] | {"message": ""} == {"message": "", "type": kind, "param": None, "code": None}


async def test_a_failed_load_is_not_listed(gateway: Running) -> None:
    gateway.launcher.failure = LoadFailed("out of memory")
    assert (await gateway.post("/api/generate", {"model": MODEL})).status_code == 500
    assert (await gateway.get("/api/ps")).json() == {"models": []}


async def test_an_embedding_model_is_listed_as_such(gateway: Running, tmp_path: Path) -> None:
    snapshot = write_snapshot(tmp_path / "bert", config={"architectures": ["BertModel"], "model_type": "bert"})
    gateway.store.put(make_manifest("minilm", snapshot))
    (model,) = [m for m in (await gateway.get("/api/tags")).json()["models"] if m["name"] == "minilm:latest"]
    assert model["capabilities"] == ["embedding"]
