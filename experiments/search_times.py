"""How long the mapping search takes: CPU seconds and the step that it finds, over models, devices and freedoms.

    python experiments/search_times.py                # two minutes; no device
    python experiments/search_times.py --generator    # what a generator on a pool of its own would gain; three minutes

HybridFlow's workload (1,024 sequences of 1,024 + 1,024 tokens, 8 updates). Every case begins with empty tables.
"""

from __future__ import annotations

import argparse
import dataclasses
import itertools
import time
from collections.abc import Iterator

from jaxflow.mapping.asked import SCORING_ORDER
from jaxflow.mapping.auto import FREEDOM
from jaxflow.mapping.devices import DEVICES, DeviceGroup
from jaxflow.mapping.engine_profile import JAXFLOW, MEGATRON_VLLM, EngineProfile
from jaxflow.mapping.layouts import Freedom
from jaxflow.mapping.load import RoleLoad, Workload
from jaxflow.mapping.model_size import model_size
from jaxflow.mapping.search import Mapping, Problem, Search, partitions, search
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
            if devices > 128 and not case.engine.one_mesh_per_pool:
                continue  # minutes, of a search that no run asks for
            started = time.process_time()
            found = search(case.problem(devices))
            taken = time.process_time() - started
            figures = f"{taken:6.2f} s of CPU time, a step of {found[0].seconds:.1f} s"
            yield f"{case.name:<46} {devices:>5} devices  {figures}"


def apart(problem: Problem) -> Mapping | None:
    """Return the best mapping in which a generator on a pool without the policy generates for it.

    Its weights come at the speed of its own network, which flatters it where the policy's is slower.
    """
    actor, *others = problem.loads
    generator = dataclasses.replace(
        actor,
        role="generator",
        trained=False,
        scores=0,
        updates=0,
        minibatch_sequences=0,
        borrows=True,
    )
    loads = (dataclasses.replace(actor, generations=0), *others, generator)
    last = len(loads) - 1
    among = [one for one in partitions(len(loads)) if not any({0, last} <= set(block) for block in one)]
    found = Search(dataclasses.replace(problem, loads=loads), 1).run(among)
    return found[0] if found else None


_KINDS = (("h100",), ("h100", "l40s"), ("h100", "h200"), ("h200", "a100-80"))


def generator_lines() -> Iterator[str]:
    """Yield for PPO of 7B and 13B, over kinds of devices and parts, the step with a generator apart and without."""
    for model, kinds, parts, devices in itertools.product(
        ("llama-2-7b", "llama-2-13b"), _KINDS, (1, 4), (32, 128)
    ):
        problem = Case(model, _PPO, preset(model), kinds=kinds, parts=parts).problem(devices)
        together, alone = search(problem, 1), apart(problem)
        if not together or alone is None:
            continue
        gain = alone.seconds / together[0].seconds - 1
        where = f"{model:<12} {devices:>4} of {' and '.join(kinds):<16} {parts} parts"
        yield f"{where}  {together[0].seconds:6.2f} s, with a generator apart {alone.seconds:6.2f} s ({gain:+.1%})"


def main() -> None:
    """Print the times, or the gains."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--generator", action="store_true", help="what a generator on a pool of its own gains"
    )
    for line in generator_lines() if parser.parse_args().generator else lines():
        print(line, flush=True)


if __name__ == "__main__":
    main()
