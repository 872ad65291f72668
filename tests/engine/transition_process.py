"""One of two processes, four devices each, that switch layouts together; for `test_transition.py`.

python transition_process.py COORDINATOR PROCESS

Prints a JSON list: what each switch there and back did.
"""

import dataclasses
import json
import sys

import jax
import numpy as np

from jaxflow.engine.compiled import received_by_position
from jaxflow.engine.mesh import make_mesh
from jaxflow.engine.sharding import generation_layout, training_layout
from jaxflow.engine.transition import transition
from jaxflow.models.decoder_config import DecoderConfig
from jaxflow.models.transformer import LanguageModel, describe

jax.config.update("jax_num_cpu_devices", 4)
jax.distributed.initialize(sys.argv[1], num_processes=2, process_id=int(sys.argv[2]))
PLAIN = DecoderConfig(vocabulary_size=50, width=32, layers=4, heads=8, kv_heads=4, head_width=4, mlp_width=64)
FEW_HEADS = dataclasses.replace(PLAIN, kv_heads=2)  # replicated over ranks, some of them in the other process
MIXTURE = dataclasses.replace(PLAIN, kv_heads=2, experts=4, experts_per_token=2)


def weights(model, shardings):
    """The same numbers in both processes, each making the shards that it holds."""
    generator = np.random.default_rng(0)
    whole = jax.tree.map(lambda leaf: generator.normal(size=leaf.shape).astype(np.float32), model.shapes)
    return jax.tree.map(
        lambda array, to: jax.make_array_from_callback(array.shape, to, lambda index: array[index]),
        whole,
        shardings,
    )


def same_bits(params, expected):
    """Whether every shard that this process holds is what the numbers make it."""
    return all(
        np.asarray(left.data).tobytes() == np.asarray(right.data).tobytes()
        for one, other in zip(jax.tree.leaves(params), jax.tree.leaves(expected), strict=True)
        for left, right in zip(one.addressable_shards, other.addressable_shards, strict=True)
    )


found = []
devices = jax.devices()
for config, mesh in (
    (PLAIN, make_mesh(2, 1, 4, 2, devices)),
    (PLAIN, make_mesh(1, 1, 4, 2, devices, pipe=2, generation_pipe=1)),
    (PLAIN, make_mesh(1, 1, 2, 1, devices, pipe=4, generation_pipe=2)),
    (PLAIN, make_mesh(1, 8, 1, 1, devices)),
    (FEW_HEADS, make_mesh(1, 1, 8, 4, devices)),
    (MIXTURE, make_mesh(1, 1, 4, 2, devices, expert=2)),
):
    model = describe(config, LanguageModel)
    training, generation = (
        layout(mesh, config).weights(model.names) for layout in (training_layout, generation_layout)
    )
    there, report = transition(weights(model, training), generation, "float32", release=True)
    there_same = same_bits(there, weights(model, generation))
    back, way_back = transition(there, training, "float32", release=True)
    found.append(
        {
            "same_bits": there_same and same_bits(back, weights(model, training)),
            "received": received_by_position(report.collectives, 8),
            "counted": [report.received_bytes[device.id] for device in devices],
            "collectives_back": len(way_back.collectives),
        }
    )
print(json.dumps(found))
