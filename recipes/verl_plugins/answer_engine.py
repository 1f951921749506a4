"""verl's FSDP engine, which asks the model only for what the loss reads: the answers, and each distinct row once.

verl takes the log-prob of every token of a sequence, one after the other where flash-attn is missing
(verl/utils/torch_functional.py:logprobs_from_logits_v2). An answer has ten tokens, its prompt some hundred. And the
answers of a group are often the same. This engine

- passes equal rows of a micro-batch through the model once, and gives their log-probs to each of them. The loss is
  verl's own, over all rows, so the gradient is that of the plain batch;
- has the logits computed for the positions that predict an answer's tokens, and takes their log-probs at once.

Log-probs and entropies of other positions are 0. verl's losses mask them.

verl knows an engine by device and vendor (verl/workers/engine/base.py:EngineRegistry), so two settings choose this one:

    VERL_ENGINE_VENDOR=answers
    model.external_lib=recipes.verl_plugins.answer_engine       in recipes/*.yaml

Where a batch needs what this engine does not do (packed sequences, fused kernels, pictures, distillation), or the model
cannot limit its logits, verl's own code runs.
"""

from __future__ import annotations

import inspect
from typing import Any

import torch
from tensordict import NonTensorStack, TensorDict
from torch.distributed.tensor import DTensor
from torch.optim.lr_scheduler import LambdaLR
from verl.utils import tensordict_utils
from verl.workers.engine.base import EngineRegistry
from verl.workers.engine.fsdp.transformer_impl import FSDPEngineWithLMHead

VENDOR = "answers"

# What verl's prepare_model_inputs reads of a micro-batch: of its rows, and as settings.
ROW_FIELDS = ("input_ids", "position_ids")
SETTINGS = ("use_remove_padding", "use_fused_kernels", "pad_mode", "pad_token_id")
# Settings of a batch that need verl's own code.
NOT_HERE = ("use_remove_padding", "use_fused_kernels", "calculate_sum_pi_squared", "distillation_use_topk")


def equal_rows(rows: list[tuple[int, ...]]) -> tuple[list[int], list[int]]:
    """The first index of each distinct row, in order, and for every row the number of its distinct one."""
    number_of: dict[tuple[int, ...], int] = {}
    first = []
    for index, row in enumerate(rows):
        if row not in number_of:
            number_of[row] = len(first)
            first.append(index)
    return first, [number_of[row] for row in rows]


def answer_positions(lengths: torch.Tensor, masks: list[torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
    """Rows and columns of the logits that predict the tokens of a mask.

    lengths: (rows,), tokens. masks: for each row 1 for the tokens that count; it covers the row's last tokens, or all.
    """
    rows, columns = [], []
    for row, (length, mask) in enumerate(zip(lengths.tolist(), masks, strict=True)):
        tokens = mask.nonzero()[:, 0] + (length - len(mask))
        tokens = tokens[tokens > 0]  # nothing predicts the first token
        rows.append(torch.full_like(tokens, row))
        columns.append(tokens - 1)
    return torch.cat(rows), torch.cat(columns)


def right_aligned(rows: torch.Tensor, padding: torch.Tensor) -> torch.Tensor:
    """The rows (rows, columns) with their last `padding` columns (rows,) moved to the front."""
    columns = torch.arange(rows.shape[1], device=rows.device) - padding[:, None]
    return rows.gather(1, columns % rows.shape[1])


def continue_schedule(optimizer: torch.optim.Optimizer, schedule: LambdaLR) -> None:
    """Set the learning rate that the schedule has at its present step.

    A checkpoint brings the rate of the schedule that it was saved under. At the end of a training that is 0. If STEPS
    is then raised, the first further step would train nothing.
    """
    for group, base, factor in zip(optimizer.param_groups, schedule.base_lrs, schedule.lr_lambdas, strict=True):
        group["lr"] = base * factor(schedule.last_epoch)


@EngineRegistry.register(
    model_type="language_model", backend=["fsdp", "fsdp2"], device=["cuda", "npu", "cpu"], vendor=VENDOR
)
class AnswerEngine(FSDPEngineWithLMHead):  # type: ignore[misc]  # verl has no types
    """Log-probs of the answers alone, and of equal rows once."""

    def load_checkpoint(self, *args: Any, **kwargs: Any) -> None:
        super().load_checkpoint(*args, **kwargs)
        if self.lr_scheduler is not None:
            continue_schedule(self.optimizer, self.lr_scheduler)

    def forward_backward_batch(self, data: TensorDict, loss_function: Any, forward_only: bool = False) -> Any:
        # What a row carries beside tensors (its messages, its ground truth) is not for the model, and costs a third of
        # a forward pass to be handed on.
        if not _has_pictures(data):
            data = data.exclude(*(name for name, value in data.items() if isinstance(value, NonTensorStack)))
        return super().forward_backward_batch(data, loss_function, forward_only)

    def prepare_model_inputs(self, micro_batch: TensorDict) -> tuple[dict[str, Any], dict[str, Any]]:
        if not self._is_plain(micro_batch):
            return super().prepare_model_inputs(micro_batch)
        tokens = micro_batch["input_ids"].unbind()
        temperature = micro_batch["temperature"]
        if not isinstance(temperature, torch.Tensor):
            temperature = torch.full((len(tokens),), float(temperature), device=tokens[0].device)
        masks = list(micro_batch["loss_mask"].unbind())
        # the mask belongs to the row: where prompt and answer part is not in its tokens
        first, number_of = equal_rows(
            [
                (len(mask), *mask.tolist(), *row.tolist(), float(heat))
                for row, mask, heat in zip(tokens, masks, temperature, strict=True)
            ]
        )
        rows = {name: micro_batch[name].unbind() for name in ROW_FIELDS}
        distinct = tensordict_utils.get_tensordict(
            {
                name: torch.nested.as_nested_tensor([values[index] for index in first], layout=torch.jagged)
                for name, values in rows.items()
            }
            | {"temperature": temperature[first]}
        )
        settings = {name: tensordict_utils.get(micro_batch, name) for name in SETTINGS if name in micro_batch}
        tensordict_utils.assign_non_tensor(distinct, **settings)
        model_inputs, output_args = super().prepare_model_inputs(distinct)
        lengths = distinct["input_ids"].offsets().diff()
        at_rows, columns = answer_positions(lengths, [masks[index] for index in first])
        # Answers end rows, so with rows that end together no more logits are computed than the longest answer has.
        padding = int(lengths.max()) - lengths
        for name in ("input_ids", "attention_mask", "position_ids"):
            model_inputs[name] = right_aligned(model_inputs[name], padding)
        at_columns = columns + padding[at_rows]
        start, end = int(at_columns.min()), int(at_columns.max()) + 1
        model_inputs["logits_to_keep"] = torch.arange(start, end, device=columns.device)
        return model_inputs, output_args | {
            "answers": (at_rows, columns, at_columns - start),
            "distinct_ids": distinct["input_ids"],
            "distinct_temperature": distinct["temperature"].float(),
            "number_of": number_of,
        }

    def prepare_model_outputs(
        self, output: Any, output_args: dict[str, Any], micro_batch: TensorDict, logits_processor_func: Any
    ) -> dict[str, torch.Tensor]:
        if "answers" not in output_args:
            return super().prepare_model_outputs(output, output_args, micro_batch, logits_processor_func)
        rows, columns, at = output_args["answers"]
        logits = output.logits.full_tensor() if isinstance(output.logits, DTensor) else output.logits
        logits = logits[rows, at].float() / output_args["distinct_temperature"][rows, None]
        log_probs = logits.log_softmax(-1)
        ids = output_args["distinct_ids"]
        flat = ids.offsets()[rows] + columns  # of the logit's own token, in the packed rows
        found = {"log_probs": log_probs.gather(-1, ids.values()[flat + 1, None])[:, 0]}
        if tensordict_utils.get_non_tensor_data(data=micro_batch, key="calculate_entropy", default=False):
            found["entropy"] = -(log_probs.exp() * log_probs).sum(-1)
        lengths = ids.offsets().diff().tolist()
        return {
            name: torch.nested.nested_tensor_from_jagged(
                _for_all_rows(values, flat, lengths, output_args["number_of"]), micro_batch["input_ids"].offsets()
            )
            for name, values in found.items()
        }

    def _is_plain(self, micro_batch: TensorDict) -> bool:
        settings = (
            tensordict_utils.get_non_tensor_data(data=micro_batch, key=key, default=key == NOT_HERE[0])
            for key in NOT_HERE
        )
        return (
            not any(settings)
            and not _has_pictures(micro_batch)
            and "loss_mask" in micro_batch
            and self._limits_logits()
        )

    def _limits_logits(self) -> bool:
        model = getattr(self.module, "module", self.module)
        if hasattr(model, "get_base_model"):
            model = model.get_base_model()
        return "logits_to_keep" in inspect.signature(model.forward).parameters


def _has_pictures(data: TensorDict) -> bool:
    return any(tensordict_utils.get(data, "multi_modal_inputs", None) or [])


def _for_all_rows(values: torch.Tensor, flat: torch.Tensor, lengths: list[int], number_of: list[int]) -> torch.Tensor:
    """Values at the positions `flat` of the packed distinct rows, 0 elsewhere, repeated for all rows of the batch."""
    packed = values.new_zeros(sum(lengths)).index_put((flat,), values)
    rows = packed.split(lengths)
    return torch.cat([rows[number] for number in number_of])
