"""vLLM's Triton kernels, compiled for a GPU that this machine lacks: LoRA, and attention without FlashAttention."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from recipes.gpu_set.pretended_gpu import SHARED_MEMORY, capability_of, pretend
from recipes.models.model_shape import ModelShape, model_shape
from recipes.preflight.hardware import load_hardware
from tsc.errors import ConfigError

POINTERS = {"float16": "*fp16", "bfloat16": "*bf16"}
TENSOR_CORES = re.compile(r"wgmma\.mma_async|mma\.sync|tcgen05\.mma")
LORA_RANK = 32


@dataclass(frozen=True, kw_only=True)
class Kernel:
    """A kernel as vLLM launches it. signature: Triton's type of each argument. constants: the other arguments."""

    name: str
    function: Any
    signature: Mapping[str, str]
    constants: Mapping[str, Any]
    options: Mapping[str, int] = field(default_factory=dict)


def check(profile: str, model: str) -> str:
    """Raises ConfigError if a kernel does not compile, or needs more shared memory than the GPU has."""
    hardware = load_hardware(profile)
    pretend(hardware)
    capability = capability_of(hardware)
    shape, pointer = model_shape(model), POINTERS[hardware.rollout_dtype]
    kernels = [*_lora_kernels(shape, pointer)]
    if hardware.vllm_attention_backend == "TRITON_ATTN":
        kernels += _attention_kernels(shape, pointer)
    with_tensor_cores = 0
    for kernel in kernels:
        compiled = _compiled(kernel, capability)
        shared = compiled.metadata.shared
        if shared > SHARED_MEMORY[capability]:
            raise ConfigError(f"{kernel.name} needs {shared} bytes of shared memory of {SHARED_MEMORY[capability]}")
        with_tensor_cores += TENSOR_CORES.search(compiled.asm["ptx"]) is not None
    return f"{len(kernels)} kernels, {with_tensor_cores} on tensor cores"


def _compiled(kernel: Kernel, capability: tuple[int, int]) -> Any:
    import triton.compiler
    from triton.backends.compiler import GPUTarget

    names = kernel.function.arg_names
    signature = {name: "constexpr" if name in kernel.constants else kernel.signature[name] for name in names}
    constants = {(index,): kernel.constants[name] for index, name in enumerate(names) if name in kernel.constants}
    source = triton.compiler.ASTSource(fn=kernel.function, signature=signature, constexprs=constants)
    target = GPUTarget("cuda", capability[0] * 10 + capability[1], 32)
    try:
        return triton.compiler.compile(source, target=target, options=dict(kernel.options))
    except Exception as error:  # of Triton, LLVM or ptxas
        raise ConfigError(f"{kernel.name} does not compile: {type(error).__name__}: {error}") from error


def _attention_kernels(shape: ModelShape, pointer: str) -> Iterator[Kernel]:
    from triton import next_power_of_2
    from vllm.v1.attention.ops.triton_unified_attention import kernel_unified_attention as function

    queries_per_key = shape.heads // shape.kv_heads
    block = 16 if queries_per_key <= 16 else next_power_of_2(queries_per_key)
    defaults = {
        name: parameter.default
        for name, parameter in zip(function.arg_names, function.signature.parameters.values(), strict=True)
    }
    for segments in (1, 16):  # of a sequence: prompts, and single tokens of long sequences
        split = segments > 1
        part = "*fp32" if split else pointer
        types = {
            **dict.fromkeys(("output_ptr", "query_ptr", "key_cache_ptr", "value_cache_ptr"), pointer),
            **dict.fromkeys(("k_scale_cache_ptr", "v_scale_cache_ptr"), pointer),
            **dict.fromkeys(("segm_output_ptr", "segm_max_ptr", "segm_expsum_ptr"), part),
            **dict.fromkeys(("block_tables_ptr", "seq_lens_ptr", "query_start_len_ptr"), "*i32"),
            **dict.fromkeys(("scale", "out_scale", "softcap"), "fp32"),
            "num_seqs": "i32",
        }
        constants: dict[str, Any] = {
            "num_query_heads": shape.heads,
            "num_queries_per_kv": queries_per_key,
            "BLOCK_SIZE": 16,
            "TILE_SIZE": 16 if split else 32,
            "HEAD_SIZE": shape.head_dim,
            "HEAD_SIZE_PADDED": next_power_of_2(shape.head_dim),
            "BLOCK_Q": block // queries_per_key,
            "BLOCK_M": block,
            "NUM_SEGMENTS_PER_SEQ": segments,
            "IS_3D": split,
            "USE_CAUSAL": True,
            "SLIDING_WINDOW": 0,
            "MAX_MM_RANGES": 0,
            "KV_QUANT_MODE": 0,
            "CHUNK_LOOKBACK": -1,
            "CHUNK_SIZE": -1,
            "stride_k_cache_3": 1,
            "stride_v_cache_3": 1,
        }
        for name in function.arg_names:
            if name in types or name in constants:
                continue
            if "stride" in name:
                types[name] = "i64"
            elif name.startswith(("USE_", "Q_IS")):
                constants[name] = False
            else:
                constants[name] = None if name.endswith("_ptr") or name.endswith("_scale") else defaults[name]
        yield Kernel(name=f"attention, {segments} parts", function=function, signature=types, constants=constants)


def _lora_kernels(shape: ModelShape, pointer: str) -> Iterator[Kernel]:
    from vllm.lora.ops.triton_ops.lora_expand_op import _lora_expand_kernel as expand
    from vllm.lora.ops.triton_ops.lora_shrink_op import _lora_shrink_kernel as shrink

    usual = {"num_warps": 4, "num_stages": 2}
    per_token = dict.fromkeys(
        ("token_indices_sorted_by_lora_ids", "num_tokens_per_lora", "lora_token_start_loc", "lora_ids"), "*i32"
    )
    for tokens, block, split in ((64, 256, 64), (8192, 32, 8)):
        types = dict.fromkeys(shrink.arg_names, "i32") | per_token
        types |= {"input_ptr": pointer, "lora_ptr": pointer, "out_ptr": "*fp32", "scaling": "fp32"}
        constants = {
            **{"BLOCK_M": 32, "BLOCK_N": 16, "BLOCK_K": block, "SPLIT_K": split, "GROUP_SIZE_M": 8, "SLICE_NUM": 1},
            **{"EVEN_K": shape.hidden % (block * split) == 0, "USE_GDC": False, "launch_pdl": False},
        }
        yield Kernel(
            name=f"LoRA shrink, {tokens} tokens", function=shrink, signature=types, constants=constants, options=usual
        )
    for slices, block in ((1, 128), (3, 64)):
        types = dict.fromkeys(expand.arg_names, "i32") | per_token | {"input_ptr": "*fp32", "out_ptr": pointer}
        types["lora_ptr"] = pointer if slices == 1 else "*u64"
        if slices == 1:
            types["slice_start_loc"] = "i32"
        else:
            pointers = ("slice_start_loc", "ls_d0_ptr", "ls_d1_ptr", "ls_d2_ptr", "output_hs_ptr")
            types |= dict.fromkeys(pointers, "*i64")
        constants = {
            **{"BLOCK_M": 64, "BLOCK_N": block, "BLOCK_K": 32, "EVEN_K": LORA_RANK % 32 == 0, "ADD_INPUTS": True},
            **{"CAST_TYPE": True, "SLICE_NUM": slices, "SAME_STRIDE": slices == 1},
            **{"USE_GDC": False, "launch_pdl": False},
        }
        yield Kernel(
            name=f"LoRA expand of {slices}", function=expand, signature=types, constants=constants, options=usual
        )
