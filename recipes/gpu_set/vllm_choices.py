"""What vLLM decides on a GPU: for rollouts, as verl starts it, and for evaluations, as VllmServer starts it."""

from __future__ import annotations

import asyncio
import inspect
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import MethodType, SimpleNamespace
from typing import Any

from omegaconf import DictConfig, OmegaConf

from recipes.gpu_set.launch_config import launch_config
from recipes.gpu_set.pretended_gpu import pretend
from recipes.preflight.hardware import BF16_CAPABILITY, Hardware, load_hardware
from tsc.errors import ConfigError
from tsc.files import REPO_ROOT


def check_rollout(profile: str, model: str) -> str:
    """verl's own launch_server, up to the configuration with which vLLM would start. Raises ConfigError."""
    hardware = load_hardware(profile)
    pretend(hardware)
    config = launch_config(profile, model)
    vllm_config = asyncio.run(_of_verl(config))
    rollout = config.actor_rollout_ref.rollout
    compilation = vllm_config.compilation_config
    expect(
        {
            "attention": (_attention(vllm_config), _expected_attention(hardware)),
            "dtype": (str(vllm_config.model_config.dtype), f"torch.{hardware.rollout_dtype}"),
            "enforce_eager": (vllm_config.model_config.enforce_eager, hardware.enforce_eager),
            "sleep mode": (vllm_config.model_config.enable_sleep_mode, rollout.free_cache_engine),
            "log-probs": (vllm_config.model_config.logprobs_mode, "processed_logprobs"),
            "sampler": (_sampler(vllm_config), "torch"),
            "LoRA rank": (vllm_config.lora_config.max_lora_rank, config.actor_rollout_ref.model.lora_rank),
            "share of memory": (vllm_config.cache_config.gpu_memory_utilization, rollout.gpu_memory_utilization),
            "answers at a time": (vllm_config.scheduler_config.max_num_seqs, rollout.max_num_seqs),
        }
        | (
            {}
            if hardware.enforce_eager
            else {"graphs": (list(compilation.cudagraph_capture_sizes), hardware.cudagraph_capture_sizes)}
        )
    )
    return f"{_attention(vllm_config)} {hardware.rollout_dtype}"


def check_evaluation(profile: str, model: str) -> str:
    """The evaluation's server with base and adapter. Raises ConfigError."""
    hardware = load_hardware(profile)
    pretend(hardware)
    import recipes.serving.vllm_server as server

    server_module: Any = server
    server_module.compute_capability = lambda: hardware.compute_capability
    with _model_and_adapter(model) as (base, adapter):
        started = server.VllmServer(base, adapter, name="checked", log_file=base / "vllm.log")
        environment = server.engine_environment(base)
        vllm_config = _of_arguments(started._command(port=1), environment)
    expect(
        {
            "attention": (_attention(vllm_config), _expected_attention(hardware)),
            "dtype": (str(vllm_config.model_config.dtype), f"torch.{hardware.rollout_dtype}"),
            "enforce_eager": (
                vllm_config.model_config.enforce_eager,
                (hardware.compute_capability or 0) < BF16_CAPABILITY,
            ),
            "sampler": (_sampler(vllm_config), "torch"),
        }
    )
    return f"{_attention(vllm_config)} {hardware.rollout_dtype}"


def expect(found: dict[str, tuple[Any, Any]]) -> None:
    """found: by name, what was found and what should be. Raises ConfigError with those that differ."""
    wrong = [f"{name} is {is_!r}, should be {should!r}" for name, (is_, should) in found.items() if is_ != should]
    if wrong:
        raise ConfigError("; ".join(wrong))


def _expected_attention(hardware: Hardware) -> str:
    return hardware.vllm_attention_backend or "FLASH_ATTN"


async def _of_verl(config: DictConfig) -> Any:
    from transformers import AutoConfig
    from verl.utils.config import omega_conf_to_dataclass
    from verl.workers.rollout.vllm_rollout.vllm_async_server import vLLMHttpServer

    model = config.actor_rollout_ref.model
    server = object.__new__(vLLMHttpServer)  # without the Ray actors that its constructor asks for
    values = {
        "config": omega_conf_to_dataclass(config.actor_rollout_ref.rollout),
        "model_config": SimpleNamespace(
            local_path=model.path,
            lora_rank=model.lora_rank,
            lora=OmegaConf.to_container(model.lora),
            trust_remote_code=False,
            hf_config=AutoConfig.from_pretrained(model.path),
        ),
        "replica_rank": 1,
        "node_rank": 0,
        "nnodes": 1,
        "gpus_per_node": config.trainer.n_gpus_per_node,
        "_disaggregation_role": "null",
        "profiler_controller": None,
        "_should_profile": lambda: False,
        "_master_address": "127.0.0.1",
        "_dp_rpc_port": 1,
        "_master_port": 2,
        "workers": [None],
    }
    for name, value in values.items():
        setattr(server, name, value)
    found = []

    async def keep_configuration(self: Any, arguments: Any) -> None:
        from vllm.engine.arg_utils import AsyncEngineArgs

        found.append(_engine_config(AsyncEngineArgs.from_cli_args(arguments)))

    server.run_server = MethodType(keep_configuration, server)
    server._validate_configs()
    await server.launch_server()
    return found[0]


def _of_arguments(command: list[str], environment: dict[str, str]) -> Any:
    from vllm.engine.arg_utils import AsyncEngineArgs
    from vllm.entrypoints.openai.cli_args import make_arg_parser
    from vllm.utils.argparse_utils import FlexibleArgumentParser

    os.environ.update(environment)
    parser = make_arg_parser(FlexibleArgumentParser())
    return _engine_config(AsyncEngineArgs.from_cli_args(parser.parse_args(command[command.index("--model") :])))


def _engine_config(arguments: Any) -> Any:
    from vllm.usage.usage_lib import UsageContext

    return arguments.create_engine_config(usage_context=UsageContext.OPENAI_API_SERVER)


def _in_config(vllm_config: Any, function: Callable[[], Any]) -> Any:
    from vllm.config import set_current_vllm_config

    with set_current_vllm_config(vllm_config):
        return function()


def _attention(vllm_config: Any) -> str:
    from vllm.v1.attention.selector import get_attn_backend

    model = vllm_config.model_config
    known = inspect.signature(get_attn_backend).parameters
    asked = {"head_size": model.get_head_size(), "dtype": model.dtype, "kv_cache_dtype": "auto"}
    asked = {name: value for name, value in asked.items() if name in known}
    return str(_in_config(vllm_config, lambda: get_attn_backend(**asked)).get_name())


def _sampler(vllm_config: Any) -> str:
    """torch, or FlashInfer, which is compiled at the first request and so needs the right nvcc."""
    from vllm.v1.sample.ops.topk_topp_sampler import TopKTopPSampler

    sampler = _in_config(vllm_config, lambda: TopKTopPSampler(vllm_config.model_config.logprobs_mode))
    return "torch" if sampler.forward == sampler.forward_native else "FlashInfer"


@contextmanager
def _model_and_adapter(model: str) -> Iterator[tuple[Path, Path]]:
    """Folders that hold what vLLM reads before the weights."""
    with tempfile.TemporaryDirectory() as name:
        base, adapter = Path(name) / "base", Path(name) / "adapter"
        shutil.copytree(REPO_ROOT / "configs/models" / model, base)
        adapter.mkdir()
        for file in (base / "tokenizer.json", base / "model.safetensors", adapter / "adapter_model.safetensors"):
            file.touch()
        (base / "tokenizer_config.json").write_text(json.dumps({"chat_template": "{{ messages }}"}))
        (adapter / "adapter_config.json").write_text(json.dumps({"r": 32}))
        yield base, adapter
