"""One process or many: PyTorch's own FSDP2 under `torchrun`, and nothing at all on a single process.

    python -m motionstream train teacher ...                               # one process: CPU or one GPU
    torchrun --nproc-per-node 8 -m motionstream train teacher ...          # all GPUs of a machine

Weights, gradients and optimisers of a `Network` are sharded; smaller modules are whole on each process and learn from
the mean of all gradients. Batches are split by `World.places`. Checkpoints hold full tensors,
gathered on the first process, so a run may be resumed on another number of processes.
"""

import os
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_model_state_dict,
    get_optimizer_state_dict,
    set_model_state_dict,
    set_optimizer_state_dict,
)
from torch.distributed.distributed_c10d import _get_default_store
from torch.distributed.fsdp import FSDPModule, fully_shard, register_fsdp_forward_method
from torch.distributed.tensor import DTensor

from motionstream.errors import InputError

if TYPE_CHECKING:
    from motionstream.training.trainer import Schedule

PATIENCE = timedelta(hours=1)  # with the first process: while it writes a checkpoint of 150 GB, the others wait
CROSS = ("to_k", "to_v", "norm_k", "add_k_proj", "add_v_proj", "norm_added_k")  # what `encode_context` uses of a block


@dataclass(frozen=True)
class World:
    """This process among `size`; device: where it computes; dtype: of its matrix products (weights stay float32)."""

    rank: int = 0
    size: int = 1
    device: torch.device = torch.device("cpu")
    dtype: torch.dtype = torch.float32

    @property
    def leads(self) -> bool:
        """Whether this process writes the files."""
        return self.rank == 0

    def places(self, schedule: "Schedule") -> list[list[int]]:
        """This process's places in each batch, by pieces of equal size."""
        share = self.size * schedule.pieces
        if schedule.batch % share:
            raise InputError(
                f"a batch of {schedule.batch} cannot be split over {self.size} processes in {schedule.pieces} pieces "
                f"each: make it a multiple of {share}"
            )
        own = list(range(self.rank, schedule.batch, self.size))
        return [own[piece :: schedule.pieces] for piece in range(schedule.pieces)]

    def mean(self, terms: dict[str, Tensor]) -> dict[str, float]:
        """Means over all processes."""
        values = torch.stack([value.float() for value in terms.values()])
        if self.size > 1:
            dist.all_reduce(values)
            values /= self.size
        return dict(zip(terms, values.tolist(), strict=True))

    def agreed(self, value: float) -> float:
        """The first process's value, on all: clocks differ, decisions must not."""
        if self.size == 1:
            return value
        shared = torch.tensor([value], dtype=torch.float64, device=self.device)
        dist.broadcast(shared, 0)
        return shared.item()

    def last_to_say(self, what: str, number: int) -> list[int] | None:
        """The last process to say its number of something is given those of all, the others None.

        None waits for another: a process group gives that up after an hour, and shares of work may differ by more.
        """
        if self.size == 1:
            return [number]
        store = _get_default_store()
        store.add(f"{what} {self.rank}", number)
        last = store.add(what, 1) == self.size
        return [store.add(f"{what} {rank}", 0) for rank in range(self.size)] if last else None

    def autocast(self) -> torch.autocast:
        """Reduced precision, sharded or not: weights, their gradients and what goes over the wire stay float32.

        Without autocast's cache: a cast made in a pass without gradients would be used by the next one with them.
        """
        enabled = self.dtype != torch.float32
        return torch.autocast(self.device.type, self.dtype if enabled else None, enabled=enabled, cache_enabled=False)


def join_world(device: str, dtype: torch.dtype) -> World:
    """The world that `torchrun` describes in the environment, or a single process."""
    size = int(os.environ.get("WORLD_SIZE", 1))
    if size == 1:
        return World(device=torch.device(device), dtype=dtype)
    place = torch.device(device, int(os.environ["LOCAL_RANK"])) if device == "cuda" else torch.device(device)
    if place.type == "cuda":
        torch.cuda.set_device(place)
    dist.init_process_group("nccl" if place.type == "cuda" else "gloo", timeout=PATIENCE)
    return World(dist.get_rank(), size, place, dtype)


def shard(network: nn.Module, world: World) -> None:
    """Shards a `Network` in place: each transformer block apart, and what `encode_context` uses of it apart again."""
    if world.size == 1:
        return
    mesh = torch.distributed.init_device_mesh(world.device.type, (world.size,))
    for block in network.transformer.blocks:
        cross = [getattr(block.attn2, name, None) for name in CROSS]
        fully_shard([part for part in cross if part is not None], mesh=mesh)
        fully_shard(block, mesh=mesh)
    # By default the outermost part stays whole after a forward pass, and would not see weights that are swapped then.
    fully_shard(network, mesh=mesh, reshard_after_forward=True)
    for method in network.entries:
        register_fsdp_forward_method(network, method)


def is_sharded(module: nn.Module) -> bool:
    return isinstance(module, FSDPModule)


def alike(module: nn.Module, world: World) -> None:
    """Gives a module that isn't sharded the first process's weights on all of them."""
    if world.size > 1 and not is_sharded(module):
        for tensor in (*module.parameters(), *module.buffers()):
            dist.broadcast(tensor.detach(), 0)


def share_gradients(parameters: list[nn.Parameter], world: World) -> None:
    """The means over all processes; those of sharded weights are so already."""
    own = [p.grad for p in parameters if p.grad is not None and not isinstance(p.grad, DTensor)]
    for gradient in own if world.size > 1 else ():
        dist.all_reduce(gradient)
        gradient /= world.size


def limit_norm(parameters: list[nn.Parameter], limit: float) -> float:
    """Scales the gradients down so that their norm over all processes is at most `limit` -> what it was."""
    gradients = [p.grad for p in parameters if p.grad is not None]
    norm = nn.utils.get_total_norm(gradients)
    norm = norm.full_tensor() if isinstance(norm, DTensor) else norm
    nn.utils.clip_grads_with_norm_(parameters, limit, norm)
    return norm.item()


def full_state(module: nn.Module, optimisers: list[torch.optim.Optimizer]) -> tuple[dict, list[dict]]:
    """Whole tensors on the CPU (empty on all processes but the first, where there are several), by weights' names."""
    options = StateDictOptions(full_state_dict=True, cpu_offload=True)
    return _own(get_model_state_dict(module, options=options)), [
        # Of one that has not stepped there is none: PyTorch would make it do so.
        _own(get_optimizer_state_dict(module, optimiser, options=options)) if optimiser.state else {}
        for optimiser in optimisers
    ]


def load_full_state(
    module: nn.Module, optimisers: list[torch.optim.Optimizer], weights: dict, states: list[dict], source: Path
) -> None:
    """Puts back what `full_state` gave; `InputError` names `source` and the first weight that does not fit."""
    shapes = {name: list(value.shape) for name, value in module.state_dict().items()}
    for name in sorted(shapes.keys() | weights.keys()):
        given = list(weights[name].shape) if name in weights else "nothing"
        if given != shapes.get(name, "nothing"):
            raise InputError(f"{source} has {given} for {name}; this model needs {shapes.get(name, 'nothing')}")
    options = StateDictOptions(full_state_dict=is_sharded(module))  # "full" asks for a process group
    set_model_state_dict(module, weights, options=options)
    for optimiser, state in zip(optimisers, states, strict=True):
        if state:
            set_optimizer_state_dict(module, optimiser, state, options=options)


def _own(value):
    """The same nest with tensors of its own: what is on the CPU already would change with the next step."""
    if isinstance(value, dict):
        return {key: _own(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_own(item) for item in value]
    return value.clone() if isinstance(value, Tensor) else value
