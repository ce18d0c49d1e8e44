"""Image processors of transformers where torchvision is missing, as in installations for CPUs.

transformers (from 5.0 on) has most image processors twice, for torchvision and for PIL, and chooses the one that can
run. But vLLM 0.32 imports modules of processors for torchvision, for names of types and a function: that of Gemma 3,
and that of Pixtral for LLaVA. There the modules for PIL take their places, so that these models can be loaded.
"""

from __future__ import annotations

import sys
from importlib import import_module
from importlib.util import find_spec
from types import ModuleType
from typing import Any

_FAMILIES = ("gemma3", "pixtral")
_PIL = "Pil"
"""The end of the names of classes for PIL."""


def register() -> None:
    """Put modules for PIL in the place of those that need torchvision; the second time does nothing."""
    if find_spec("torchvision") is not None:
        return
    for family in _FAMILIES:
        name = f"transformers.models.{family}.image_processing_{family}"
        of_pil = f"transformers.models.{family}.image_processing_pil_{family}"
        if name not in sys.modules and find_spec(of_pil) is not None:
            sys.modules[name] = _Renamed(name, of_pil)


class _Renamed(ModuleType):
    """A module with the contents of another one, whose classes have the names of those for torchvision.

    It is imported when it is used: most models need none.
    """

    def __init__(self, name: str, of_pil: str) -> None:
        super().__init__(name)
        self._of_pil = of_pil

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):  # asked for by who looks through all modules
            raise AttributeError(name)
        module = import_module(self._of_pil)
        return getattr(module, f"{name}{_PIL}" if hasattr(module, f"{name}{_PIL}") else name)
