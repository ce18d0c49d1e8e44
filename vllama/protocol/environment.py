"""Environment variables that the gateway sets for the workers that it starts."""

from __future__ import annotations

SUPERVISED = "VLLAMA_SUPERVISED"
"""Set to any value but "" where a gateway talks to the worker."""

PARENT_PROCESS = "VLLAMA_PARENT_PID"
"""The process that a child expects as its parent. If the child finds another one, its parent is dead already."""

UNTAGGED_CALLS = "VLLAMA_UNTAGGED_CALLS"
"""Whether calls as plain JSON are read (vllama.settings); also read by a worker without a gateway."""

CORES = "VLLM_CPU_OMP_THREADS_BIND"
"""vLLM's own variable for the cores that the ranks of a worker on CPUs compute on."""

TEMPLATE_TIMEOUT = "VLLAMA_TEMPLATE_TIMEOUT"
TEMPLATE_OUTPUT = "VLLAMA_TEMPLATE_OUTPUT"
TEMPLATE_LENGTH = "VLLAMA_TEMPLATE_LENGTH"
"""Limits of chat templates (vllama.settings); also read by a worker without a gateway."""

GRAMMAR_TIMEOUT = "VLLAMA_GRAMMAR_TIMEOUT"
MAX_SCHEMA_PROPERTIES = "VLLAMA_MAX_SCHEMA_PROPERTIES"
"""Limits of schemas and grammars (vllama.settings); also read by a worker without a gateway."""
