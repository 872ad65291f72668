"""Small checkpoints as transformers saves them, and read back by it."""

import copy
import functools
import json
import warnings

import numpy as np
import torch
import transformers
from models.families import torch_model


def saved(name, directory, dtype=torch.float32, most_bytes="1GB"):
    """Save a family's random model; return the directory."""
    model = torch_model(name)
    narrow = type(model)(copy.deepcopy(model.config)).to(dtype)  # saving writes the dtype into the config
    narrow.load_state_dict({key: weight.to(dtype) for key, weight in model.state_dict().items()})
    narrow.save_pretrained(directory, max_shard_size=most_bytes)
    return directory


def scalar_model(name, directory):
    """Save a random model of one label on top of a family's decoder; return it."""
    torch.manual_seed(1)
    base = torch_model(name)
    asked = copy.deepcopy(base.config)
    asked.num_labels = 1
    model = transformers.AutoModelForSequenceClassification.from_config(asked, dtype=torch.float32).eval()
    model.model.load_state_dict(base.model.state_dict())
    model.save_pretrained(directory)
    return model


def tensors_of(directory):
    """Every tensor of a directory by name, as PyTorch reads it."""
    return functools.reduce(lambda a, b: a | b, map(_loaded, sorted(directory.glob("*.safetensors"))))


def _loaded(file):
    import safetensors.torch

    return safetensors.torch.load_file(file)


def same_tensors(one, other):
    """Whether two directories hold the same names, shapes, dtypes and bits."""
    left, right = tensors_of(one), tensors_of(other)
    return left.keys() == right.keys() and all(
        left[key].dtype == right[key].dtype and torch.equal(left[key], right[key]) for key in left
    )


def edit_config(directory, **keys):
    """Change keys of config.json; None removes one."""
    file = directory / "config.json"
    tree = {**json.loads(file.read_text()), **keys}
    file.write_text(json.dumps({key: value for key, value in tree.items() if value is not None}))


def edit_tensors(directory, change):
    """Write what `change` makes of the tensors of a directory of one file."""
    import safetensors.torch

    changed = {key: tensor.contiguous() for key, tensor in change(tensors_of(directory)).items()}
    safetensors.torch.save_file(changed, directory / "model.safetensors", metadata={"format": "pt"})


def loaded(directory, kind=transformers.AutoModelForCausalLM):
    """What transformers makes of a directory; every name must find its place."""
    with warnings.catch_warnings(action="ignore"):
        model, info = kind.from_pretrained(directory, output_loading_info=True, dtype=torch.float32)
    assert not any(info[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys")), info
    model.config._attn_implementation = "eager"
    return model.eval()


def logits_of(model, tokens):
    """Its logits, or scores, of whole rows of tokens."""
    with torch.no_grad():
        return model(torch.tensor(np.asarray(tokens), dtype=torch.long)).logits.float().numpy()
