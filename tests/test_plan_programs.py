"""The compiler's bytes of every program are the formulas', and so are the FLOPs that the programs do."""

import jax
import pytest
from good_config import ROLES, config

from jaxflow.mapping.devices import DEVICES, DeviceGroup
from jaxflow.mapping.planning import plan_config
from jaxflow.mapping.program_table import describe_programs
from jaxflow.plan_programs import compile_plan, provide_devices
from jaxflow.types import UserError

VOCABULARY = 100
TOLERANCE = 0.02
# Wide enough that products outweigh what no formula counts.
TRUE_TO_SCALE = {
    "actor__model__width": 128,
    "actor__model__layers": 2,
    "actor__model__head_width": 32,
    "actor__model__mlp_width": 384,
    "actor__model__heads": 4,
    "actor__model__kv_heads": 4,
}


@pytest.mark.slow
@pytest.mark.parametrize("apart", [[], ["actor", "critic", "reference", "reward"]])
def test_compiled_bytes_and_flops_are_the_formulas(apart):
    asked = config(
        **TRUE_TO_SCALE,
        cluster__pools__main__generation_scoring=apart,
        cluster__pools__main__mesh__data=1,
        cluster__pools__main__mesh__fsdp=2,
        cluster__pools__main__mesh__tensor=4,
        reward__kind="model",
    )
    planned = plan_config(asked, VOCABULARY, ROLES)
    devices = provide_devices([DeviceGroup(DEVICES["cpu"], 1, 8)], "cpu")
    programs = list(compile_plan(asked, VOCABULARY, ROLES, planned.plan.pools, devices))
    assert [(one.role, one.name) for one in programs] == [
        *[
            ("actor", name)
            for name in ("transition", "cache", "prefill", "decode", "score", "accumulate", "apply")
        ],
        *[("critic", name) for name in ("score", "accumulate", "apply")],
    ]
    for one in programs:
        assert one.compiled_bytes == pytest.approx(one.formula_bytes, rel=TOLERANCE), one.name
        assert one.memory.peak >= one.memory.arguments
    # Attention of this engine on a CPU multiplies the whole square, and the head is recomputed in the backward pass.
    for one in programs:
        if one.flops > 0:
            assert one.flops == pytest.approx(one.formula_flops, rel=0.1), one.name
    assert len(describe_programs(programs, "cpu")) == 2 + len(programs)


def test_too_many_devices_are_refused_where_it_is_too_late_for_them():
    jax.devices()  # touched: there are as many as there are
    with pytest.raises(UserError, match="needs 4096 simulated devices"):
        provide_devices([DeviceGroup(DEVICES["h100"], 512, 8)], "cpu")
