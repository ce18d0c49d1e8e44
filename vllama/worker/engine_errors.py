"""What vLLM raises, in our terms."""

from __future__ import annotations

from vllm.v1.engine.exceptions import EngineDeadError

from vllama.errors import EngineError, PromptTooLong, RequestError, WorkerDied

# The `parameter` of the validation error for a prompt over the model's length (`vllm/renderers/params.py`).
_LENGTH_PARAMETERS = frozenset({"input_tokens", "input_text"})


def as_our_error(error: Exception) -> Exception:
    """Translate what `generate` raises; an error that is already ours, or a bug, is returned as it is."""
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
    """Translate what rendering messages raises: mostly the chat template's own words."""
    ours = as_our_error(error)
    if isinstance(error, TypeError | LookupError) or (isinstance(ours, RequestError) and type(ours) is RequestError):
        return RequestError(f"the chat template cannot render these messages: {error}")
    return ours


def _is_clients_fault(error: Exception) -> bool:
    """Whether the request is to blame: 0.26 raises ValueError then, 0.32 VLLMClientError (which is no ValueError)."""
    return isinstance(error, ValueError) or any(cls.__name__ == "VLLMClientError" for cls in type(error).__mro__)
