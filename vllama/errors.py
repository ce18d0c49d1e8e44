"""Everything that can go wrong, named by its cause.

No HTTP in here: `vllama.ollama.status` maps causes to statuses.

VllamaError
├── RequestError              what the client sent cannot be served as sent
│   ├── InvalidName           the text is no model name
│   ├── OptionTypeError       an option has the wrong JSON type
│   ├── FormatError           `format` is neither "json" nor a JSON Schema object
│   ├── TemplateError         a Go template does not parse, or needs what is not translated
│   ├── BodyTooLarge          the body has more bytes than are taken
│   ├── PromptTooLong         the context has no room for the prompt
│   └── Unsupported           the model lacks the capability asked for
├── ModelNotFound             no manifest under this name
│   └── NamedModelNotFound    the same, in the words of `/api/copy`
├── BlobNotFound              nothing was uploaded under this digest
├── CloudDisabled             a name that only Ollama's cloud could serve
├── Overloaded                more requests wait than are allowed to
├── RequestCancelled          the client left before its turn came
├── EngineError               the model is there but could not answer
│   ├── LoadFailed            the worker did not become ready
│   │   ├── BadEngineFlags    vLLM refused the flags it was given
│   │   ├── OutOfMemory       the worker had too little of it
│   │   ├── KeepsFailing      it failed several times in a row: not tried again yet
│   │   └── NoRoom            it would not fit, whatever else were unloaded
│   ├── SleepFailed           the worker did not fall asleep, or did not wake as it was
│   ├── ServerStopping        the server was told to stop
│   └── WorkerDied            the worker went away with requests in flight
├── StoreError                the model store could not do it
│   ├── ManifestCorrupt       a manifest or a file that it names is damaged
│   └── SourceUnavailable     the place to pull from did not deliver
├── SettingsError             the file of settings cannot be used
└── ServerError               the CLI's view of a server
    ├── ServerUnreachable     nothing answers at OLLAMA_HOST
    └── ServerRefused         it answered with an error
"""

from __future__ import annotations


class VllamaError(Exception):
    """Base of all errors meant for a user's eyes; `str(error)` is the message.

    `retry_after` are seconds after which the same request may well succeed, None where nothing is known of that.
    """

    retry_after: int | None = None


class RequestError(VllamaError):
    """The request cannot be served as it was sent."""


class InvalidName(RequestError):
    """The text does not parse as a model name (contract §3)."""

    def __init__(self, message: str = "invalid model name") -> None:
        super().__init__(message)


class OptionTypeError(RequestError):
    """An entry of `options` has the wrong JSON type (contract §2.10)."""


class FormatError(RequestError):
    """`format` is neither "json" nor a JSON Schema object (contract §2.4)."""


class TemplateError(RequestError):
    """A Go template does not parse, or needs what is not translated (contract §1.2).

    The message is that of Go's parser, or names construct and line; `/api/create` puts `template error: ` before it.
    """


class BodyTooLarge(RequestError):
    """The body has more bytes than are taken; the first words are Go's."""

    def __init__(self, most: int) -> None:
        super().__init__(f"http: request body too large: at most {most >> 20} MiB are taken")


class PromptTooLong(RequestError):
    """The context has no room for the prompt, and the client does not want it cut (contract §1.2, §2.7)."""

    def __init__(self) -> None:
        super().__init__("the input length exceeds the context length")


class Unsupported(RequestError):
    """The model lacks the capability that the request needs."""


class ModelNotFound(VllamaError):
    """No model is stored under this name. `name` is the spelling that the client used."""

    def __init__(self, name: str) -> None:
        super().__init__(f"model '{name}' not found")
        self.name = name


class NamedModelNotFound(ModelNotFound):
    """As ModelNotFound, in the double quotes of `/api/copy` and its kin (contract §1.10)."""

    def __init__(self, name: str, advice: str = "") -> None:
        super().__init__(name)
        self.args = (f'model "{name}" not found{advice}',)


class BlobNotFound(VllamaError):
    """Nothing was uploaded under this digest (contract §1.9)."""

    def __init__(self, digest: str) -> None:
        super().__init__(f'blob "{digest}" not found')


class CloudDisabled(VllamaError):
    """Only Ollama's cloud could serve this name, and this server never calls it (contract §1.2)."""

    def __init__(self, what: str = "remote model is unavailable") -> None:
        super().__init__(f"ollama cloud is disabled: {what}")


class Overloaded(VllamaError):
    """The queue is full (contract §1.2; the two blanks are Ollama's)."""

    def __init__(self) -> None:
        super().__init__("server busy, please try again.  maximum pending requests exceeded")


class RequestCancelled(VllamaError):
    """The client left while its request waited."""

    def __init__(self) -> None:
        super().__init__("request canceled")


class EngineError(VllamaError):
    """The model is known but could not answer."""


class LoadFailed(EngineError):
    """The worker did not become ready; the message carries the end of its log."""


class BadEngineFlags(LoadFailed):
    """vLLM refused its command line; the message is vLLM's own."""


class OutOfMemory(LoadFailed):
    """The worker had too little memory, on the GPU or of the machine: others that go may make up for it."""


class SleepFailed(EngineError):
    """The worker could not sleep or wake; it has to be loaded again."""


class KeepsFailing(LoadFailed):
    """The model did not load, or its worker died, several times in a row; it is too early to try again."""

    def __init__(self, name: str, failures: int, seconds: int, cause: str) -> None:
        super().__init__(
            f"{name} failed {failures} times in a row and is not loaded again for {seconds} s; "
            f"the last failure: {cause}"
        )
        self.retry_after = seconds


class NoRoom(LoadFailed):
    """The model would not fit even if all that may be unloaded for it were; the message has the numbers."""


class ServerStopping(EngineError):
    """The server was told to stop."""

    def __init__(self) -> None:
        super().__init__("the server is stopping")


class WorkerDied(EngineError):
    """The worker went away with requests in flight (contract §1.2)."""

    def __init__(self) -> None:
        super().__init__(
            "model runner has unexpectedly stopped, this may be due to resource limitations "
            "or an internal error, check ollama server logs for details"
        )


class StoreError(VllamaError):
    """The model store could not do what was asked."""


class ManifestCorrupt(StoreError):
    """A manifest, or a file that it names, is damaged or missing."""


class SourceUnavailable(StoreError):
    """The place to pull from cannot be reached, or does not have the model."""


class SettingsError(VllamaError):
    """The file of settings cannot be read, or says what cannot be."""


class ServerError(VllamaError):
    """What a command saw of the server."""


class ServerUnreachable(ServerError):
    """Nothing answers at the address."""


class ServerRefused(ServerError):
    """The server answered with an error. `status` is its HTTP status."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status
