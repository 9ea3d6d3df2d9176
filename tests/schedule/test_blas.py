"""One BLAS thread inside, as many as before outside."""

import numpy as np
import pytest
from threadpoolctl import threadpool_info, threadpool_limits

from autolr_ray.schedule.blas import single_threaded_blas


def threads():
    """Of each BLAS library that is loaded."""
    np.linalg.eigh(np.eye(3))
    return {library["num_threads"] for library in threadpool_info() if library["user_api"] == "blas"}


@pytest.mark.parametrize("fails", [False, True])
def test_contexts_in_each_other(fails):
    with threadpool_limits(2, user_api="blas"):
        assert threads() == {2}
        try:
            with single_threaded_blas():
                assert threads() == {1}
                with single_threaded_blas():
                    assert threads() == {1}
                assert threads() == {1}
                if fails:
                    raise ArithmeticError
        except ArithmeticError:
            pass
        assert threads() == {2}
        with single_threaded_blas():
            assert threads() == {1}
