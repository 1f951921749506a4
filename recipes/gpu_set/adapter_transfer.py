"""An adapter's way from verl's FSDP2 engine into vLLM, as far as a CPU goes."""

from __future__ import annotations

import os
import tempfile
from typing import Any

from tsc.errors import ConfigError

LAYERS, RANK = 2, 32


def check(_profile: str, _model: str) -> str:
    """With a small model, the same on all GPUs: names of the tensors, LoRA's settings through vLLM's message format,
    vLLM's LoRA layers. Raises ConfigError."""
    tensors, settings = _sent_by_verl()
    from vllm.lora.lora_model import LoRAModel
    from vllm.lora.peft_helper import PEFTHelper
    from vllm.v1.serial_utils import MsgpackDecoder, MsgpackEncoder

    message = (0, 1, "collective_rpc", ("update_weights_from_ipc", None, (), {"peft_config": settings}))
    received = MsgpackDecoder().decode(MsgpackEncoder().encode(message))[3][3]["peft_config"]
    helper = PEFTHelper.from_dict(received)
    import torch
    import vllm.lora.lora_model

    module: Any = vllm.lora.lora_model
    module.PIN_MEMORY = False
    model = LoRAModel.from_lora_tensors(
        tensors=dict(tensors),
        peft_helper=helper,
        lora_model_id=123,
        device="cpu",
        dtype=torch.bfloat16,
        weights_mapper=None,
        model_vocab_size=1000,
    )
    linears = LAYERS * 7  # queries, keys, values, output; gate, up, down
    if helper.r != RANK or len(model.loras) != linears or len(tensors) != 2 * linears:
        raise ConfigError(
            f"{len(tensors)} tensors of rank {helper.r} became {len(model.loras)} layers of vLLM, not {linears}"
        )
    return f"{len(tensors)} tensors, {len(model.loras)} layers"


def _sent_by_verl() -> tuple[dict[str, Any], dict[str, Any]]:
    os.environ.update(VERL_PLATFORM="cpu", VERL_USE_EXTERNAL_MODULES="recipes.verl_plugins.cpu")
    os.environ.update(RANK="0", WORLD_SIZE="1", LOCAL_RANK="0")
    import torch
    from transformers import AutoModelForCausalLM, Qwen2Config
    from verl.trainer.config import CheckpointConfig
    from verl.workers.config import FSDPEngineConfig, FSDPOptimizerConfig, HFModelConfig
    from verl.workers.engine import EngineRegistry

    shape = Qwen2Config(
        vocab_size=1000,
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=LAYERS,
        num_attention_heads=4,
        num_key_value_heads=2,
        tie_word_embeddings=True,
    )
    in_fp32 = dict.fromkeys(("param_dtype", "reduce_dtype", "buffer_dtype"), "fp32")
    with tempfile.TemporaryDirectory() as folder, tempfile.NamedTemporaryFile() as store:
        torch.distributed.init_process_group("gloo", init_method=f"file://{store.name}", rank=0, world_size=1)
        AutoModelForCausalLM.from_config(shape, dtype=torch.float32).save_pretrained(folder)
        engine = EngineRegistry.new(
            model_type="language_model",
            backend="fsdp2",
            model_config=HFModelConfig(
                path=folder,
                load_tokenizer=False,
                use_remove_padding=False,
                lora_rank=RANK,
                lora_alpha=64,
                target_modules="all-linear",
                override_config={"attn_implementation": "sdpa"},
            ),
            engine_config=FSDPEngineConfig(strategy="fsdp2", use_torch_compile=False, mixed_precision=in_fp32),
            optimizer_config=FSDPOptimizerConfig(lr=1e-3, total_training_steps=10),
            checkpoint_config=CheckpointConfig(),
        )
        engine.initialize()
        tensors, settings = engine.get_per_tensor_param(layered_summon=False, base_sync_done=True)
        found = {name: tensor.clone() for name, tensor in tensors}
        torch.distributed.destroy_process_group()
    return found, settings
