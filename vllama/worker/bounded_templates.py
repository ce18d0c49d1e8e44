"""Let transformers and vLLM compile chat templates in the sandbox with bounds, in each process of a worker.

They build their environment from `ImmutableSandboxedEnvironment`, which is replaced where they look for it: in
`transformers.utils.chat_template_utils` (4.56 to 5), and as an attribute of `jinja2.sandbox` in `vllm/renderers/hf.py`
(0.26 to 0.33). `tests/worker/test_bounded_templates_in_vllm.py` renders and resolves through their own functions.
"""

from __future__ import annotations

import os


def register() -> None:
    """Replace the sandbox, and take the limits from the environment; the second time changes nothing."""
    import jinja2.sandbox

    from vllama.ollama.bounded_jinja import BoundedEnvironment
    from vllama.ollama.template_limits import limits_of, set_limits
    from vllama.settings import Settings

    set_limits(limits_of(Settings.from_environment(os.environ)))
    jinja2.sandbox.ImmutableSandboxedEnvironment = BoundedEnvironment  # type: ignore[misc]
    import transformers.utils.chat_template_utils as of_transformers

    of_transformers.ImmutableSandboxedEnvironment = BoundedEnvironment
    for name in ("_compile_jinja_template", "_cached_compile_jinja_template"):
        forget = getattr(getattr(of_transformers, name, None), "cache_clear", None)
        if forget is not None:
            forget()  # templates that were compiled before
