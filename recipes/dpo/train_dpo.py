"""Train a language model on preference pairs with TRL's DPOTrainer (Rafailov et al. 2023), and margins in the loss.

Example, from the repository's root:
    torchrun --standalone --nproc_per_node=1 recipes/dpo/train_dpo.py hardware=cpu \\
        data.train_files=runs/mine/dpo/pairs/train.parquet model.path=runs/mine/sft/merged \\
        trainer.default_local_dir=runs/mine/dpo/checkpoints [HYDRA OVERRIDE...]

recipes/dpo.yaml holds every setting; scripts/train_dpo.sh makes the pairs, calls this and exports the model.
Checkpoints go to trainer.default_local_dir/checkpoint-STEP; the last complete one is named in
latest_checkpointed_iteration.txt there, and the same command continues from it.

The loss of a pair with margin m in (0, 1] is that of DPO with an offset (ODPO, Amini et al. 2024, equation 9; the
margin of Llama 2's reward model, Touvron et al. 2023, equation 2):
    L = -log sigmoid(r(chosen) - r(rejected) - margin_scale · m),    r(a) = β · (log π(a) - log π_start(a))
TRL itself does not have margins: DPOTrainer drops columns that it does not know.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import datasets
import hydra
import torch
import torch.nn.functional as F
from accelerate import PartialState
from omegaconf import DictConfig, OmegaConf
from peft import LoraConfig, PeftModel
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    PrinterCallback,
    TrainerCallback,
    TrainerControl,
    TrainerState,
    TrainingArguments,
    set_seed,
)
from trl import DPOConfig, DPOTrainer
from trl.trainer.dpo_trainer import DataCollatorForPreference

from recipes.models.checkpoints import TRACKER, latest_step
from recipes.models.model_folder import no_progress_bars_in_logs
from recipes.models.quantisation import (
    FOUR_BIT,
    check_quantize,
    check_quantize_installed,
    four_bit_config,
    note_quantised,
)
from recipes.preflight.trl_settings import check_trl_fields, passes
from tsc.errors import ConfigError, run_main
from tsc.files import write_atomically

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase
    from verl.utils.tracking import Tracking

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


def offset_loss(
    chosen_rewards: torch.Tensor, rejected_rewards: torch.Tensor, margins: torch.Tensor, margin_scale: float
) -> torch.Tensor:
    """The loss of each pair, as the module's text defines it. All tensors have the shape (pairs,)."""
    return -F.logsigmoid(chosen_rewards - rejected_rewards - margin_scale * margins)


def answer_log_probs(model: torch.nn.Module, batch: dict[str, torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
    """Log-probs of the chosen and of the rejected answers, each of shape (pairs,).

    batch: what MarginCollator makes. The first half of its rows are the chosen answers, the second half the rejected.
    """
    of_answer = batch["completion_mask"][:, 1:]
    first = int(of_answer.argmax(dim=1).min())
    next_tokens = batch["input_ids"][:, first + 1 :]
    # TRL takes logits at every position. With a vocabulary of 152,000 that is 0.6 MB a token in float32, and nearly all
    # tokens belong to the prompt.
    logits = model(
        input_ids=batch["input_ids"],
        attention_mask=batch["attention_mask"],
        use_cache=False,
        logits_to_keep=next_tokens.shape[1] + 1,
    ).logits[:, :-1]
    log_probs = logits.float().log_softmax(dim=-1).gather(-1, next_tokens[..., None])[..., 0]
    chosen, rejected = (log_probs * of_answer[:, first:]).sum(dim=1).chunk(2)
    return chosen, rejected


class MarginCollator(DataCollatorForPreference):
    """Makes TRL's batches, with the pairs' margins."""

    def torch_call(self, examples: list[dict[str, Any]]) -> dict[str, Any]:
        batch: dict[str, Any] = super().torch_call(examples)
        batch["margin"] = torch.tensor([example["margin"] for example in examples], dtype=torch.float32)
        return batch


class OffsetDPOTrainer(DPOTrainer):
    """DPOTrainer with a margin in the loss. The reference's log-probs must be precomputed."""

    def __init__(self, *args: Any, margin_scale: float, **kwargs: Any) -> None:
        self.margin_scale = margin_scale
        super().__init__(*args, **kwargs)

    def _set_signature_columns_if_needed(self) -> None:
        super()._set_signature_columns_if_needed()
        if "margin" not in self._signature_columns:
            self._signature_columns.append("margin")

    def compute_ref_log_probs(
        self, model: torch.nn.Module, inputs: dict[str, torch.Tensor]
    ) -> tuple[torch.Tensor, torch.Tensor]:
        start = self.accelerator.unwrap_model(self.model)
        without_adapter = start.disable_adapter() if isinstance(start, PeftModel) else contextlib.nullcontext()
        # with other arithmetic than in training, the two would differ before the first update
        with torch.no_grad(), without_adapter, self.accelerator.autocast():
            return answer_log_probs(model, inputs)

    def compute_loss(
        self,
        model: torch.nn.Module,
        inputs: dict[str, torch.Tensor],
        return_outputs: bool = False,
        num_items_in_batch: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Mean loss of the batch."""
        chosen, rejected = answer_log_probs(model, inputs)
        chosen_rewards = self.beta * (chosen - inputs["ref_chosen_logps"])
        rejected_rewards = self.beta * (rejected - inputs["ref_rejected_logps"])
        ahead = (chosen_rewards - rejected_rewards).detach()
        measures = {
            "rewards/chosen": chosen_rewards.detach(),
            "rewards/rejected": rejected_rewards.detach(),
            "rewards/margins": ahead,
            "rewards/accuracies": (ahead > 0).float(),
            # whether the policy itself finds the chosen answer the likelier one
            "answers/better": (chosen > rejected).float(),
            "logps/chosen": chosen.detach(),
            "logps/rejected": rejected.detach(),
        }
        kept = self._metrics["train" if self.model.training else "eval"]
        for name, values in measures.items():
            kept[name].append(self.accelerator.gather(values).mean().item())
        return offset_loss(chosen_rewards, rejected_rewards, inputs["margin"], self.margin_scale).mean()


class VerlLoggers(TrainerCallback):
    """Writes the metrics with verl's own loggers, so that files and curves are like those of the other trainings."""

    def __init__(self, tracking: Tracking) -> None:
        self._tracking = tracking
        self._step_start_s = time.perf_counter()
        self._step_s = 0.0

    def on_step_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self._step_start_s = time.perf_counter()

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        self._step_s = time.perf_counter() - self._step_start_s

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        logs = logs or {}
        if "loss" in logs:
            named = {f"train/{name}": value for name, value in logs.items()} | {"timing_s/step": self._step_s}
        elif "eval_loss" in logs:
            named = {name.replace("eval_", "val/", 1): value for name, value in logs.items()}
        else:
            return  # transformers' summary at the end
        self._tracking.log({name: float(value) for name, value in named.items()}, step=state.global_step)


class CheckpointTracker(TrainerCallback):
    """Records the last complete checkpoint, as verl does. transformers itself would resume from an incomplete one."""

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        if state.is_world_process_zero:
            assert args.output_dir is not None
            write_atomically(Path(args.output_dir, TRACKER), str(state.global_step).encode())


def training_arguments(config: DictConfig, num_workers: int) -> DPOConfig:
    """TRL's arguments. Raises ConfigError."""
    check_trl_fields(config)
    pairs, accumulation = passes(config, num_workers)
    tested = config.data.val_files is not None and config.trainer.test_freq > 0
    fields: dict[str, Any] = {
        str(key): value for key, value in OmegaConf.to_container(config.trl, resolve=True).items()
    }
    try:
        return DPOConfig(
            output_dir=str(config.trainer.default_local_dir),
            per_device_train_batch_size=pairs,
            per_device_eval_batch_size=pairs,
            gradient_accumulation_steps=accumulation,
            bf16=config.hardware.param_dtype == "bf16",
            # with gradient scaling, which torch's autocast needs in float16
            fp16=config.hardware.param_dtype == "fp16",
            use_cpu=config.hardware.device == "cpu",
            # check_lengths has checked it; TRL would cut
            max_length=None,
            eval_strategy="steps" if tested else "no",
            eval_steps=config.trainer.test_freq if tested else None,
            save_strategy="steps",
            logging_steps=1,
            report_to="none",
            disable_tqdm=True,
            **fields,
        )
    except (TypeError, ValueError) as error:
        raise ConfigError(f"section trl of recipes/dpo.yaml: {error}") from error


def load_pairs(file: str, cache: Path) -> datasets.Dataset:
    # The cache is in the run's folder: so all workers share the tokens and the reference's log-probs, and a resumed run
    # finds them.
    return datasets.Dataset.from_parquet(file, cache_dir=str(cache))


def check_lengths(pairs: datasets.Dataset, tokenizer: PreTrainedTokenizerBase, max_length: int) -> None:
    """Raise ConfigError if a prompt with an answer has more than `max_length` tokens."""
    texts = [
        tokenizer.apply_chat_template([*pair["prompt"], *pair[answer]], tokenize=False)
        for pair in pairs
        for answer in ("chosen", "rejected")
    ]
    longest = max(len(tokens) for tokens in tokenizer(texts, add_special_tokens=False)["input_ids"])
    if longest > max_length:
        raise ConfigError(
            f"a prompt with its answer has {longest} tokens, more than data.max_length={max_length}: "
            f"set data.max_length={longest}, or make shorter prompts"
        )


def load_model(config: DictConfig) -> PreTrainedModel:
    """The starting model on the CPU, or on this worker's GPU if its weights are quantised."""
    quantize, trains_all = config.model.quantize, config.model.lora_rank == 0
    # Trained weights keep a type in which a small update is not lost (hardware.model_dtype). Frozen weights need only
    # the type in which they are multiplied.
    dtype = DTYPES[config.hardware.model_dtype if trains_all else config.hardware.param_dtype]
    check_quantize("dpo", quantize or "", config.model.lora_rank)
    options: dict[str, Any] = {"attn_implementation": config.hardware.attn_implementation}
    if quantize == FOUR_BIT:
        check_quantize_installed()
        options["quantization_config"] = four_bit_config(dtype)
        options["device_map"] = {"": PartialState().device}
    with no_progress_bars_in_logs():
        model: PreTrainedModel = AutoModelForCausalLM.from_pretrained(config.model.path, dtype=dtype, **options)
    if quantize == FOUR_BIT and PartialState().device.type == "cpu":
        import bitsandbytes

        for module in model.modules():
            if isinstance(module, bitsandbytes.nn.Linear4bit):
                # On CPUs with AVX-512 BF16 a pass without gradients packs the weights for a kernel without a backward
                # pass, and training then gets wrong gradients (bitsandbytes 0.50.2, nn/modules.py).
                module.support_avx512bf16_for_cpu = False
    return model


def adapter_config(config: DictConfig) -> LoraConfig | None:
    if not config.model.lora_rank:
        return None
    targets = config.model.target_modules
    return LoraConfig(
        r=config.model.lora_rank,
        lora_alpha=config.model.lora_alpha,
        target_modules=targets if isinstance(targets, str) else list(targets),
        task_type="CAUSAL_LM",
    )


def remove_unfinished(checkpoints: Path, step: int | None) -> None:
    """Remove checkpoints after `step`, the last complete one. A kill came while they were written."""
    for folder in checkpoints.glob("checkpoint-*"):
        number = folder.name.removeprefix("checkpoint-")
        if number.isdigit() and int(number) > (step or 0):
            shutil.rmtree(folder)


def train(config: DictConfig) -> None:
    """Train up to trainer.total_training_steps, from the last checkpoint if there is one. Raises ConfigError."""
    state = PartialState(cpu=config.hardware.device == "cpu")
    arguments = training_arguments(config, state.num_processes)
    checkpoints = Path(config.trainer.default_local_dir)
    step = latest_step(checkpoints)
    if step is not None and step >= config.trainer.total_training_steps:
        print(f"{step} steps are done already: raise trainer.total_training_steps to continue training")
        return
    if state.is_main_process:
        remove_unfinished(checkpoints, step)
    datasets.disable_progress_bars()
    os.environ.setdefault("TQDM_DISABLE", "1")
    tokenizer = AutoTokenizer.from_pretrained(config.model.path)
    cache = checkpoints.parent / "pairs_cache"
    with state.main_process_first():
        sides = [load_pairs(str(config.data.train_files), cache)]
        if arguments.eval_strategy != "no":
            sides.append(load_pairs(str(config.data.val_files), cache))
    if len(sides) > 1 and not len(sides[1]):
        raise ConfigError(f"{config.data.val_files} has no pairs to validate on: set VALIDATE_EVERY=-1")
    for pairs in sides:
        check_lengths(pairs, tokenizer, config.data.max_length)
    if len(sides[0]) < config.data.train_batch_size:
        raise ConfigError(
            f"{config.data.train_files} has {len(sides[0])} pairs, fewer than one step of BATCH_PROMPTS="
            f"{config.data.train_batch_size}: make more data or choose a smaller batch"
        )
    callbacks: list[TrainerCallback] = [CheckpointTracker()]
    tracking = None
    if state.is_main_process:
        from verl.utils.tracking import Tracking

        tracking = Tracking(
            project_name=config.trainer.project_name,
            experiment_name=config.trainer.experiment_name,
            default_backend=list(config.trainer.logger),
            config=OmegaConf.to_container(config, resolve=True),
        )
        callbacks.append(VerlLoggers(tracking))
    # The adapter's random weights are drawn before transformers' Trainer sets its seed.
    set_seed(config.trl.seed)
    model = load_model(config)
    trainer = OffsetDPOTrainer(
        model=model,
        args=arguments,
        train_dataset=sides[0],
        eval_dataset=sides[1] if len(sides) > 1 else None,
        processing_class=tokenizer,
        data_collator=MarginCollator(pad_token_id=tokenizer.pad_token_id or tokenizer.eos_token_id),
        callbacks=callbacks,
        peft_config=adapter_config(config),
        margin_scale=float(config.loss.margin_scale),
    )
    # It would print every record once more.
    trainer.remove_callback(PrinterCallback)
    if config.model.quantize:
        # TRL turns the adapter of a quantised model to bfloat16. A T4 does not have that type, and float16's scaler
        # refuses it.
        for parameter in trainer.model.parameters():
            if parameter.requires_grad:
                parameter.data = parameter.data.float()
        if state.is_main_process:
            note_quantised(checkpoints, model.dtype)
    trainer.train(resume_from_checkpoint=str(checkpoints / f"checkpoint-{step}") if step else None)
    if tracking is not None:
        tracking.finish()


@hydra.main(version_base=None, config_path="..", config_name="dpo")
def main(config: DictConfig) -> None:
    run_main(lambda: train(config))


if __name__ == "__main__":
    main()
