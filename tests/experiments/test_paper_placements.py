"""The facts of HybridFlow's evaluation that the cost model gets right stay right."""

import pytest

from experiments import paper_placements as paper


@pytest.mark.slow
@pytest.mark.parametrize(
    ("actor", "critic", "devices", "best"),
    [
        ("13B", "13B", 16, "colocate"),
        ("13B", "13B", 32, "colocate"),
        ("34B", "34B", 32, "colocate"),
        ("34B", "34B", 96, "split"),
        ("13B", "70B", 64, "colocate"),
    ],
)
def test_the_robust_placements_of_the_paper_come_out(actor, critic, devices, best):
    found = paper.named(actor, critic, devices)
    compared = [name for name in ("colocate", "split", "standalone") if name in found]
    assert min(compared, key=lambda name: found[name].seconds) == best


@pytest.mark.parametrize("devices", [8, 16])
def test_four_models_of_70b_do_not_fit_on_few_cards_and_the_lack_is_counted(devices):
    assert paper.search(paper.problem("70B", "70B", devices), 1) == ()
    # 18 bytes of two trained models and 2 of two frozen ones, against 90 % of 80 GB each.
    sizes = [load.model.parameters for load in paper.ppo("70B", "70B")]
    needed = 18 * (sizes[0] + sizes[1]) + 2 * (sizes[2] + sizes[3])
    assert paper.missing_bytes("70B", devices) == pytest.approx(needed - devices * 72e9)


def test_34b_needs_more_than_sixteen_cards():
    assert paper.search(paper.problem("34B", "34B", 16), 1) == ()


def test_the_papers_volumes_and_counts_are_exact():
    held = [case for case in paper.transition_cases() if case.exact]
    assert len(held) == 4
    assert all(case.right for case in held)


def test_the_table_has_a_line_for_each_case():
    found = list(paper.transition_cases())
    assert len(paper.table(found).splitlines()) == 1 + len(found)
