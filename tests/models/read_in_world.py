"""What one process of a world does with a checkpoint; imported where there is no PyTorch."""

import pathlib

import jax
import numpy as np
import tiny
from jax.experimental import multihost_utils

from jaxflow.engine.sharding import training_layout
from jaxflow.models.description import describe_directory
from jaxflow.models.transformer import LanguageModel, describe
from jaxflow.models.weights_in import read_weights


def read(given):
    """Read onto a mesh of all processes; return every weight whole, by its path, and the bytes this one read."""
    decoder = describe_directory(pathlib.Path(given)).decoder
    model = describe(decoder, LanguageModel)
    layout = training_layout(tiny.mesh_of((1, 2, 2, 1)), decoder)
    params, report = read_weights(
        pathlib.Path(given), model, layout.weights(model.names), tuple(model.shapes)
    )
    whole = multihost_utils.process_allgather(params, tiled=True)
    weights = {jax.tree_util.keystr(path): leaf for path, leaf in jax.tree.leaves_with_path(whole)}
    return {"bytes_read": np.int64(report.bytes_read), **weights}
