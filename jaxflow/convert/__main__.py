"""Weights from and to the PyTorch world, from the command line.

    python -m jaxflow.convert import HF_DIR OUT [--adapter PEFT_DIR]
    python -m jaxflow.convert export RUN_OR_WEIGHTS OUT [--role critic] [--step 120] [--adapter] [--dtype bfloat16] …
    python -m jaxflow.convert inspect DIR
    python -m jaxflow.convert compare A B

HF_DIR is a directory of config.json and safetensors files; runs take such a directory as actor.weights without any
import. Everything happens on the CPU; nothing is downloaded, unpickled or overwritten.

Exit codes: 0 done; 1 compare found a difference; 2 refused, with the reason.
"""

from __future__ import annotations

import argparse
import math
import os
from collections.abc import Sequence
from pathlib import Path

# Converting needs no accelerator, and one may be in use. Said before JAX is imported.
os.environ["JAX_PLATFORMS"] = "cpu"

from jaxflow.command_line import run
from jaxflow.convert.actions import (
    compare_weights,
    export_adapters,
    export_weights,
    import_checkpoint,
    inspect_weights,
)
from jaxflow.convert.stored import ROLES
from jaxflow.models.weights_out import MOST_BYTES_PER_FILE, STORED_DTYPES


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        "python -m jaxflow.convert", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    actions = parser.add_subparsers(dest="action", required=True)
    one = actions.add_parser(
        "import",
        help="a Hugging Face checkpoint into weights of jaxflow's own",
        description="Write a Hugging Face checkpoint as float32 weights of jaxflow's own. The whole model is held in"
        " memory: 4 bytes for each parameter.",
    )
    one.add_argument("checkpoint", type=Path, metavar="HF_DIR", help="config.json and safetensors files")
    one.add_argument("out", type=Path, metavar="OUT", help="folder to be made")
    one.add_argument("--adapter", type=Path, metavar="PEFT_DIR", help="LoRA of the peft library, merged in")

    _add_export(actions)
    one = actions.add_parser("inspect", help="what a directory of weights of either kind holds")
    one.add_argument("directory", type=Path, metavar="DIR")

    one = actions.add_parser(
        "compare",
        help="largest differences of two directories of weights, of either kind",
        description="Compare weights role by role: the largest |a − b|, and that over the largest |a|. Exit code 1"
        " where names or shapes differ, or a difference is above the tolerance.",
    )
    one.add_argument("one", type=Path, metavar="A")
    one.add_argument("other", type=Path, metavar="B")
    one.add_argument("--tolerance", type=float, default=0.0, help="absolute; default: 0")
    return parser


def _add_export(actions: argparse._SubParsersAction) -> None:
    one = actions.add_parser(
        "export",
        help="weights of a run, or a folder of weights, into a Hugging Face checkpoint",
        description="Write a Hugging Face checkpoint that transformers and its kin load: safetensors, config.json and"
        " the tokenizer. A policy becomes …ForCausalLM; a critic or reward model …ForSequenceClassification with one"
        " label. One tensor at a time is in memory.",
    )
    one.add_argument("source", type=Path, metavar="RUN_OR_WEIGHTS", help="folder of a run, or of weights")
    one.add_argument("out", type=Path, metavar="OUT", help="folder to be made")
    one.add_argument("--role", choices=ROLES, default="actor", help="of a run; default: actor")
    one.add_argument(
        "--step", type=int, help="checkpoint of a run; 0: before the first step; default: the newest"
    )
    one.add_argument(
        "--adapter",
        action="store_true",
        help="write the adapters of a role that has some as the peft library reads them; default: merged",
    )
    one.add_argument("--dtype", choices=tuple(STORED_DTYPES), default="bfloat16", help="default: bfloat16")
    one.add_argument("--tokenizer", type=Path, metavar="DIR", help="its files go along; default: the run's")
    one.add_argument(
        "--like",
        type=Path,
        metavar="HF_DIR",
        help="checkpoint whose config.json is kept but for the weights' dtype and head; default: the one that the"
        " run began from",
    )
    one.add_argument(
        "--positions",
        type=int,
        default=32768,
        help="max_position_embeddings of a config.json written anew; default: 32768",
    )
    one.add_argument(
        "--file-bytes",
        type=int,
        default=MOST_BYTES_PER_FILE,
        help=f"most bytes of one safetensors file; default: {MOST_BYTES_PER_FILE}",
    )


def _compare(one: Path, other: Path, tolerance: float) -> int:
    differences = compare_weights(one, other)
    width = max(len(found.role) for found in differences)
    print(f"{'role':<{width}}  tensors   max |a − b|   relative")
    different = False
    for found in differences:
        told = f"{found.absolute:11.3e}  {found.relative:9.2e}"
        if found.missing > 0:
            told = f"{found.missing} not in both, or of two shapes"
        print(f"{found.role:<{width}}  {found.tensors:7}   {told}")
        equal = found.missing == 0 and not math.isnan(found.absolute) and found.absolute <= tolerance
        different = different or not equal
    print("different" if different else "equal")
    return 1 if different else 0


def main(arguments: Sequence[str]) -> int:
    """Run the command line; return the exit code."""
    asked = _parser().parse_args(arguments)
    if asked.action == "compare":
        return _compare(asked.one, asked.other, asked.tolerance)
    if asked.action == "import":
        lines = import_checkpoint(asked.checkpoint, asked.out, asked.adapter)
    elif asked.action == "inspect":
        lines = inspect_weights(asked.directory)
    elif asked.adapter:
        lines = export_adapters(asked.source, asked.out, asked.role, asked.step, asked.dtype)
    else:
        lines = export_weights(
            asked.source,
            asked.out,
            asked.role,
            asked.step,
            asked.dtype,
            asked.tokenizer,
            asked.like,
            asked.positions,
            asked.file_bytes,
        )
    for line in lines:
        print(line)
    return 0


if __name__ == "__main__":
    run(main)
