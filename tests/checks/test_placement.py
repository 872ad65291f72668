"""A placement that cannot be is refused: roles, meshes, weights and rows, each under the pool that is at fault."""

import pytest
from good_config import ROLES, config, problems, split_config

from jaxflow.checks import check

MODEL_REWARD = {"reward__kind": "model", "warm_start__reward_steps": 1}


def roles(*names: str) -> dict[str, object]:
    return {"cluster__pools__main__roles": list(names)}


def test_every_partition_of_the_roles_into_pools_is_legal():
    for cut in range(1, len(ROLES)):
        pools = {
            "cluster__pools__main__roles": ROLES[:cut],
            "cluster__pools__other__roles": ROLES[cut:],
        }
        check(config(**pools), 100, 9)
    alone = {f"cluster__pools__{role}__roles": [role] for role in ROLES[1:]}
    check(config(**roles("actor"), **alone), 100, 12)


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        (
            roles(*ROLES[1:]),
            [
                "cluster.pools: ppo needs a role actor, and no pool has it; add it to the roles of one of: main"
            ],
        ),
        (
            roles(*ROLES, "actor"),
            ["cluster.pools: the role actor stands in main and main; leave it in one of them"],
        ),
        (
            {"cluster__pools__spare__roles": ["critic"]},
            ["cluster.pools: the role critic stands in main and spare; leave it in one of them"],
        ),
        (
            {"cluster__pools__spare__roles": []},
            ["cluster.pools.spare.roles is empty: give the pool a role, or take it away"],
        ),
        (
            roles("actor", "critc", "reference", "reward", "estimator"),
            [
                "cluster.pools.main.roles: 'critc' is no role of ppo: did you mean 'critic'? it has: "
                + ", ".join(ROLES)
            ],
        ),
        (
            roles(*ROLES, "qqq"),
            [f"cluster.pools.main.roles: 'qqq' is no role of ppo: it has: {', '.join(ROLES)}"],
        ),
    ],
)
def test_each_role_must_stand_in_exactly_one_pool(changes, expected):
    assert problems(config(**changes)) == expected


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        (
            {"cluster__pools__main__hosts": 3},
            "cluster.pools.main.mesh: data 2 × fsdp 1 × expert 1 × pipe 1 × tensor 4 = 8 devices, but hosts 3 ×"
            " devices_per_host 4 = 12",
        ),
        (
            {"cluster__pools__judges__mesh__data": 2},
            "cluster.pools.judges.mesh: data 2 × fsdp 1 × expert 1 × pipe 1 × tensor 1 = 2 devices, but hosts 1 ×"
            " devices_per_host 3",
        ),
        ({"cluster__pools__main__mesh__generation_tensor": 3}, "mesh.tensor = 4; set it to one of: 1, 2, 4"),
        ({"cluster__pools__main__mesh__generation_pipe": 2}, "mesh.pipe = 1; set it to one of: 1"),
    ],
)
def test_a_mesh_must_be_that_of_its_pools_devices(changes, expected):
    assert any(expected in problem for problem in problems(split_config(**changes)))


def test_devices_of_all_pools_are_counted_together():
    assert problems(split_config(), devices=10)[0].startswith(
        "cluster.pools ask for 11 devices, but this machine"
    )


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        # The reference is shaped as the actor and stands with it; the critic's own shape is split elsewhere.
        (
            {"actor__model__mlp_width": 510},
            "actor.model: the model's mlp_width = 510 cannot be divided by tensor = 4 of pool main; set"
            " cluster.pools.main.mesh.tensor to one of 5, 3, 6, 2, or actor.model.mlp_width to a multiple of 4",
        ),
        (
            {"cluster__pools__judges__mesh__data": 1, "cluster__pools__judges__mesh__tensor": 3},
            "actor.model: the model's heads = 4 cannot be divided by tensor = 3 of pool judges; set"
            " cluster.pools.judges.mesh.tensor to one of 2, 1, or actor.model.head_padding to 2",
        ),
        (
            {
                "critic__model__heads": 6,
                "critic__model__kv_heads": 6,
                "critic__model__mlp_width": 510,
                "cluster__pools__judges__mesh__data": 1,
                "cluster__pools__judges__mesh__tensor": 3,
            },
            "critic.model: the padded vocabulary = 128 cannot be divided by tensor × pipe = 3 of pool judges; set"
            " cluster.pools.judges.mesh.tensor to one of 2, 1, or critic.model.vocabulary_multiple to 192",
        ),
        (
            {"cluster__pools__judges__mesh__data": 1, "cluster__pools__judges__mesh__fsdp": 3},
            "actor.model: the model's width = 128 cannot be divided by fsdp = 3 of pool judges",
        ),
        (
            {
                "cluster__pools__main__mesh__data": 1,
                "cluster__pools__main__mesh__pipe": 2,
                "actor__model__layers": 3,
            },
            "actor.model: the model's layers = 3 cannot be divided by pipe = 2 of pool main",
        ),
        (
            {"cluster__pools__main__mesh__data": 1, "cluster__pools__main__mesh__expert": 2},
            "actor.model: the model's experts (a dense model counts as one) = 1 cannot be divided by expert = 2 of"
            " pool main; set cluster.pools.main.mesh.expert to one of 1, or actor.model.experts to a multiple of 2",
        ),
    ],
)
def test_weights_must_split_over_the_mesh_of_their_roles_pool(changes, expected):
    assert any(problem.startswith(expected) for problem in problems(split_config(**changes)))


def test_the_nearest_meshes_that_can_hold_the_model_are_named():
    (problem,) = problems(config(actor__model__mlp_width=510))
    offered = problem.partition("; nearest meshes that can be: ")[2].split(" | ")
    assert (
        offered[0] == "data 4 × fsdp 1 × expert 1 × pipe 1 × tensor 2, generation_tensor 2, generation_pipe 1"
    )
    assert len(set(offered)) == 3


def test_a_problem_of_roles_that_share_pool_and_model_is_said_once():
    assert len(problems(config(actor__model__mlp_width=510))) == 1


def test_a_reward_function_splits_no_weights_and_a_reward_model_does():
    alone = {
        **roles("actor", "critic", "reference", "estimator"),
        "cluster__pools__reward__roles": ["reward"],
        "cluster__pools__reward__devices_per_host": 5,
        "cluster__pools__reward__mesh__tensor": 5,
    }
    check(config(**alone), 100, 13)
    found = problems(config(**alone, **MODEL_REWARD))
    assert all("tensor = 5 of pool reward" in p or "tensor × pipe = 5 of pool reward" in p for p in found)
    assert len(found) == 3  # heads, mlp_width, vocabulary: fewer key/value heads than ranks are replicated


def test_tables_padded_to_a_multiple_that_the_ranks_divide_are_accepted():
    alone = {
        **roles("actor", "reward", "reference", "estimator"),
        "actor__model__vocabulary_multiple": 192,
        "actor__model__heads": 12,
        "actor__model__kv_heads": 4,
        "actor__model__mlp_width": 516,
        "cluster__pools__critic__roles": ["critic"],
        "cluster__pools__critic__devices_per_host": 3,
        "cluster__pools__critic__mesh__tensor": 3,
    }
    check(config(**alone), 100, 11)


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"actor__minibatch_sequences": 100}, "actor.minibatch_sequences = 100 sequences over all devices"),
        (
            {"actor__minibatch_sequences": 3},
            "2 training replicas of pool main (data × fsdp × expert); set it to 2",
        ),
        (
            {"critic__minibatch_sequences": 128},
            "3 training replicas of pool judges (data × fsdp × expert); set it to 96",
        ),
        ({"critic__minibatch_sequences": 768}, "set it to 384"),
        (
            {"data__prompts_per_step": 32},
            "the 128 sequences of a step (data.prompts_per_step 32 × rollout.samples_per_prompt 4) and be a multiple"
            " of the 3 training replicas of pool judges (data × fsdp × expert); no size does both",
        ),
        (
            {"warm_start__steps": 5, "warm_start__sequences_per_step": 9},
            "warm_start.sequences_per_step = 9 is not a multiple of the 2 training replicas of pool main",
        ),
        (
            {**MODEL_REWARD, "warm_start__sequences_per_step": 128},
            "is not a multiple of the 3 training replicas of pool judges (data × fsdp × expert), where the reward",
        ),
    ],
)
def test_rows_must_split_over_the_replicas_of_the_pool_that_gets_them(changes, expected):
    found = problems(split_config(**changes))
    assert len(found) == 1 and expected in found[0]


def test_generation_needs_a_row_share_for_every_freed_device():
    # 2 × 3 = 6 sequences suit the 2 training replicas but not the 4 of generation.
    bad = config(
        data__prompts_per_step=2,
        rollout__samples_per_prompt=3,
        actor__minibatch_sequences=6,
        critic__minibatch_sequences=6,
    )
    assert len(problems(bad)) == 1
    assert (
        "= 6 sequences per step cannot be split over the 4 generation replicas of pool main"
        in problems(bad)[0]
    )


def test_a_frozen_model_alone_in_its_pool_needs_equal_rows_too():
    alone = {
        **roles("actor", "critic", "reward", "estimator"),
        "cluster__pools__reference__roles": ["reference"],
        "cluster__pools__reference__devices_per_host": 5,
        "cluster__pools__reference__mesh__data": 5,
    }
    found = problems(config(**alone))
    assert len(found) == 1
    assert (
        "= 384 sequences per step cannot be split over the 5 training replicas of pool reference" in found[0]
    )


@pytest.mark.parametrize(("parts", "nearest"), [(5, 4), (64, 32), (384, 32)])
def test_every_part_of_a_step_must_divide_over_the_replicas_of_all_pools(parts, nearest):
    # 384 rows; 4 generation replicas and 3 of the judges: a part is a multiple of 12, so parts divide 32.
    check(split_config(rollout__parts=nearest), 100, 11)
    (problem,) = problems(split_config(rollout__parts=parts))
    assert problem.startswith(f"rollout.parts = {parts}: the 384 sequences") and "a multiple of 12" in problem
    assert problem.endswith(f"set it to {nearest}")


def test_pools_without_a_model_take_rows_as_they_come():
    alone = {
        **roles("actor", "critic", "reference"),
        "cluster__pools__host__roles": ["reward", "estimator"],
        "cluster__pools__host__devices_per_host": 5,
        "cluster__pools__host__mesh__data": 5,
    }
    check(config(**alone, rollout__parts=4), 100, 13)


@pytest.mark.parametrize(
    ("role", "why"),
    [
        ("estimator", "holds no weights that could wait in host memory; leave it out"),
        ("reward", "holds no weights that could wait in host memory; leave it out"),
        ("refrence", f"is not in the pool, which has: {', '.join(ROLES)}; name roles of this pool"),
    ],
)
def test_only_weights_of_the_pool_wait_in_host_memory(role, why):
    assert problems(config(cluster__pools__main__offload=[role])) == [
        f"cluster.pools.main.offload: {role!r} {why}"
    ]
    check(config(cluster__pools__main__offload=["actor", "critic", "reference"]), 100, None)
    check(config(**MODEL_REWARD, cluster__pools__main__offload=["reward"]), 100, None)


KINDS = {"cluster__platform": "gpu", "cluster__devices__kind": "h100"}


def test_a_kind_that_no_host_can_be_told_by_is_refused_where_pools_differ():
    check(split_config(**KINDS, cluster__pools__judges__device="l40s"), 100, None)
    (strange,) = problems(split_config(**KINDS, cluster__pools__judges__device="l40"), devices=None)
    assert strange.startswith("cluster.pools.judges.device = 'l40': Ray tells hosts apart by a100-40, ")
    unnamed = {**KINDS, "cluster__devices__kind": ""}
    (rest,) = problems(split_config(**unnamed, cluster__pools__judges__device="l40s"), devices=None)
    assert rest.startswith("cluster.devices.kind = '': pools that name no device of their own")
    check(split_config(cluster__pools__judges__device="l40"), 100, None)  # simulated devices are all alike


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        (
            {"main__generation_scoring": ["critic"]},
            "'critic' is no model of the pool; name some of: actor, reference",
        ),
        (
            {"main__generation_scoring": ["actor"], "main__mesh__pipe": 2},
            "the 8 devices of tensor × pipe span hosts",
        ),
        ({"judges__generation_scoring": ["reward"], "judges__hosts": 3}, "also judges validation rows"),
    ],
)
def test_roles_score_in_the_generation_layout_where_their_rows_stay(changes, said):
    asked = {f"cluster__pools__{key}": value for key, value in changes.items()}
    if "main__mesh__pipe" in changes:
        asked["cluster__pools__main__mesh__data"] = 1
    if "judges__hosts" in changes:
        asked |= {"cluster__pools__judges__devices_per_host": 1, **MODEL_REWARD}
    found = problems(split_config(**asked))
    assert any(said in problem for problem in found), found
    asked = {"cluster__pools__main__generation_scoring": ["actor", "critic", "reference"]}
    check(config(**asked), 100, None)
    exact = {"algorithm__kl__reward_coefficient": 0.1, "algorithm__kl__reward_estimator": "full"}
    found = problems(config(**asked, **exact))
    assert any("'actor' scores beside a reference" in problem for problem in found), found
