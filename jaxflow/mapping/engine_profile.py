"""How an engine holds and moves what a model is made of: what the cost model must know of the software.

Knows no device and no model. Two engines: this project's, and the one of HybridFlow's evaluation.
"""

from __future__ import annotations

import dataclasses


@dataclasses.dataclass(frozen=True)
class EngineProfile:
    """Bytes per parameter and habits of one engine."""

    name: str
    weight_bytes: int  # per parameter, of a trained model's weights at rest
    frozen_bytes: int  # per parameter, of a frozen model's weights
    compute_bytes: int  # per number of activations and of weights on their way to the products
    rollout_bytes: int  # per parameter of generation weights, and per number of the key/value cache
    optimizer_bytes: int  # per parameter: moments, and masters where the weights are not they
    gradient_bytes: int  # per parameter
    gradient_copies: int  # at the peak: the sum so far, and what one more micro-batch adds to it
    update_bytes: int  # per parameter that learns, beyond state and gradients, while the optimizer runs
    gradients_at_rest: bool  # their memory is never given back
    optimizer_over_data: bool  # data-parallel replicas share the optimizer's state out (ZeRO-1)
    # Gradients are summed over replicas in every micro-batch, not once per update
    reduces_each_microbatch: bool
    rollout_offloaded: bool  # generation weights leave the device while others compute
    one_mesh_per_pool: bool  # the models of a pool share its layout
    # The search lets generation keep pipeline stages; else all their layers are gathered
    generation_pipes: bool
    rows_divide: bool  # rows must split equally over replicas
    slots: bool  # decode reads a cache of all slots that grows by doubling, not each row's own length; a prompt's
    # samples share its prefill, which goes through a few prompts at a time
    row_seconds: float  # of the host, for each row in each decode step
    step_seconds: float  # of the host, for each decode step
    call_seconds: float  # of the controller, for each call of a role
    call_process_seconds: float  # of the controller, for each process of each call
    call_row_seconds: float  # of the controller, for each row of a step in each call
    memory_share: float  # of a device's memory that a plan may fill: the rest is for what no formula counts


# float32 masters are the weights, cast where they are used (models/layers.py); the gradient of a micro-batch is made
# whole and then added (engine/train.py). A chunk of tokens is one compiled loop: the host takes no part in it, and
# each step attends to the cache of all slots, as long as it is by then, under a mask (engine/slots.py). update_bytes:
# weights and moments are written where they were read (engine/train.py), as read off the programs compiled for H100
# (docs/planning.md). call_…seconds: the wall time of steps whose nine calls compute nothing
# (experiments/controller_overhead.json: 1 to 16 processes, 64 to 4,096 rows), by least squares of relative errors.
JAXFLOW = EngineProfile(
    name="jaxflow",
    weight_bytes=4,
    frozen_bytes=4,
    compute_bytes=2,
    rollout_bytes=2,
    optimizer_bytes=8,
    gradient_bytes=4,
    gradient_copies=2,
    update_bytes=0,
    gradients_at_rest=False,
    optimizer_over_data=False,
    reduces_each_microbatch=True,
    rollout_offloaded=False,
    one_mesh_per_pool=True,
    generation_pipes=True,
    rows_divide=True,
    slots=True,
    row_seconds=0.0,
    step_seconds=10e-6,
    call_seconds=0.6e-3,
    call_process_seconds=1.2e-3,
    call_row_seconds=6e-6,
    memory_share=0.9,
)
# HybridFlow §8.1: Megatron-LM (bfloat16 weights, float32 gradients, masters and Adam's moments: 18 B) with its
# distributed optimizer, vLLM 0.3.1 for generation (90 % of the memory by default). row_seconds and step_seconds: vLLM's
# own account of its version 0.5.3 (blog of 2024-09-05, Llama 8B on one H100): of a step 38 % is the GPU's, 29 % the
# scheduler's; the GPU's part is about 25 ms at 256 rows, which makes 75 µs for each row. Controller: of
# ours the CPU seconds at that evaluation's 16 processes and 1,024 rows (controller_overhead.md), the same for all.
MEGATRON_VLLM = EngineProfile(
    name="megatron-vllm-0.3.1",
    weight_bytes=2,
    frozen_bytes=2,
    compute_bytes=2,
    rollout_bytes=2,
    optimizer_bytes=12,
    gradient_bytes=4,
    gradient_copies=1,
    update_bytes=0,
    gradients_at_rest=True,
    optimizer_over_data=True,
    reduces_each_microbatch=False,
    rollout_offloaded=True,
    one_mesh_per_pool=False,
    generation_pipes=True,
    rows_divide=False,
    slots=False,
    row_seconds=75e-6,
    step_seconds=1e-3,
    call_seconds=0.043,
    call_process_seconds=0.0,
    call_row_seconds=0.0,
    memory_share=0.9,
)
