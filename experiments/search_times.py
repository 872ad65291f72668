"""How long the mapping search takes: CPU seconds and the step that it finds, over models, devices and freedoms.

    python experiments/search_times.py          # a minute; no device

HybridFlow's workload (1,024 sequences of 1,024 + 1,024 tokens, 8 updates). Every case begins with empty tables.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Iterator

from jaxflow.mapping.asked import SCORING_ORDER
from jaxflow.mapping.auto import FREEDOM
from jaxflow.mapping.devices import DEVICES, DeviceGroup
from jaxflow.mapping.engine_profile import JAXFLOW, MEGATRON_VLLM, EngineProfile
from jaxflow.mapping.layouts import Freedom
from jaxflow.mapping.load import RoleLoad, Workload
from jaxflow.mapping.model_size import model_size
from jaxflow.mapping.search import Problem, search
from jaxflow.models.decoder_config import DecoderConfig
from jaxflow.models.presets import preset
from jaxflow.placement import VALIDATING

_WORKLOAD = Workload(1024, 1024, 1024, 16384, True, 0)
_PPO = ("actor", "critic", "reference", "reward")
_SAFE_RLHF = ("actor", "critic", "cost_critic", "reference", "reward", "cost")
_MIXTURE = dataclasses.replace(
    preset("llama-2-7b"), kv_heads=8, mlp_width=1024, experts=128, experts_per_token=8
)
_TRAINED = ("actor", "critic", "cost_critic")
_OWN_LAYOUTS = Freedom(pipe=True, fsdp=True, offload=False)


@dataclasses.dataclass(frozen=True)
class Case:
    """One search."""

    name: str
    roles: tuple[str, ...]
    decoder: DecoderConfig
    kinds: tuple[str, ...] = ("h100",)  # the hosts are shared out equally among them
    parts: int = 1
    engine: EngineProfile = JAXFLOW
    freedom: Freedom = FREEDOM

    def problem(self, devices: int) -> Problem:
        """Return the search on so many devices, hosts of eight."""
        hosts = devices // 8 // len(self.kinds)
        return Problem(
            tuple(_load(role, self.decoder) for role in self.roles),
            dataclasses.replace(_WORKLOAD, parts=self.parts),
            tuple(DeviceGroup(DEVICES[kind], hosts, 8) for kind in self.kinds),
            self.engine,
            self.freedom,
        )


_70B = preset("llama-2-70b")
CASES = (
    Case("PPO, four of 70B", _PPO, _70B),
    Case("PPO, four of 70B, 4 parts", _PPO, _70B, parts=4),
    Case("PPO, four of 70B, two kinds", _PPO, _70B, kinds=("h100", "l40s")),
    Case("PPO, four mixtures of 128 experts", _PPO, _MIXTURE),
    Case("Safe-RLHF, six of 7B", _SAFE_RLHF, preset("llama-2-7b")),
    Case(
        "PPO, four of 70B, each role a mesh of its own",
        _PPO,
        _70B,
        engine=MEGATRON_VLLM,
        freedom=_OWN_LAYOUTS,
    ),
)


def _load(role: str, decoder: DecoderConfig) -> RoleLoad:
    trained = role in _TRAINED
    size = model_size(decoder, role in ("actor", "reference"))
    return RoleLoad(
        role=role,
        model=size,
        trained=trained,
        generations=int(role == "actor"),
        scores=1,
        updates=8 if trained else 0,
        minibatch_sequences=128 if trained else 0,
        microbatch_tokens=16384,
        validates=role in VALIDATING,
        turn=SCORING_ORDER.index(role),
    )


def lines() -> Iterator[str]:
    """Yield a line for each case and number of devices."""
    for devices in (128, 1024):
        for case in CASES:
            started = time.process_time()
            found = search(case.problem(devices))
            taken = time.process_time() - started
            figures = f"{taken:6.2f} s of CPU time, a step of {found[0].seconds:.1f} s"
            yield f"{case.name:<46} {devices:>5} devices  {figures}"


def main() -> None:
    """Print the times."""
    for line in lines():
        print(line, flush=True)


if __name__ == "__main__":
    main()
