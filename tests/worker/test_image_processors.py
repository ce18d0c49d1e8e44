"""Image processors where torchvision is missing: vLLM 0.32 imports modules that need it, and gets those for PIL."""

from __future__ import annotations

import subprocess
import sys
from importlib.util import find_spec

import pytest

pytestmark = pytest.mark.vllm


@pytest.mark.slow  # what is installed decides it, not a change here
@pytest.mark.skipif(find_spec("torchvision") is not None, reason="torchvision is installed")
def test_vllm_can_import_gemma_3_and_llava_without_torchvision() -> None:
    code = (
        "from vllama.worker import image_processors; image_processors.register(); image_processors.register();"
        "from transformers.models.gemma3.image_processing_gemma3 import Gemma3ImageProcessor as first;"
        "from transformers.models.gemma3.image_processing_pil_gemma3 import Gemma3ImageProcessorPil as second;"
        "from vllm.model_executor.models import gemma3_mm, llava, llava_next; print(first is second)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.stdout.endswith("True\n"), done.stderr[-500:]
