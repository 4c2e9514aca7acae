"""Weighted least squares over many voxels, on one thread."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

_BLOCK_PRODUCTS = 2**18  # so many multiplications of a product OpenBLAS leaves to one thread


def normal_equations(
    columns: NDArray[np.float64], weight: NDArray[np.float64], target: NDArray[np.float64]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Sum up what weighted least squares solves.

    Block by block: products as small as that OpenBLAS keeps on one thread. Of larger ones its
    threads wait for each other busily, which takes half of all the time where other subjects are
    prepared beside this one; and the last bits would depend on their number.

    Args:
        columns: (N, P) what each of N voxels says of each of P unknowns.
        weight: (N,) not negative.
        target: (N,) what is to be explained.

    Returns:
        (P, P) and (P,): the matrix and the right-hand side.
    """
    unknowns = columns.shape[1]
    sums = np.zeros((unknowns, unknowns + 1))
    rows = max(1, _BLOCK_PRODUCTS // (unknowns * (unknowns + 1)))
    for start in range(0, len(columns), rows):
        block = slice(start, start + rows)
        known = np.column_stack([columns[block], target[block]])
        sums += (columns[block] * weight[block, None]).T @ known
    return sums[:, :-1], sums[:, -1]
