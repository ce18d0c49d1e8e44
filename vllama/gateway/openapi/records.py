"""The base of all records, and types that several of them use."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field


class Record(BaseModel):
    """A JSON object on the wire. The docstrings below its fields are their descriptions in the document."""

    model_config = ConfigDict(use_attribute_docstrings=True, protected_namespaces=())


class Error(Record):
    """An error. It is the body of a failed request, or the last line of a stream that failed after its first record."""

    error: str
    """The message: what happened, to what, and what to do."""


JsonObject = Annotated[dict[str, Any], Field(description="A JSON object.")]

KeepAlive = Annotated[
    float | str | None,
    Field(
        description="How long the model stays loaded after this request: seconds as a number, or a duration such as "
        "`5m` or `1h30m`. `0` unloads it at once, a negative value keeps it loaded forever. Default: the server's "
        "`OLLAMA_KEEP_ALIVE`, which is 5 minutes unless set.",
        examples=["5m", 0, -1],
    ),
]

Base64 = Annotated[
    str, Field(description="Bytes in standard base64, bare or in a `data:` URI.", json_schema_extra={"format": "byte"})
]

Timestamp = Annotated[str, Field(json_schema_extra={"format": "date-time"})]
