"""Translation of vLLM's exceptions to our errors."""

from __future__ import annotations

from vllm.v1.engine.exceptions import EngineDeadError

from vllama.errors import EngineError, PromptTooLong, RequestError, WorkerDied
from vllama.worker.chat_templates import CANNOT_RENDER

# The `parameter` of the validation error for a prompt over the model's length (`vllm/renderers/params.py`).
_LENGTH_PARAMETERS = frozenset({"input_tokens", "input_text"})


def as_our_error(error: Exception) -> Exception:
    """Translate an exception of `generate`; our own errors and bugs are returned unchanged."""
    if isinstance(error, EngineDeadError):
        return WorkerDied()
    if getattr(error, "parameter", None) in _LENGTH_PARAMETERS:
        return PromptTooLong()
    if _is_clients_fault(error):
        return RequestError(str(error))
    if type(error).__module__.startswith("vllm."):
        return EngineError(f"an error was encountered while running the model: {error.__cause__ or error}")
    return error


def as_request_error(error: Exception) -> Exception:
    """Translate an exception of rendering messages, mostly with the chat template's own message."""
    ours = as_our_error(error)
    if isinstance(error, TypeError | LookupError) or (isinstance(ours, RequestError) and type(ours) is RequestError):
        return RequestError(f"{error}" if f"{error}".startswith(CANNOT_RENDER) else f"{CANNOT_RENDER}: {error}")
    return ours


def _is_clients_fault(error: Exception) -> bool:
    """Return whether the request is at fault: ValueError in 0.26, VLLMClientError (not a ValueError) in 0.32."""
    return isinstance(error, ValueError) or any(cls.__name__ == "VLLMClientError" for cls in type(error).__mro__)
