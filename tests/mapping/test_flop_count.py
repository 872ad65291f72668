"""Products are counted as often as loops run them."""

import jax
import jax.numpy as jnp
import pytest
from jax.experimental import pallas

from jaxflow.mapping.flop_count import count_flops

A, B = jnp.ones((3, 5)), jnp.ones((5, 7))
ONE = 2.0 * 3 * 5 * 7


def flops(function, *arguments, trips=1) -> float:
    return count_flops(jax.make_jaxpr(function)(*arguments).jaxpr, trips)


def test_a_product_is_two_operations_for_each_result_and_summand():
    assert flops(jnp.dot, A, B) == ONE
    batched = flops(lambda a, b: jnp.einsum("xij,xjk->xik", a, b), jnp.ones((4, 3, 5)), jnp.ones((4, 5, 7)))
    assert batched == 4 * ONE


def test_a_scan_is_its_body_times_its_length():
    def loop(a, b):
        return jax.lax.scan(lambda c, _: (c + (a @ b).sum(), None), 0.0, None, length=6)[0]

    assert flops(loop, A, B) == 6 * ONE
    assert flops(jax.checkpoint(jax.jit(loop)), A, B) == 6 * ONE


def test_a_while_is_its_body_times_the_trips_that_are_told():
    def loop(a, b):
        return jax.lax.while_loop(lambda x: x[0] < 9, lambda x: (x[0] + 1, a @ b), (0, a @ b))

    assert flops(loop, A, B, trips=9) == 10 * ONE


def test_of_branches_the_dearest_counts():
    def either(x, a, b):
        return jax.lax.cond(x, lambda: (a @ b).sum(), lambda: 0.0)

    assert flops(either, True, A, B) == ONE


@pytest.mark.parametrize("remat", [False, True])
def test_a_gradient_is_two_products_more_and_remat_repeats_the_first(remat):
    def loss(a, b):
        product = (lambda a: jnp.sin(a @ b)) if not remat else jax.checkpoint(lambda a: jnp.sin(a @ b))
        return product(a).sum()

    assert flops(jax.grad(loss, argnums=(0, 1)), A, B) == (4 if remat else 3) * ONE


def test_a_kernel_counts_as_nothing():
    def kernel(a, b, result):
        result[...] = a[...] @ b[...]

    call = pallas.pallas_call(kernel, out_shape=jax.ShapeDtypeStruct((3, 7), A.dtype))
    assert flops(lambda a, b: call(a, b) + a @ b, A, B) == ONE
