"""Runs every program of the engine on one mesh, with XLA writing down what it compiled.

A script of its own, for `test_hlo.py`, which sets XLA's flags in its environment: XLA reads them, and prints its
warnings, once per process, and a program that comes out of a compilation cache says nothing.

    python hlo_programs.py DUMP_DIRECTORY DATA FSDP TENSOR GENERATION_TENSOR STAGES LOGIT_CHUNK_ELEMENTS

Prints one JSON object: program -> files of its optimised HLO.
"""

import dataclasses
import json
import pathlib
import sys

import jax
import tiny

from jaxflow.algorithms.losses import ValueLoss
from jaxflow.engine import score
from jaxflow.engine.generate import Generator
from jaxflow.engine.mesh import make_mesh
from jaxflow.engine.sampling import Sampling
from jaxflow.engine.sharding import generation_layout, training_layout
from jaxflow.engine.state import new_state
from jaxflow.engine.train import Trainer
from jaxflow.engine.transition import transition
from jaxflow.models.transformer import LanguageModel, ScalarModel, describe

DUMP = pathlib.Path(sys.argv[1])
TOKENS_PER_DEVICE = 256
# A vocabulary that no other size is equal to.
CONFIG = dataclasses.replace(tiny.CONFIG, vocabulary_size=300)
LANGUAGE_MODEL, SCALAR_MODEL = describe(CONFIG, LanguageModel), describe(CONFIG, ScalarModel)
score._LOGIT_CHUNK_ELEMENTS = int(sys.argv[7])

_listed = set()
_programs = {}


def written(program):
    files = {str(path) for path in DUMP.glob("*after_optimizations.txt")} - _listed
    _listed.update(files)
    _programs[program] = sorted(files)


mesh = make_mesh(*map(int, sys.argv[2:6]), devices=jax.devices(), pipe=int(sys.argv[6]))
training, generation = training_layout(mesh), generation_layout(mesh)
params = tiny.weights(LANGUAGE_MODEL, training)
values = tiny.weights(SCALAR_MODEL, training)
batch = tiny.experience(rows=8 * training.replicas, length=32)
written("set-up")

rollout_params, _ = transition(params, generation.weights(LANGUAGE_MODEL.names), "float32")
written("transition")
transition(rollout_params, training.weights(LANGUAGE_MODEL.names), "float32")
written("way back")

sampling = Sampling(
    temperature=1.0,
    top_k=0,
    top_p=0.9,
    min_p=0.0,
    min_response_tokens=0,
    max_response_tokens=8,
    end_ids=(1,),
    pad_id=0,
)
generator = Generator(LANGUAGE_MODEL, generation, "float32", 4)
generator(
    rollout_params,
    tiny.prompts(rows=4 * generation.replicas),
    sampling,
    seed=0,
    step=0,
    purpose=0,
    policy_updates=0,
)
written("generation")

for name, model, weights in (
    ("log-probs", LANGUAGE_MODEL, params),
    ("values", SCALAR_MODEL, values),
):
    scorer = score.Scorer(model, training, TOKENS_PER_DEVICE, 1.0)
    ask = scorer.log_probs if model is LANGUAGE_MODEL else scorer.values
    ask(weights, batch.tokens, batch.lengths, batch.response_mask)
    written(name)

policy = tiny.policy_loss()
for name, model, weights, loss in (
    ("actor update", LANGUAGE_MODEL, params, policy),
    ("critic update", SCALAR_MODEL, values, ValueLoss(0.5, "token-mean", 32.0)),
):
    trainer = Trainer(model, training, tiny.optimizer(), loss, 1.0, TOKENS_PER_DEVICE)
    state = new_state(model, training, tiny.optimizer().transformation(), weights)
    trainer.update(state, batch)
    written(name)

print(json.dumps(_programs))
