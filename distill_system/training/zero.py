"""The objective under DeepSpeed's ZeRO stages 1, 2 and 3, on CPU (gloo) and GPU (NCCL) by the same path."""

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

from distill_system import distributed
from distill_system.settings import Training
from distill_system.training.engine import MOMENTS, WEIGHT, Heard, Piece, in_order, named_state, own_run, role_module
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
        groups = parameter_groups(objective, training.weight_decay, objective.role_of)
        start_afresh(deepspeed)
        self.engine, self.optimizer, *_ = deepspeed.initialize(
            model=objective,
            optimizer=make_optimizer(groups, training),
            config=deepspeed_config(training),
            mpu=RankGroups() if distributed.division() else None,
            dist_init_required=False,
        )
        self.base = self.optimizer.optimizer
        self.clipping = ClippingByRole(self.optimizer, self.stage) if len(objective.roles) > 1 else None

    def forward(self, batch: Batch, teachers: Heard, scale_L: Tensor, *, last: bool) -> tuple[Tensor, Tensor]:
        return self.engine(batch, teachers, scale_L)

    def evaluate(self, batch: Batch, role: str | None = None) -> Tensor:
        return self.engine(batch, role=role)

    def backward(self, loss: Tensor, *, last: bool) -> None:
        self.engine.backward(loss, scale_wrt_gas=False)
        if not last:
            self.engine.step()  # counts the micro-batch, updates nothing

    def step(self, lr: float) -> Tensor:
        for group in self.base.param_groups:
            group["lr"] = lr * group["lr_scale"]
        self.engine.step()  # skips by itself when the norm isn't finite
        own = list(self.objective.roles)
        if self.optimizer.overflow:
            norms = dict.fromkeys(own, torch.tensor(float("nan"), device=self.engine.device))
        elif self.clipping:
            norms = self.clipping.norms()
        else:
            norm = self.engine.get_global_grad_norm()
            norms = {own[0]: torch.as_tensor(norm, dtype=torch.float32, device=self.engine.device)}
        return in_order(norms, self.objective.role_names)

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

    def shares(self, names: Iterable[str]) -> Iterator[Piece]:
        for name in names:
            parameter = self.objective.get_parameter(name)
            if self.stage == 3:
                offset, held = shard_of(parameter)
                yield Piece(name, WEIGHT, offset, parameter.ds_tensor.detach().view(-1)[:held], replicated=False)
            elif not parameter.requires_grad:
                yield own_run(name, parameter.detach())
            elif parameter._hp_mapping is not None:
                address = parameter._hp_mapping.lp_fragment_address
                values = parameter.detach().view(-1).narrow(0, address.start, address.numel)
                yield Piece(name, WEIGHT, address.start, values, replicated=False)

    def gradients(self, names: Iterable[str]) -> Iterator[Piece]:
        scale = self.optimizer.loss_scale
        for name in names:
            parameter = self.objective.get_parameter(name)
            if not parameter.requires_grad:
                continue
            if self.stage == 3:
                offset, held = shard_of(parameter)
                values = self.optimizer.get_local_fp32_grad_for_param(parameter).view(-1)[:held]
            elif parameter._hp_mapping is not None:
                address = parameter._hp_mapping.lp_fragment_address
                offset = address.start
                values = parameter._hp_mapping.get_lp_grad_fragment(parameter._index_in_param_group).view(-1)
                if values.numel() == parameter.numel():  # kept whole: this rank's part of it is the fragment
                    values = values.narrow(0, address.start, address.numel)
            else:
                continue
            yield Piece(name, WEIGHT, offset, values.float() / scale, replicated=False)

    def spread_frozen(self) -> None:
        if self.stage == 3:
            self.optimizer._partition_all_parameters()  # a parameter that is whole now would stay what it was
        persistent = getattr(self.optimizer, "persistent_parameters", [])
        if persistent:  # small parameters stay whole between steps: from the new shards, as after a step
            persistent[0].all_gather(persistent)

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
        self.spread_frozen()

    def whole_weights(self, role: str | None = None) -> Iterator[tuple[str, Tensor]]:
        import deepspeed
        from deepspeed.utils import safe_get_full_fp32_param

        for name, tensor in named_state(role_module(self.objective, role)):
            if isinstance(tensor, torch.nn.Parameter) and tensor.requires_grad:
                whole = safe_get_full_fp32_param(tensor)  # the master: bf16 working weights have lost bits
                yield name, whole.detach().cpu().view(getattr(tensor, "ds_shape", tensor.shape))
            else:
                with deepspeed.zero.GatheredParameters([tensor], enabled=hasattr(tensor, "ds_tensor")):
                    whole = tensor.detach().float() if tensor.is_floating_point() else tensor.detach()
                    copy = whole.cpu().clone() if distributed.is_lead() else torch.empty(0)
                yield name, copy


class ClippingByRole:
    """Clips the gradients of each role by the role's own norm, where DeepSpeed would take the norm over all of them: a member's step must not depend
    on how large its neighbours' gradients are, and must be the one that it would take on ranks of its own.

    DeepSpeed computes a norm for each parameter group, joins them, and scales group by group; both places are replaced on this one optimizer.
    """

    def __init__(self, optimizer: Any, stage: int) -> None:
        self.optimizer, self.stage = optimizer, stage
        self.roles = [group["role"] for group in optimizer.optimizer.param_groups]
        self.norm_of_group: list[Tensor] = []
        self.turn = 0
        if stage == 3:
            groups = len(optimizer.fp16_groups)
            assert groups == len(self.roles), f"{groups} sub-groups for {len(self.roles)} parameter groups"
            self._group_norms, optimizer._get_norm_groups = optimizer._get_norm_groups, self._keep
        else:
            optimizer.scaled_global_norm = self._joined
        self._clip, optimizer.unscale_and_clip_grads = optimizer.unscale_and_clip_grads, self._clip_by_role

    def _keep(self) -> list[Tensor]:
        self.norm_of_group = self._group_norms()
        return self.norm_of_group

    def _joined(self, norm_type: int = 2) -> Tensor:
        from deepspeed.runtime.utils import combine_grad_norm_groups

        own, self.turn = self.optimizer, 0
        self.norm_of_group = [
            own.get_grad_norm_direct(own.averaged_gradients[i], own.params_in_partition[i])
            for i in range(len(own.bit16_groups))
        ]
        return combine_grad_norm_groups(self.norm_of_group)

    def _clip_by_role(self, place: Any, total: Any) -> None:
        """`place` is the group's number (stage 3), or its gradients, group after group (stage 1 and 2)."""
        number = place if self.stage == 3 else self.turn
        self.turn += 1
        self._clip(place, self._norm(self.roles[number]))

    def _norm(self, role: str) -> Tensor:
        """Still with the loss scale in it."""
        own = [norm for norm, other in zip(self.norm_of_group, self.roles, strict=True) if other == role]
        return torch.linalg.vector_norm(torch.stack([torch.as_tensor(norm, dtype=torch.float32) for norm in own]))

    def norms(self) -> dict[str, Tensor]:
        return {role: self._norm(role) / self.optimizer.loss_scale for role in dict.fromkeys(self.roles)}


def start_afresh(deepspeed: Any) -> None:
    """Frees DeepSpeed from what an engine before has left in the process, which may have lived on part of the ranks.

    ZeRO-3 proves in its first steps that all ranks of the world walk through the same modules, by numbers that a process gives to all modules it ever
    saw. Members of a cohort may well differ, and after a cohort the numbers do: here only ranks of one model are compared, and only the order counts.
    """
    from deepspeed.runtime.zero import partitioned_param_coordinator as coordinator

    def assert_same(numbers: list[int]) -> None:
        order = [number - min(numbers) for number in numbers]
        told = distributed.data_everyone(order)
        if any(other != order for other in told):
            raise RuntimeError(f"ranks of one model disagree on its modules: {told}")

    deepspeed.utils.groups.mpu = None
    coordinator.assert_ints_same_as_other_ranks = assert_same


class RankGroups:
    """What `deepspeed.initialize` asks of `mpu`: a cohort's member shards over its own ranks only.

    The model-parallel rank is 0 on every rank. With the member's number there, ranks other than 0 would count a gradient norm of 0 (ZeRO-1 and 2).
    """

    def __init__(self) -> None:
        division = distributed.division()
        assert division is not None
        self.division = division

    def get_model_parallel_group(self) -> Any:
        return self.division.self_groups[distributed.rank()]

    def get_model_parallel_rank(self) -> int:
        return 0

    def get_model_parallel_world_size(self) -> int:
        return 1

    def get_data_parallel_group(self) -> Any:
        return self.division.data_groups[self.division.part]

    def get_data_parallel_group_ranks(self) -> list[int]:
        first = self.division.part * self.division.size
        return list(range(first, first + self.division.size))

    def get_data_parallel_rank(self) -> int:
        return self.division.place

    def get_data_parallel_world_size(self) -> int:
        return self.division.size


def shard_of(parameter: Tensor) -> tuple[int, int]:
    """Offset and number of elements of the flattened parameter that this rank holds under stage 3 (the last ranks may hold none)."""
    share = parameter.ds_tensor.ds_numel
    offset = min(distributed.data_rank() * share, parameter.ds_numel)
    return offset, min(share, parameter.ds_numel - offset)


def quiet(deepspeed: Any) -> None:
    """DeepSpeed tells every rank's every step at INFO; what matters is in our journal."""
    deepspeed.utils.logging.logger.setLevel("ERROR")
