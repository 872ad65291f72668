import numpy as np

from jaxflow.rewards.overlong import overlong_penalty


def equation_13(length, longest, cache):
    """DAPO's piecewise form, as printed."""
    if length <= longest - cache:
        return 0.0
    if length <= longest:
        return ((longest - cache) - length) / cache
    return -1.0


def test_the_penalty_is_the_papers_equation_times_the_factor():
    lengths = np.arange(0, 40)
    for longest, cache, factor in [(32, 8, 1.0), (32, 32, 0.5), (20, 1, 2.0)]:
        expected = [factor * equation_13(length, longest, cache) for length in lengths]
        found = overlong_penalty(lengths, longest, cache, factor)
        assert found.dtype == np.float32
        np.testing.assert_allclose(found, expected, rtol=1e-6)
