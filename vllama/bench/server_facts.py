"""Ask a server for its version, its models and the properties of one model."""

from __future__ import annotations

from typing import Any

import httpx

from vllama.bench.result import Api, ServerFacts
from vllama.errors import ServerUnreachable
from vllama.keys.credentials import credentials

_TIMEOUT = 10.0


def is_native(api: Api) -> bool:
    """Whether this is one of Ollama's own APIs."""
    return api.startswith("ollama")


def facts_of(url: str, api: Api, model: str) -> ServerFacts:
    """Ask the server; what it does not answer stays open. The model is loaded. Raises ServerUnreachable."""
    with httpx.Client(headers=credentials(), base_url=url, timeout=_TIMEOUT, trust_env=False) as client:
        try:
            return _native(client, model) if is_native(api) else _openai(client, model)
        except (httpx.TransportError, httpx.InvalidURL) as error:
            raise _unreachable(url, error) from error


def only_model(url: str, api: Api) -> str:
    """Return the model that is loaded, else the only one there is; "" if there are more. Raises ServerUnreachable."""
    lists = (("/api/ps", "models"), ("/api/tags", "models")) if is_native(api) else (("/v1/models", "data"),)
    with httpx.Client(headers=credentials(), base_url=url, timeout=_TIMEOUT, trust_env=False) as client:
        try:
            for path, key in lists:
                models = _models(_get(client, path), key)
                if len(models) == 1:
                    return str(models[0].get("name") or models[0].get("id") or "")
        except (httpx.TransportError, httpx.InvalidURL) as error:
            raise _unreachable(url, error) from error
    return ""


def resident_models(url: str) -> list[dict[str, Any]]:
    """Return what an Ollama server has loaded. Raises ServerUnreachable."""
    with httpx.Client(headers=credentials(), base_url=url, timeout=_TIMEOUT, trust_env=False) as client:
        try:
            return _models(_get(client, "/api/ps"), "models")
        except httpx.TransportError as error:
            raise _unreachable(url, error) from error


def _unreachable(url: str, error: Exception) -> ServerUnreachable:
    return ServerUnreachable(f"could not connect to {url} ({str(error).lower()}); is the server running?")


def _native(client: httpx.Client, model: str) -> ServerFacts:
    shown = _json(client.post("/api/show", json={"model": model}))
    details = shown.get("details") or {}
    about = shown.get("model_info") or {}
    loaded = next((one for one in _models(_get(client, "/api/ps"), "models") if is_model(one, model)), {})
    trained = about.get(f"{about.get('general.architecture')}.context_length")
    return ServerFacts(
        server=str(_get(client, "/api/version").get("version", "")),
        context=loaded.get("context_length") or trained,
        quantization=str(details.get("quantization_level") or ""),
        digest=str(loaded.get("digest") or ""),
        family=str(details.get("family") or ""),
        parameters=str(details.get("parameter_size") or ""),
    )


def is_model(entry: dict[str, Any], name: str) -> bool:
    """Whether a server's entry is the model of this name; a tag that is not named is `latest`."""
    tagged = name if ":" in name.rpartition("/")[2] else f"{name}:latest"
    return bool({entry.get("name"), entry.get("model")} & {name, tagged})


def _openai(client: httpx.Client, model: str) -> ServerFacts:
    served = next((one for one in _models(_get(client, "/v1/models"), "data") if one.get("id") == model), {})
    return ServerFacts(server=str(_get(client, "/version").get("version", "")), context=served.get("max_model_len"))


def _models(reply: dict[str, Any], key: str) -> list[dict[str, Any]]:
    entries = reply.get(key)
    return [entry for entry in entries if isinstance(entry, dict)] if isinstance(entries, list) else []


def _get(client: httpx.Client, path: str) -> dict[str, Any]:
    return _json(client.get(path))


def _json(response: httpx.Response) -> dict[str, Any]:
    """Return the object in a reply, or an empty one, because many servers lack a route."""
    try:
        value = response.json() if response.status_code == 200 else {}
    except ValueError:
        return {}
    return value if isinstance(value, dict) else {}
