"""What one process of a world does with a checkpoint; imported where there is no PyTorch."""

import pathlib

import jax
import numpy as np
import tiny

from jaxflow.engine.sharding import training_layout
from jaxflow.models.config_json import write_config
from jaxflow.models.description import describe_directory
from jaxflow.models.transformer import LanguageModel, describe
from jaxflow.models.weights_in import read_weights
from jaxflow.models.weights_out import entries_of, write_checkpoint
from jaxflow.types import UserError


def story(given, out):
    """Read onto a mesh of all processes, write, and try to write again to the same name."""
    decoder = describe_directory(pathlib.Path(given)).decoder
    model = describe(decoder, LanguageModel)
    layout = training_layout(tiny.mesh_of((1, 2, 2, 1)), decoder)
    params, report = read_weights(
        pathlib.Path(given), model, layout.weights(model.names), tuple(model.shapes)
    )
    config = write_config(decoder, "tokens", "float32", 256)
    refused = 0
    for _ in range(2):
        entries = entries_of(params, "float32")
        try:
            write_checkpoint(
                pathlib.Path(out), decoder, "tokens", entries, "float32", config, most_bytes_per_file=20_000
            )
        except UserError:
            refused += 1
        # Process 0 must have ended its work before anyone looks at the files.
        jax.experimental.multihost_utils.sync_global_devices("written")
    return {"bytes_read": np.int64(report.bytes_read), "refused": np.int64(refused)}
