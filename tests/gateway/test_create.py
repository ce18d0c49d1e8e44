"""Create and blobs over HTTP (contract §1.9); what creating does is the subject of tests/store/test_create.py."""

from __future__ import annotations

import asyncio
import hashlib
import json
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest
from fake_worker import within
from ollama_layout import converts_to
from tiny_adapter import write_adapter
from tiny_snapshot import write_snapshot

from vllama.names import ModelName
from vllama.ollama.status import NDJSON
from vllama.store.description import gguf_precision
from vllama.store.gguf import conversion
from vllama.store.layers import layers

from .conftest import MODEL, Running

pytestmark = pytest.mark.anyio

BLOB = b"hello blob"
SHA256 = hashlib.sha256(BLOB).hexdigest()
PATH = f"/api/blobs/sha256:{SHA256}"
CREATE = "/api/create"


def blob_files(gateway: Running) -> list[str]:
    return sorted(path.name for path in (gateway.store.root / "blobs").glob("*"))


async def eventually(condition: Callable[[], bool]) -> None:
    async def look() -> None:
        while not condition():
            await asyncio.sleep(0)

    await within(look())


async def upload(gateway: Running, data: bytes) -> str:
    digest = f"sha256:{hashlib.sha256(data).hexdigest()}"
    assert (await gateway.post(f"/api/blobs/{digest}", content=data)).status_code == 201
    return digest


async def steps(gateway: Running, **fields: Any) -> list[dict[str, Any]]:
    reply = await gateway.post(CREATE, {"model": "mario", **fields})
    assert (reply.status_code, reply.headers["content-type"]) == (200, NDJSON)
    return [json.loads(line) for line in reply.text.splitlines()]


class TestBlobs:
    async def test_an_uploaded_blob_is_there(self, gateway: Running) -> None:
        assert (await gateway.client.head(PATH)).status_code == 404
        reply = await gateway.post(PATH, content=BLOB)
        assert (reply.status_code, reply.content) == (201, b"")
        head = await gateway.client.head(PATH)
        assert (head.status_code, head.content) == (200, b"")
        assert (gateway.store.root / "blobs" / f"sha256-{SHA256}").read_bytes() == BLOB

    async def test_a_second_upload_is_200(self, gateway: Running) -> None:
        await upload(gateway, BLOB)
        assert (await gateway.post(PATH, content=b"anything")).status_code == 200
        assert (gateway.store.root / "blobs" / f"sha256-{SHA256}").read_bytes() == BLOB

    @pytest.mark.parametrize("method", ["HEAD", "POST"])
    async def test_a_bad_digest_is_400(self, gateway: Running, method: str) -> None:
        reply = await gateway.client.request(method, "/api/blobs/sha256:12", content=BLOB)
        assert reply.status_code == 400
        if method == "POST":
            assert reply.json() == {"error": "invalid digest format"}

    @pytest.mark.parametrize("path", ["/api/blobs", "/api/blobs/", f"{PATH}/x", "/api/blobs/../x"])
    async def test_only_a_digest_is_a_blob(self, gateway: Running, path: str) -> None:
        assert (await gateway.post(path, content=BLOB)).status_code == 404

    async def test_a_body_in_many_pieces_goes_to_disk_as_it_comes(self, gateway: Running) -> None:
        """Half of it is on disk before the rest was sent."""
        piece, count = b"x" * 300_000, 20
        digest = hashlib.sha256(piece * count).hexdigest()
        blobs = gateway.store.root / "blobs"
        blobs.mkdir(parents=True)
        half_is_there = asyncio.Event()

        async def pieces() -> AsyncIterator[bytes]:
            for number in range(count):
                if number == count // 2:
                    await eventually(lambda: any(path.stat().st_size >= len(piece) for path in blobs.iterdir()))
                    half_is_there.set()
                yield piece

        reply = await gateway.post(f"/api/blobs/sha256:{digest}", content=pieces())
        assert (reply.status_code, half_is_there.is_set()) == (201, True)
        assert blob_files(gateway) == [f"sha256-{digest}"]

    async def test_other_requests_are_answered_during_an_upload(self, gateway: Running) -> None:
        client = await gateway.connect()
        client.send(f"POST {PATH} HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(BLOB)}\r\n\r\n".encode())
        assert (await gateway.get("/api/tags")).status_code == 200
        client.send(BLOB)
        assert (await client.head()).status == 201

    async def test_a_client_that_leaves_leaves_no_file(self, gateway: Running) -> None:
        client = await gateway.connect()
        client.send(f"POST {PATH} HTTP/1.1\r\nHost: localhost\r\nContent-Length: 5000000\r\n\r\n".encode())
        client.send(b"x" * 2_000_000)
        await eventually(lambda: blob_files(gateway) != [])
        client.close()
        await eventually(lambda: blob_files(gateway) == [])
        assert (await gateway.client.head(PATH)).status_code == 404

    async def test_two_uploads_of_one_blob_at_once_are_fine(self, gateway: Running) -> None:
        data = b"y" * 3_000_000
        digest = f"sha256:{hashlib.sha256(data).hexdigest()}"
        replies = await asyncio.gather(*(gateway.post(f"/api/blobs/{digest}", content=data) for _ in range(4)))
        assert {reply.status_code for reply in replies} <= {200, 201}
        assert blob_files(gateway) == [digest.replace(":", "-")]


class TestCreate:
    async def test_the_steps_are_those_that_ollama_was_recorded_with(self, gateway: Running) -> None:
        """Exchange 438: Ollama looks at the type of a parameter only when the model is used."""
        made = await steps(gateway, **{"from": MODEL}, parameters={"temperature": "hot"})
        manifest = gateway.store.get(ModelName.parse("mario"))
        model, params = layers(manifest)
        assert made == [
            {"status": f"using existing layer {model}"},
            {"status": f"creating new layer {params}"},
            {"status": "writing manifest"},
            {"status": "success"},
        ]
        assert manifest.parameters == {"temperature": "hot"}

    async def test_a_created_model_is_shown_with_what_was_said(self, gateway: Running) -> None:
        """Exchanges 430 and 431, save for the template, the files and what they say."""
        await steps(
            gateway,
            **{"from": MODEL, "name": "ignored"},
            system="You are Mario.",
            parameters={"temperature": 0, "stop": ["<|im_end|>", "STOP"], "num_ctx": 2048},
            license="MIT",
            messages=[{"role": "user", "content": "hi"}, {"role": "assistant", "content": "It's-a me"}],
        )
        shown = (await gateway.post("/api/show", {"model": "mario"})).json()
        assert shown["modelfile"].startswith(
            '# Modelfile generated by "ollama show"\n# To build a new Modelfile based on this, replace FROM with:\n'
            "# FROM mario:latest\n\nFROM mario:latest\n"
        )
        assert shown["modelfile"].endswith(
            "SYSTEM You are Mario.\nPARAMETER num_ctx 2048\nPARAMETER stop <|im_end|>\nPARAMETER stop STOP\n"
            "PARAMETER temperature 0\nLICENSE MIT\nMESSAGE user hi\nMESSAGE assistant It's-a me\n"
        )
        assert shown["parameters"] == (
            "num_ctx                        2048\n"
            'stop                           "<|im_end|>"\n'
            'stop                           "STOP"\n'
            "temperature                    0"
        )
        assert (shown["system"], shown["license"]) == ("You are Mario.", "MIT")
        assert shown["messages"] == [
            {"role": "user", "content": "hi"},
            {"role": "assistant", "content": "It's-a me"},
        ]

    async def test_show_lays_system_and_options_over_the_modelfile(self, gateway: Running) -> None:
        before = (await gateway.post("/api/show", {"model": MODEL})).json()
        changes = {"system": "be brief", "options": {"temperature": 0.5, "stop": ["a b", "c"], "seed": None}}
        shown = (await gateway.post("/api/show", {"model": MODEL, **changes})).json()
        assert (
            "\nSYSTEM be brief\nPARAMETER stop a b\nPARAMETER stop c\nPARAMETER temperature 0.5\n" in shown["modelfile"]
        )
        assert shown["system"] == "be brief"
        assert shown.get("parameters") == before.get("parameters")
        assert (await gateway.post("/api/show", {"model": MODEL})).json() == before

    async def test_an_uploaded_adapter_becomes_a_part_of_a_model(self, gateway: Running, tmp_path: Path) -> None:
        lora = write_adapter(tmp_path / "lora", {"lm_head": (32, 8)}, rank=2)
        digests = {path.name: await upload(gateway, path.read_bytes()) for path in lora.iterdir()}
        made = await steps(gateway, **{"from": MODEL}, adapters=digests)
        assert (made[0], made[-1]) == ({"status": "parsing adapter"}, {"status": "success"})
        shown = (await gateway.post("/api/show", {"model": "mario"})).json()
        adapter = gateway.store.get(ModelName.parse("mario")).adapter
        assert adapter
        assert f"FROM mario:latest\nADAPTER {adapter.snapshot}\n" in shown["modelfile"]
        assert shown["model_info"]["vllama.adapter"].startswith("LoRA, rank 2, sha256:")
        assert blob_files(gateway) == []

    @pytest.mark.parametrize(
        ("names", "message"),
        [
            (
                ["adapter_model.bin"],
                "the adapter's weights are pickle only (adapter_model.bin), which can run",
            ),
            (["a.gguf", "b.gguf"], "only one adapter is currently supported"),
        ],
    )
    async def test_an_adapter_in_another_format_has_a_status(
        self, gateway: Running, names: list[str], message: str
    ) -> None:
        adapters = dict.fromkeys(names, f"sha256:{SHA256}")
        reply = await gateway.post(CREATE, {"model": "mario", "from": MODEL, "adapters": adapters})
        assert reply.status_code == 400
        assert reply.json()["error"].startswith(message)

    async def test_a_base_that_cannot_be_found_is_told_in_the_stream(self, gateway: Running) -> None:
        """Exchange 433, in our words where Ollama names its registry."""
        first, last = await steps(gateway, **{"from": "127.0.0.1:9/library/nope"})
        assert first == {"status": "pulling manifest"}
        assert list(last) == ["error"]
        assert last["error"].startswith("pull model manifest: ")

    async def test_without_a_stream_it_is_told_with_a_status(self, gateway: Running) -> None:
        reply = await gateway.post(CREATE, {"model": "mario", "from": "nope", "stream": False})
        assert (reply.status_code, reply.headers["content-type"]) == (500, "application/json")
        assert reply.json()["error"].startswith("pull model manifest: ")

    @pytest.mark.parametrize("stream", [True, False])
    async def test_what_goes_wrong_before_the_first_step_has_a_status(self, gateway: Running, stream: bool) -> None:
        """Exchange 434; its content type has no charset, unlike that of a bad name (exchange 445)."""
        reply = await gateway.post(CREATE, {"model": "m3", "stream": stream})
        assert (reply.status_code, reply.headers["content-type"]) == (400, "application/json")
        assert reply.text == "{\"error\":\"neither 'from' or 'files' was specified\"}"
        bad_name = await gateway.post(CREATE, {"model": "!!", "from": MODEL, "stream": stream})
        assert (bad_name.status_code, bad_name.headers["content-type"]) == (400, "application/json; charset=utf-8")

    async def test_an_upload_that_never_came_is_told_in_the_stream(self, gateway: Running) -> None:
        """Exchange 439."""
        made = await steps(gateway, files={"a.gguf": f"sha256:{'0' * 64}"})
        path = gateway.store.root / "blobs" / f"sha256-{'0' * 64}"
        assert made == [{"status": "parsing GGUF"}, {"error": f"open {path}: no such file or directory"}]

    async def test_an_upload_that_is_no_gguf_is_told_in_the_stream(self, gateway: Running) -> None:
        """Exchange 441."""
        made = await steps(gateway, files={"a.gguf": await upload(gateway, BLOB)})
        assert made == [{"status": "parsing GGUF"}, {"error": "supplied file was not in GGUF format"}]
        again = {"model": "m7", "files": {"a.gguf": f"sha256:{SHA256}"}, "stream": False}
        assert (await gateway.post(CREATE, again)).status_code == 400

    async def test_an_uploaded_gguf_becomes_a_model_that_can_be_loaded(
        self, gateway: Running, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        converted = write_snapshot(tmp_path / "converted")
        monkeypatch.setattr(conversion, "convert", converts_to(converted))
        digest = await upload(gateway, b"GGUF and so on")
        made = await steps(gateway, files={"m.gguf": digest})
        assert [made[0], made[-1]] == [{"status": "parsing GGUF"}, {"status": "success"}]
        assert (await gateway.load("mario")).manifest.snapshot.is_relative_to(gateway.store.root)
        assert blob_files(gateway) == []
        assert (await gateway.client.head(f"/api/blobs/{digest}")).status_code == 200  # nobody need send it again

    async def test_a_gguf_is_converted_with_the_precision_of_the_request(
        self, gateway: Running, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(conversion, "convert", converts_to(write_snapshot(tmp_path / "converted")))
        files = {"m.gguf": await upload(gateway, b"GGUF and so on")}
        await steps(gateway, files=files, precision="bf16")
        assert gguf_precision(gateway.store.get(ModelName.parse("mario")).snapshot) == "bf16"
        made = await steps(gateway, files=files)
        assert "'mario:latest' was made of this GGUF file with precision bf16" in made[-1]["error"]
        assert "delete that model and upload the file again" in made[-1]["error"]

    async def test_other_requests_are_answered_while_a_model_is_made(self, gateway: Running) -> None:
        made = asyncio.create_task(steps(gateway, **{"from": MODEL}))
        assert (await gateway.get("/api/tags")).status_code == 200
        assert (await made)[-1] == {"status": "success"}

    async def test_a_model_stays_when_its_base_is_deleted(self, gateway: Running) -> None:
        await steps(gateway, **{"from": MODEL}, system="You are Mario.")
        await gateway.client.request("DELETE", "/api/delete", json={"model": MODEL})
        assert (await gateway.load("mario")).manifest.system == "You are Mario."
