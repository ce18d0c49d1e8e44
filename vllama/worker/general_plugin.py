"""The entry point of group `vllm.general_plugins`, which changes vLLM in each process of a worker."""

from __future__ import annotations

from vllama.worker import (
    bounded_templates,
    cpu_sampling,
    grammars,
    image_processors,
    processor_templates,
    rank_groups,
    repacked_weights,
    shared_code,
    sleep_backend,
    slow_masks,
    tokenizer_class,
)


def register() -> None:
    """Register what changes templates, sampling, grammars, images, ranks, weights, compiled code, sleep and tokenizers.

    The second time does nothing.
    """
    bounded_templates.register()
    cpu_sampling.register()
    grammars.register()
    image_processors.register()
    processor_templates.register()
    rank_groups.register()
    repacked_weights.register()
    shared_code.register()
    sleep_backend.register()
    slow_masks.register()
    tokenizer_class.register()
