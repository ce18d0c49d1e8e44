"""Conversion of GGUF files to Hugging Face snapshots: configuration, weights and tokenizer.

The work needs numpy and gguf, which the gateway must never import, so it runs in a separate process:
`python -m vllama.store.gguf.conversion SOURCE DESTINATION PRECISION [PROJECTOR]`. It writes a line
`progress DONE TOTAL` for each part of the weights, in bytes.
"""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from collections import Counter, deque
from collections.abc import Callable, Generator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from vllama.errors import StoreError
from vllama.machine.interruption import interruptible
from vllama.machine.tied import tied
from vllama.store.copying import check_room
from vllama.store.gguf.json_files import write_json
from vllama.store.gguf.limits import limit_this_process, limits, note_progress, turn
from vllama.store.gguf.tokenizer import write_tokenizer
from vllama.store.progress import Progress

if TYPE_CHECKING:
    from vllama.store.gguf.reading import GgufFile
    from vllama.store.gguf.writing import OutputTensor

_LAST_LINES = 15
_FILES_FAULT, _DISKS_FAULT = 1, 74
"""Exit statuses of converters; the second is EX_IOERR of sysexits.h."""
_LONGEST_REASON = 300
_ADVICE = "remove models that you do not need, or set OLLAMA_MODELS to a directory on a larger disk"

_PROGRESS = re.compile(r"progress (\d+) (\d+)")
_QUIET_AND_OFFLINE = {
    "HF_HUB_OFFLINE": "1",
    "TRANSFORMERS_OFFLINE": "1",
    "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    "TRANSFORMERS_VERBOSITY": "error",
    "TOKENIZERS_PARALLELISM": "false",
    "CUDA_VISIBLE_DEVICES": "",  # the CPU produces the same bytes on every machine
}


class ConverterFailed(Exception):
    """A converter's process failed: `how` it ended, and the `last` lines that it wrote.

    `is_files_fault` says that no other machine and no larger disk would help.
    """

    def __init__(self, how: str, last: str, *, is_files_fault: bool = False) -> None:
        super().__init__(how, last)
        self.how, self.last, self.is_files_fault = how, last, is_files_fault


class DiskFull(StoreError):
    """The disk has no room for what a conversion would write."""


class UnusableGguf(StoreError):
    """A GGUF file that is damaged, of an unknown kind, or whose conversion exceeds the limits."""


def convert(
    source: Path, destination: Path, precision: str = "exact", projector: Path | None = None
) -> Generator[tuple[int, int], None, None]:
    """Convert the GGUF file `source` to a snapshot in the directory `destination`.

    `projector` is the file of the model's vision tower (mmproj). Yields the bytes of weights that are written, and the
    total.

    With the precision "exact", quantized weights keep their integers (vllama.store.gguf.repacking); with "bf16", they
    are decoded and rounded to bfloat16.

    The snapshot contains safetensors, config.json, generation_config.json, the tokenizer and the GGUF's own chat
    template. The same input and libraries give the same bytes. Raises StoreError with the last lines of the
    converter, which checks the room on the disk before it writes.
    """
    more = () if projector is None else (projector,)
    try:
        yield from run_converter("vllama.store.gguf.conversion", source, destination, precision, *more)
    except ConverterFailed as error:
        message = f"cannot convert {source.name} to safetensors (converter ended with {error.how}):\n{error.last}"
        raise (UnusableGguf if error.is_files_fault else StoreError)(message) from None


def convert_in_turn(
    status: str, source: Path, destination: Path, precision: str, *projector: Path
) -> Generator[Progress, None, None]:
    """Wait until one more converter may run, then do as `convert`; each step has this `status`."""
    with (yield from turn()):
        for written, total in convert(source, destination, precision, *projector):
            yield Progress(status, total=total, completed=written)


def run_converter(module: str, *arguments: Path | str) -> Generator[tuple[int, int], None, None]:
    """Run a converter in a separate process; yield the bytes that it has written, and the total.

    The process is killed if the iteration ends early, or if this process is killed: the thread that takes the first
    step must live as long as the iteration. Raises ConverterFailed.
    """
    # -P: modules must not be imported from the working directory.
    command = [sys.executable, "-P", "-m", module, *map(str, arguments)]
    last: deque[str] = deque(maxlen=_LAST_LINES)
    with subprocess.Popen(
        tied(*command),
        env=os.environ | _QUIET_AND_OFFLINE | limits().to_environment(),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
    ) as process:
        try:
            with interruptible(process):
                for line in process.stdout or ():
                    if found := _PROGRESS.fullmatch(line.rstrip()):
                        yield int(found[1]), int(found[2])
                    else:
                        last.append(line.rstrip())
        except BaseException:
            process.kill()
            raise
    if (status := process.returncode) != 0:
        how = f"status {status}" if status > 0 else f"signal {-status}"
        if -status == signal.SIGXCPU:
            last.append(
                f"it took {limits().seconds} s of processor time without progress; see VLLAMA_CONVERTER_TIMEOUT"
            )
        raise ConverterFailed(how, "\n".join(last).strip(), is_files_fault=status in {_FILES_FAULT, -signal.SIGXCPU})


def run_as_converter(work: Callable[[], None]) -> None:
    """Do a converter's work in this process, within its limits, and exit with one line where it fails.

    Errors while a foreign file is read are that file's fault, except for those of the disk.
    """
    limit_this_process()
    try:
        work()
    except DiskFull as error:
        _exit(_DISKS_FAULT, str(error))
    except StoreError as error:
        _exit(_FILES_FAULT, str(error))
    except OSError as error:
        _exit(_DISKS_FAULT, f"cannot read or write: {error}")
    except MemoryError:
        _exit(_FILES_FAULT, "it needs more memory than a converter may take; see VLLAMA_CONVERTER_MEMORY")
    except Exception as error:  # noqa: BLE001 - a traceback would not help the user
        _exit(_FILES_FAULT, f"the file is damaged: {type(error).__name__}: {str(error)[:_LONGEST_REASON]}")


def _exit(status: int, message: str) -> NoReturn:
    print(message, file=sys.stderr, flush=True)
    sys.exit(status)


def main(arguments: list[str]) -> None:
    """Run the conversion in this process."""
    source, destination = map(Path, arguments[:2])
    precision = arguments[2]
    try:
        from vllama.store.gguf.reading import GgufFile
    except ImportError as error:
        sys.exit(f"reading GGUF needs numpy and gguf, which come with vLLM: {error}")
    destination.mkdir(parents=True, exist_ok=True)

    def work() -> None:
        projector = GgufFile(Path(arguments[3])) if len(arguments) > 3 else None
        made = write_model(
            GgufFile(source), destination, _print_progress, repacks=precision == "exact", projector=projector
        )
        ends = write_tokenizer(made.keys, destination, made.context_length, made.tokens)
        end_replies_at(ends, destination / "generation_config.json")

    run_as_converter(work)
    for path in destination.rglob("*"):
        if path.is_file():
            path.chmod(0o644)


@dataclass(frozen=True)
class Plan:
    """The parts of a snapshot: config.json, the tensors to write, other settings files, and what the tokenizer needs.

    `keys` are those from which the tokenizer is rebuilt, `tokens` are further tokens by their names in
    tokenizer_config.json, and `context_length` is in tokens.
    """

    config: dict[str, Any]
    tensors: list[OutputTensor]
    files: Mapping[str, dict[str, Any]]
    keys: Mapping[str, Any]
    tokens: Mapping[str, str]
    context_length: int


def write_model(
    file: GgufFile,
    destination: Path,
    progress: Callable[[int, int], None] | None = None,
    *,
    repacks: bool = False,
    projector: GgufFile | None = None,
) -> Plan:
    """Write the settings files and the weights; return what the tokenizer needs, too.

    `progress` gets the bytes of weights that are written, and the total. `repacks` says that quantized weights keep
    their integers. `projector` is the file of its vision tower. Raises StoreError, also if the disk is too full: then
    nothing is written.
    """
    from vllama.store.gguf.pooling import embeds, write_pooling
    from vllama.store.gguf.writing import write_weights

    made = plan(file, repacks=repacks, projector=projector)
    try:
        check_room(destination, sum(tensor.size for tensor in made.tensors), _ADVICE)
    except StoreError as error:
        raise DiskFull(str(error)) from None
    write_weights(made.tensors, destination, progress or (lambda *_: None))
    if embeds(file):
        write_pooling(file, destination, made.context_length)
    write_json(destination / "config.json", shorten(made.config))
    for name, record in made.files.items():
        write_json(destination / name, record)
    known = {field: ids for field, ids in token_ids(file).items() if ids is not None}
    write_json(destination / "generation_config.json", known)
    return made


def plan(file: GgufFile, *, repacks: bool, projector: GgufFile | None = None) -> Plan:
    """Return what the file becomes, with the tower in `projector` if any. Weights are not read. Raises StoreError."""
    from vllama.store.gguf.architectures.entries import TABLE
    from vllama.store.gguf.quantization import description, divided, kept_forms, method, quantized
    from vllama.store.gguf.vision.joining import join
    from vllama.store.gguf.vision.tower import separate

    text, tower = separate(file, projector)
    entry = TABLE.get(text.architecture)
    if entry is None:
        raise StoreError(f"architecture '{text.architecture}' cannot be converted")
    _check_layers(text)
    tokens = token_ids(text)
    known = {field: ids for field, ids in tokens.items() if ids is not None}
    config = {**tokens, **entry.configure(text), **known, "dtype": _dtype(text, is_encoder=entry.is_encoder)}
    tensors = list(entry.place(text))
    keeps = repacks and not entry.is_encoder
    architecture, context_length = config["architectures"][0], int(config["max_position_embeddings"])
    if keeps:
        tensors = list(divided(tensors, architecture))
    joined = join(text, tower, config, tensors) if tower else None
    if joined:
        config, tensors = joined.config, joined.tensors
    forms = kept_forms(tensors, architecture) if keeps else [None] * len(tensors)
    described = description(file, tensors, forms)
    config["gguf"] = {"precision": "exact" if repacks else "bf16", **described}
    if kept := method(described, architecture):
        config["quantization_config"] = kept
    return Plan(
        config=config,
        tensors=list(quantized(tensors, forms)),
        files=joined.files if joined else {},
        keys=joined.keys if joined else file.keys,
        tokens=joined.tokens if joined else {},
        context_length=context_length,
    )


def _check_layers(file: GgufFile) -> None:
    """Raise StoreError if the file declares more layers than it has tensors: lists of layers are made next."""
    layers = file.key("{arch}.block_count", 0)
    if isinstance(layers, int) and layers > len(file.tensors):
        raise StoreError(f"the GGUF file declares {layers} layers and has {len(file.tensors)} tensors")


def end_replies_at(ends: tuple[int, ...], path: Path) -> None:
    """Let generation_config.json end replies at all tokens at which llama.cpp ends them; the file names one or two."""
    record = json.loads(path.read_bytes())
    if ends:
        record["eos_token_id"] = list(ends)
    write_json(path, record)


def _dtype(file: GgufFile, *, is_encoder: bool) -> str:
    """Return the type to compute in: bfloat16, for encoders that of most weights, since they are trained in more."""
    weights: Counter[str] = Counter()
    for tensor in file.tensors.values():
        weights[tensor.type.name] += tensor.blocks.nbytes
    most = max(weights, key=lambda name: weights[name], default="")
    return {"F32": "float32", "F16": "float16"}.get(most, "bfloat16") if is_encoder else "bfloat16"


def _print_progress(done: int, total: int) -> None:
    note_progress()
    print(f"progress {done} {total}", flush=True)


_TOKEN_IDS = {"bos_token_id": ("bos",), "eos_token_id": ("eos", "eot"), "pad_token_id": ("padding",)}
"""Fields of config.json, and the tokens of the GGUF file that they name: a model may end a text and a turn."""


def token_ids(file: GgufFile) -> dict[str, Any]:
    """Return the ids of special tokens: a number, a list if there are several, or None, which config.json has as well.

    Without it, the classes of transformers have defaults of their own.
    """
    found: dict[str, Any] = {}
    for field, names in _TOKEN_IDS.items():
        ids = [file.key(f"tokenizer.ggml.{name}_token_id", None) for name in names]
        known = list(dict.fromkeys(int(number) for number in ids if isinstance(number, int)))
        found[field] = known if len(known) > 1 else known[0] if known else None
    return found


def shorten(value: Any) -> Any:
    """Return the value with 32-bit floats of a GGUF file as they were before: 1e-05."""
    import numpy as np

    if isinstance(value, float):
        return float(str(np.float32(value)))
    if isinstance(value, dict):
        return {key: shorten(item) for key, item in value.items()}
    if isinstance(value, list):
        return [shorten(item) for item in value]
    return value


if __name__ == "__main__":
    main(sys.argv[1:])
