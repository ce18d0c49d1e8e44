"""The server itself, and the routes of Ollama's cloud, which this server does not use."""

from __future__ import annotations

from vllama import OLLAMA_VERSION
from vllama.errors import CloudDisabled
from vllama.gateway.openapi.operation import TEXT, Content, Operation, Parameter, Reply
from vllama.gateway.openapi.records import JsonObject, Record

TAG = "Server"
CLOUD = "Ollama's cloud"


class VersionReply(Record):
    """The reply of `/api/version`."""

    version: str
    """Version of Ollama whose API this server provides."""


class CloudStatus(Record):
    """State of the cloud."""

    disabled: bool
    """Whether the cloud is disabled: always true."""
    source: str
    """Which kind of setting disabled it."""


class StatusReply(Record):
    """The reply of `/api/status`."""

    cloud: CloudStatus


class RecommendationsReply(Record):
    """The reply of `/api/experimental/model-recommendations`."""

    recommendations: list[JsonObject]
    """Always empty: Ollama recommends models of its cloud, and GGUF."""


_NOT_SIGNED_IN = {401: "you are not currently signed in"}

OPERATIONS = (
    Operation(
        "GET",
        "/",
        TAG,
        "Check that the server runs",
        replies={200: Reply("A fixed text.", (Content(media_type=TEXT, examples={"Text": "Ollama is running"}),))},
        has_head=True,
    ),
    Operation(
        "GET",
        "/api/version",
        TAG,
        "Show the version",
        replies={200: Reply("The version.", (Content(VersionReply, {"Version": {"version": OLLAMA_VERSION}}),))},
        has_head=True,
    ),
    Operation(
        "GET",
        "/api/status",
        CLOUD,
        "Show whether the cloud is disabled",
        replies={
            200: Reply(
                "It is disabled.",
                (Content(StatusReply, {"Status": {"cloud": {"disabled": True, "source": "env"}}}),),
            )
        },
    ),
    Operation("POST", "/api/me", CLOUD, "Show the signed-in user (nobody)", errors={401: "unauthorized"}),
    Operation("POST", "/api/signout", CLOUD, "Sign out (nobody is signed in)", errors=_NOT_SIGNED_IN),
    Operation(
        "DELETE",
        "/api/user/keys/{key:path}",
        CLOUD,
        "Remove a key (nobody is signed in)",
        parameters=(Parameter("key", "path", "The key; it may contain slashes.", "c3NoLWVkMjU1MTk"),),
        errors=_NOT_SIGNED_IN,
    ),
    Operation(
        "POST",
        "/api/experimental/web_search",
        CLOUD,
        "Search the web (always refused)",
        errors={403: str(CloudDisabled("web search is unavailable"))},
    ),
    Operation(
        "POST",
        "/api/experimental/web_fetch",
        CLOUD,
        "Fetch a web page (always refused)",
        errors={403: str(CloudDisabled("web fetch is unavailable"))},
    ),
    Operation(
        "GET",
        "/api/experimental/model-recommendations",
        CLOUD,
        "List recommended models (none)",
        replies={
            200: Reply("An empty list.", (Content(RecommendationsReply, {"None": {"recommendations": []}}),)),
        },
    ),
)
