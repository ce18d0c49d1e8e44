"""All errors of vllama, named by their causes.

HTTP statuses are not here: `vllama.ollama.status` maps errors to them.

VllamaError
├── RequestError              the request is invalid or cannot be served
│   ├── InvalidName           the text is not a model name
│   ├── OptionTypeError       an option has the wrong JSON type
│   ├── FormatError           `format` is neither "json" nor a JSON Schema object
│   ├── SchemaError           `format` is no valid JSON Schema, or nothing satisfies it
│   ├── TemplateError         a Go template is invalid or uses an unsupported feature
│   ├── BodyTooLarge          the body exceeds the maximum size
│   ├── TooManyValues         the body's JSON has too many values
│   ├── PromptTooLong         the prompt does not fit into the context
│   └── Unsupported           the model lacks a required capability
├── ModelNotFound             no manifest under this name
│   └── NamedModelNotFound    the same, with the wording of `/api/copy`
├── BlobNotFound              no blob was uploaded under this digest
├── CloudDisabled             the model exists only in Ollama's cloud
├── Unauthenticated           the request has no valid key
├── Forbidden                 the request's key does not allow it
├── RateLimited               the request's key has reached a limit
├── Overloaded                the queue of waiting requests is full
├── NoRoomForBody             the bodies of running requests take all the memory that they may
├── EngineError               the model is stored but could not answer
│   ├── LoadFailed            the worker did not become ready
│   │   ├── BadEngineFlags    vLLM refused its flags
│   │   ├── OutOfMemory       the worker ran out of memory
│   │   ├── KeepsFailing      it failed repeatedly and is not retried yet
│   │   └── NoRoom            it does not fit, even with all other models unloaded
│   ├── SleepFailed           the worker could not sleep, or its output changed after waking
│   ├── ServerStopping        the server is stopping
│   └── WorkerDied            the worker died while requests were running
├── StoreError                an operation on the model store failed
│   ├── ManifestCorrupt       a manifest or a file that it names is damaged
│   └── SourceUnavailable     the source of a pull failed
├── SettingsError             the settings file is invalid
├── KeysError                 the key file is invalid, or a key cannot be created or revoked
├── UsageError                the record of usage cannot be read
└── ServerError               a command's request to the server failed
    ├── ServerUnreachable     no server responds at OLLAMA_HOST
    └── ServerRefused         the server answered with an error
"""

from __future__ import annotations


class VllamaError(Exception):
    """Base class of all errors that users see; `str(error)` is the message.

    `retry_after` is the number of seconds after which the same request may succeed, None if that is unknown.
    """

    retry_after: int | None = None


class RequestError(VllamaError):
    """The request is invalid or cannot be served."""


class InvalidName(RequestError):
    """The text does not parse as a model name (contract §3)."""

    def __init__(self, message: str = "invalid model name") -> None:
        super().__init__(message)


class OptionTypeError(RequestError):
    """An entry of `options` has the wrong JSON type (contract §2.10)."""


class FormatError(RequestError):
    """`format` is neither "json" nor a JSON Schema object (contract §2.4)."""


class SchemaError(RequestError):
    """A JSON Schema is invalid, too large, or nothing satisfies it.

    `pointer` is where that is seen, as a JSON pointer whose last part is mostly a keyword.
    """

    def __init__(self, pointer: str, cause: str) -> None:
        self.pointer = pointer
        super().__init__(f"invalid JSON schema{' at ' + pointer if pointer else ''}: {cause}")


class TemplateError(RequestError):
    """A Go template is invalid or uses an unsupported feature (contract §1.2).

    The message is that of Go's parser, or names the feature and its line; `/api/create` prefixes `template error: `.
    """


class BodyTooLarge(RequestError):
    """The request body exceeds the maximum size; the message begins with Go's words."""

    def __init__(self, most: int) -> None:
        super().__init__(f"http: request body too large: the maximum is {most >> 20} MiB")


class TooManyValues(RequestError):
    """The JSON of a request has too many values."""

    def __init__(self, most: int) -> None:
        super().__init__(f"the request has too many JSON values: the maximum is {most}; objects and arrays count as 40")


class PromptTooLong(RequestError):
    """The prompt does not fit into the context, and the client forbids truncation (contract §1.2, §2.7)."""

    def __init__(self) -> None:
        super().__init__("the input length exceeds the context length")


class Unsupported(RequestError):
    """The model lacks the capability that the request needs."""


class ModelNotFound(VllamaError):
    """No model is stored under this name. `name` is spelled as in the request."""

    def __init__(self, name: str) -> None:
        super().__init__(f"model '{name}' not found")
        self.name = name


class NamedModelNotFound(ModelNotFound):
    """Like ModelNotFound, with the double quotes of `/api/copy` and similar routes (contract §1.10)."""

    def __init__(self, name: str, advice: str = "") -> None:
        super().__init__(name)
        self.args = (f'model "{name}" not found{advice}',)


class BlobNotFound(VllamaError):
    """No blob was uploaded under this digest (contract §1.9)."""

    def __init__(self, digest: str) -> None:
        super().__init__(f'blob "{digest}" not found')


class CloudDisabled(VllamaError):
    """The model exists only in Ollama's cloud, which this server never uses (contract §1.2)."""

    def __init__(self, what: str = "remote model is unavailable") -> None:
        super().__init__(f"ollama cloud is disabled: {what}")


class Unauthenticated(VllamaError):
    """The request has no valid key. The message never repeats what the client sent."""

    def __init__(self) -> None:
        super().__init__("unauthorized: send a valid key as `Authorization: Bearer KEY` or `x-api-key: KEY`")


class Forbidden(VllamaError):
    """The request's key, or a setting, does not allow it."""


class RateLimited(VllamaError):
    """The request's key has reached a limit; a retry after `retry_after` seconds may succeed."""

    def __init__(self, message: str, retry_after: int) -> None:
        super().__init__(message)
        self.retry_after = retry_after


class Overloaded(VllamaError):
    """The queue of waiting requests is full (contract §1.2; the message has Ollama's two spaces)."""

    def __init__(self, message: str = "server busy, please try again.  maximum pending requests exceeded") -> None:
        super().__init__(message)


class NoRoomForBody(VllamaError):
    """The bodies of running requests take all the memory that they may."""

    retry_after = 1

    def __init__(self) -> None:
        super().__init__("server busy, please try again: other requests with large bodies are running")


class EngineError(VllamaError):
    """The model is stored but could not answer."""


class LoadFailed(EngineError):
    """The worker did not become ready; the message contains the end of its log."""


class BadEngineFlags(LoadFailed):
    """vLLM refused its command line; the message is vLLM's own."""


class OutOfMemory(LoadFailed):
    """The worker ran out of GPU or host memory; unloading other models may help."""


class SleepFailed(EngineError):
    """The worker could not sleep or wake; the model must be loaded again."""


class KeepsFailing(LoadFailed):
    """Loading failed, or the worker died, several times in a row; it is too early to retry."""

    def __init__(self, name: str, failures: int, seconds: int, cause: str) -> None:
        super().__init__(
            f"{name} failed {failures} times in a row; it will not be loaded again for {seconds} s. "
            f"Last failure: {cause}"
        )
        self.retry_after = seconds


class NoRoom(LoadFailed):
    """The model does not fit, even with all models unloaded that may be; the message has the numbers."""


class ServerStopping(EngineError):
    """The server is stopping."""

    def __init__(self) -> None:
        super().__init__("the server is stopping")


class WorkerDied(EngineError):
    """The worker died while requests were running (contract §1.2)."""

    def __init__(self) -> None:
        super().__init__(
            "model runner has unexpectedly stopped, this may be due to resource limitations "
            "or an internal error, check ollama server logs for details"
        )


class StoreError(VllamaError):
    """An operation on the model store failed."""


class ManifestCorrupt(StoreError):
    """A manifest, or a file that it lists, is damaged or missing."""


class SourceUnavailable(StoreError):
    """The source of a pull cannot be reached or does not have the model."""


class SettingsError(VllamaError):
    """The settings file cannot be read or contains an invalid setting."""


class KeysError(VllamaError):
    """The key file cannot be read or written or is invalid, or a key cannot be created or revoked."""


class UsageError(VllamaError):
    """The record of usage cannot be read."""


class ServerError(VllamaError):
    """A command's request to the server failed."""


class ServerUnreachable(ServerError):
    """No server responds at the address."""


class ServerRefused(ServerError):
    """The server answered with an error. `status` is its HTTP status."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status
