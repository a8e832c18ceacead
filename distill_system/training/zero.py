"""The objective under DeepSpeed's ZeRO stages 1, 2 and 3, on CPU (gloo) and GPU (NCCL) by the same path."""

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

from distill_system import distributed
from distill_system.settings import Training
from distill_system.training.engine import MOMENTS, WEIGHT, Piece, named_state
from distill_system.training.objective import Batch, Objective
from distill_system.training.optim import empty_state, make_optimizer, parameter_groups

STAGE = {"zero1": 1, "zero2": 2, "zero3": 3, "zero3_offload": 3}


def deepspeed_config(training: Training) -> dict[str, Any]:
    """The whole DeepSpeed config of a trained model; nothing is left to its defaults that would change a number."""
    stage = STAGE[training.strategy]
    zero: dict[str, Any] = {"stage": stage, "contiguous_gradients": True, "overlap_comm": False}
    if training.strategy == "zero3_offload":
        zero |= {"offload_optimizer": {"device": "cpu"}, "offload_param": {"device": "cpu"}}
    config: dict[str, Any] = {
        "train_micro_batch_size_per_gpu": 1,  # only for DeepSpeed's own book-keeping: our loader makes the batches
        "gradient_accumulation_steps": training.accumulation,
        "gradient_clipping": training.clip,  # left out, DeepSpeed clips at 1.0
        "zero_optimization": zero,
        "zero_allow_untested_optimizer": True,
        "zero_force_ds_cpu_optimizer": False,
        "steps_per_print": 2**31,
    }
    if training.precision == "bf16":
        config["bf16"] = {"enabled": True, "check_grad_overflow": True}
    elif training.precision == "fp16":
        config["fp16"] = {"enabled": True}
    return config


class ZeroEngine:
    """DeepSpeed's engine around the objective. Stage 1 shards the optimizer, 2 the gradients too, 3 the weights too."""

    def __init__(self, objective: Objective, training: Training, device: torch.device) -> None:
        import deepspeed

        quiet(deepspeed)
        self.objective = objective
        self.stage = STAGE[training.strategy]
        optimizer = make_optimizer(parameter_groups(objective, training.weight_decay), training)
        self.engine, self.optimizer, *_ = deepspeed.initialize(
            model=objective, optimizer=optimizer, config=deepspeed_config(training), dist_init_required=False
        )
        self.base = self.optimizer.optimizer

    def forward(self, batch: Batch, teacher: Tensor | None, scale_L: Tensor, *, last: bool) -> tuple[Tensor, Tensor]:
        return self.engine(batch, teacher, scale_L)

    def evaluate(self, batch: Batch) -> Tensor:
        return self.engine(batch)

    def backward(self, loss: Tensor, *, last: bool) -> None:
        self.engine.backward(loss, scale_wrt_gas=False)
        if not last:
            self.engine.step()  # counts the micro-batch, updates nothing

    def step(self, lr: float) -> Tensor:
        for group in self.base.param_groups:
            group["lr"] = lr
        self.engine.step()  # skips by itself when the norm isn't finite
        norm = float("nan") if self.optimizer.overflow else self.engine.get_global_grad_norm()
        return torch.as_tensor(norm, dtype=torch.float32)

    def pieces(self) -> Iterator[Piece]:
        self._fill_state()
        for name, tensor in named_state(self.objective):
            if self.stage == 3 and hasattr(tensor, "ds_tensor"):
                yield from self._pieces_of_stage_3(name, tensor)
            elif self.stage < 3 and isinstance(tensor, torch.nn.Parameter) and tensor.requires_grad:
                yield from self._pieces_of_stage_1_2(name, tensor)
            else:  # frozen under stage 1 and 2, or a buffer: whole on every rank
                yield Piece(name, WEIGHT, 0, tensor.detach().view(-1), replicated=True)

    def _pieces_of_stage_1_2(self, name: str, parameter: Tensor) -> Iterator[Piece]:
        mapping = parameter._hp_mapping
        if mapping is None:  # none of this parameter's elements belong to this rank
            return
        offset = mapping.lp_fragment_address.start
        yield Piece(name, WEIGHT, offset, mapping.hp_fragment.detach(), replicated=False)
        for part in MOMENTS:
            yield Piece(name, part, offset, mapping.get_optim_state_fragment(part), replicated=False)

    def _pieces_of_stage_3(self, name: str, parameter: Tensor) -> Iterator[Piece]:
        offset, held = shard_of(parameter)
        if not parameter.requires_grad:
            yield Piece(name, WEIGHT, offset, parameter.ds_tensor.detach().view(-1)[:held], replicated=False)
            return
        group, start, _ = self.optimizer.grad_position[self.optimizer.get_param_id(parameter)]
        flat = self.optimizer.fp32_partitioned_groups_flat[group]
        yield Piece(name, WEIGHT, offset, flat.detach().narrow(0, start, held), replicated=False)
        for part in MOMENTS:
            yield Piece(name, part, offset, self.base.state[flat][part].narrow(0, start, held), replicated=False)

    def _flats(self) -> list[Tensor]:
        if self.stage == 3:
            return list(self.optimizer.fp32_partitioned_groups_flat)
        return [flat for group in self.base.param_groups for flat in group["params"]]

    def _fill_state(self) -> None:
        """Gives AdamW its state before the first step, so that there is something to read into."""
        for flat in self._flats():
            empty_state(self.base, flat)
        if self.stage < 3:
            from deepspeed.utils import lazy_init_hp_params_optimizer_state

            # DeepSpeed links fragments to states within its first step, when later groups have none yet: link them all again.
            for params, flat in zip(self.optimizer.bit16_groups, self._flats(), strict=True):
                lazy_init_hp_params_optimizer_state(params, flat, self.base.state)

    def scalars(self) -> dict[str, float]:
        self._fill_state()
        scaler = self.optimizer.loss_scaler
        scalars = {"updates": float(self.base.state[self._flats()[0]]["step"])}
        return scalars | ({"loss_scale": float(scaler.cur_scale)} if scaler.dynamic else {})

    def restore(self, scalars: Mapping[str, float]) -> None:
        for flat in self._flats():
            self.base.state[flat]["step"].fill_(scalars["updates"])
        if self.optimizer.loss_scaler.dynamic and "loss_scale" in scalars:
            self.optimizer.loss_scaler.cur_scale = scalars["loss_scale"]
        if self.stage == 3:
            self.optimizer._partition_all_parameters()
        for parameter in self.objective.parameters():
            if not parameter.requires_grad:
                continue
            if self.stage == 3:
                _, held = shard_of(parameter)
                group, start, _ = self.optimizer.grad_position[self.optimizer.get_param_id(parameter)]
                flat = self.optimizer.fp32_partitioned_groups_flat[group]
                parameter.ds_tensor.data.view(-1)[:held].copy_(flat.detach().narrow(0, start, held))
            else:  # the working copy is whole on every rank: put together from the ranks' masters
                from deepspeed.utils import safe_get_full_fp32_param

                parameter.data.copy_(safe_get_full_fp32_param(parameter))
        persistent = getattr(self.optimizer, "persistent_parameters", [])
        if persistent:  # small parameters stay whole between steps: from the new shards, as after a step
            persistent[0].all_gather(persistent)

    def whole_weights(self) -> Iterator[tuple[str, Tensor]]:
        import deepspeed
        from deepspeed.utils import safe_get_full_fp32_param

        for name, tensor in named_state(self.objective.student):
            if isinstance(tensor, torch.nn.Parameter) and tensor.requires_grad:
                whole = safe_get_full_fp32_param(tensor)  # the master: bf16 working weights have lost bits
                yield name, whole.detach().cpu().view(getattr(tensor, "ds_shape", tensor.shape))
            else:
                with deepspeed.zero.GatheredParameters([tensor], enabled=hasattr(tensor, "ds_tensor")):
                    whole = tensor.detach().float() if tensor.is_floating_point() else tensor.detach()
                    copy = whole.cpu().clone() if distributed.is_main() else torch.empty(0)
                yield name, copy


def shard_of(parameter: Tensor) -> tuple[int, int]:
    """Offset and number of elements of the flattened parameter that this rank holds under stage 3 (the last ranks may hold none)."""
    share = parameter.ds_tensor.ds_numel
    offset = min(distributed.rank() * share, parameter.ds_numel)
    return offset, min(share, parameter.ds_numel - offset)


def quiet(deepspeed: Any) -> None:
    """DeepSpeed tells every rank's every step at INFO; what matters is in our journal."""
    deepspeed.utils.logging.logger.setLevel("ERROR")
