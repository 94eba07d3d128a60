"""Linear maps known by their products: convolutions against torch's own layers, algebra, norms, densities."""

import itertools
import warnings

import numpy as np
import pytest
import torch
from torch import nn

import oracles
from netspectra.errors import InputRefused
from netspectra.linalg.algebra import Difference, Product, Scaled, Sum, Transposed, dense
from netspectra.linalg.conv import ConvOperator, conv_operator
from netspectra.linalg.conv_spectrum import conv_norm_bound, conv_svdvals, is_circular
from netspectra.linalg.density import spectral_density
from netspectra.linalg.norm import golub_kahan_norm
from netspectra.linalg.operator import BlockDiagonal, Dense, LinearOperator
from netspectra.linalg.svd import svd
from netspectra.live.norm import operator_norm

GRIDS = {1: (11,), 2: (7, 6), 3: (4, 3, 4)}
LAYERS = {
    False: {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d},
    True: {1: nn.ConvTranspose1d, 2: nn.ConvTranspose2d, 3: nn.ConvTranspose3d},
}
PLAIN = [
    (dims, k, s, p, mode, d, g)
    for dims, k, s, p, mode, d, g in itertools.product(
        (1, 2, 3), (2, 3), (1, 2), (0, 1, 2), ("zeros", "circular", "reflect", "replicate"), (1, 2), (1, 2)
    )
    if dims < 3 or (d == 1 and p < 2)
]


def matrix_of(layer: nn.Module, grid: tuple[int, ...], c_in: int) -> torch.Tensor:
    n = c_in * int(np.prod(grid))
    return layer(torch.eye(n, dtype=torch.float64).reshape(n, c_in, *grid)).reshape(n, -1).T.detach()


def operator_of(layer: nn.Module, grid: tuple[int, ...], transposed: bool) -> ConvOperator | Transposed:
    return conv_operator(
        layer.weight, grid, stride=layer.stride, padding=layer.padding, dilation=layer.dilation, groups=layer.groups,
        mode=layer.padding_mode, transposed=transposed, output_padding=layer.output_padding,
    )  # fmt: skip


def adjoint_holds(A: LinearOperator) -> bool:
    g = torch.Generator().manual_seed(5)
    x, y = (torch.randn(n, 3, generator=g, dtype=torch.float64) for n in (A.shape[1], A.shape[0]))
    return torch.allclose((A.matmat(x) * y).sum(0), (x * A.rmatmat(y)).sum(0), rtol=1e-11, atol=1e-11)


def examine(layer: nn.Module, grid: tuple[int, ...], transposed: bool) -> None:
    """Products, adjoint, spectrum, norm and bound of one layer against its dense matrix."""
    truth = matrix_of(layer, grid, layer.in_channels)
    A = operator_of(layer, grid, transposed)
    assert A.shape == tuple(truth.shape)
    assert torch.allclose(dense(A), truth, atol=1e-12) and adjoint_holds(A)
    sigma = torch.linalg.svdvals(truth).numpy()
    found = operator_norm(layer, grid)
    assert found.value == pytest.approx(sigma[0], rel=1e-5)
    assert found.upper >= sigma[0] * (1 - 1e-13)
    C = A.A if isinstance(A, Transposed) else A
    if isinstance(C, ConvOperator) and C.mode == "zeros":
        assert C.frobenius2 == pytest.approx(float(truth.square().sum()))
    if is_circular(A):
        s = conv_svdvals(A)
        assert (np.abs(s.values - sigma) <= s.error + 1e-14 * sigma[0]).all()


@pytest.mark.parametrize("dims", [1, 2, 3])
def test_convolutions(dims: int) -> None:
    torch.manual_seed(dims)
    warnings.simplefilter("ignore", UserWarning)
    count = 0
    for _, k, s, p, mode, d, g in (case for case in PLAIN if case[0] == dims):
        layer = LAYERS[False][dims](
            2, 4, k, stride=s, padding=p, dilation=d, groups=g, padding_mode=mode, bias=False
        ).double()
        examine(layer, GRIDS[dims], False)
        count += 1
    assert count >= 60


@pytest.mark.parametrize("mode", ["zeros", "circular", "reflect", "replicate"])
@pytest.mark.parametrize("k", [1, 2, 3, 4])
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_same_padding(k: int, mode: str) -> None:
    for dims in (1, 2):
        layer = LAYERS[False][dims](3, 2, k, padding="same", padding_mode=mode, bias=False).double()
        examine(layer, GRIDS[dims], False)


@pytest.mark.parametrize("dims", [1, 2, 3])
@pytest.mark.parametrize("s", [1, 2, 3])
def test_transposed_convolutions(dims: int, s: int) -> None:
    for k, p, d, g, extra in itertools.product((2, 3), (0, 1), (1, 2) if dims < 3 else (1,), (1, 2), (0, 1)):
        if extra >= max(s, d):
            continue
        layer = LAYERS[True][dims](
            4, 2, k, stride=s, padding=p, dilation=d, groups=g, output_padding=extra, bias=False
        ).double()
        examine(layer, tuple(min(n, 4) for n in GRIDS[dims]), True)


@pytest.mark.parametrize(
    "grid, stride", [((8,), 2), ((6,), 3), ((4, 6), (2, 3)), ((4, 4), 4), ((5, 6), (1, 2))], ids=str
)
@pytest.mark.parametrize("groups", [1, 2])
def test_strided_circular_spectra(grid: tuple[int, ...], stride: int | tuple[int, ...], groups: int) -> None:
    dims = len(grid)
    kernel = torch.from_numpy(oracles.rng(1).standard_normal((4, 6 // groups, *(3,) * dims)))
    A = conv_operator(kernel, grid, stride=stride, padding=1, mode="circular", groups=groups)
    assert is_circular(A)
    s = conv_svdvals(A)
    truth = torch.linalg.svdvals(A.dense()).numpy()
    assert len(s) == min(A.shape) and (np.abs(s.values - truth) <= s.error + 1e-13).all()
    assert s.frobenius2 == pytest.approx(float(A.dense().square().sum()))


def test_delta_and_circulant_kernels_have_known_spectra() -> None:
    delta = torch.zeros(3, 3, 3, 3)
    delta[range(3), range(3), 1, 1] = 2.0
    assert conv_svdvals(conv_operator(delta, (5, 4), padding=1, mode="circular")).values == pytest.approx(
        np.full(60, 2.0)
    )
    difference = torch.tensor([[[1.0, -2.0, 1.0]]], dtype=torch.float64)
    n = 9
    known = np.sort(2 - 2 * np.cos(2 * np.pi * np.arange(n) / n))[::-1]
    found = conv_svdvals(conv_operator(difference, (n,), padding=1, mode="circular"))
    assert (np.abs(found.values - known) <= found.error).all()
    zero = golub_kahan_norm(conv_operator(difference, (n,), padding=1))
    assert zero.value == pytest.approx(2 - 2 * np.cos(np.pi * n / (n + 1)), rel=1e-9)


def test_an_elongated_kernel_of_a_wide_layer_goes_through_the_gram_matrix() -> None:
    kernel = torch.from_numpy(oracles.rng(2).standard_normal((140, 150, 3))).float()
    A = conv_operator(kernel, (4,), padding=1, mode="circular")
    s = conv_svdvals(A)
    truth = torch.linalg.svdvals(A.dense().double()).numpy()
    assert np.abs(s.values / truth - 1).max() < 1e-8 and (np.abs(s.values - truth) <= s.error + 1e-13 * truth[0]).all()


def test_bounds_are_close_on_ordinary_kernels() -> None:
    kernel = torch.from_numpy(oracles.rng(4).standard_normal((8, 8, 3, 3)))
    A = conv_operator(kernel, (16, 16), padding=1)
    true = golub_kahan_norm(A, tolerance=1e-8).value
    assert true * (1 - 1e-9) <= conv_norm_bound(A) <= 1.05 * true


def test_refusals() -> None:
    with pytest.raises(ValueError, match="grid"):
        conv_operator(torch.ones(1, 1, 5), (3,))
    with pytest.raises(ValueError, match="does not act on"):
        conv_operator(torch.ones(1, 1, 3), (3, 3))
    with pytest.raises(ValueError, match="diagonalised"):
        conv_svdvals(conv_operator(torch.ones(1, 1, 3), (5,), padding=1))
    with pytest.raises(InputRefused):
        operator_norm(nn.ReLU())
    with pytest.raises(InputRefused):
        operator_norm(nn.Conv2d(1, 1, 3), (5,))


def test_the_door_takes_linear_and_embedding() -> None:
    for layer in (nn.Linear(7, 5), nn.Embedding(9, 4)):
        found = operator_norm(layer)
        assert found.how == "exact" and found.upper >= found.value
        assert found.value == pytest.approx(float(torch.linalg.svdvals(layer.weight.detach())[0]), rel=1e-5)
    half = nn.Conv2d(2, 2, 3).to(torch.bfloat16)
    assert operator_norm(half, (1, 2, 8, 8)).residual < 1e-5


def test_algebra() -> None:
    g = oracles.rng(9)
    M, N = (torch.from_numpy(g.standard_normal((6, 4))) for _ in range(2))
    A, B, T = Dense(M), Dense(N), Dense(N.T.contiguous())
    for operator, truth in [
        (Transposed(A), M.T), (Scaled(A, -2.5), -2.5 * M), (Sum(A, B), M + N), (Difference(A, B), M - N),
        (Product(A, T), M @ N.T), (Product(Transposed(A), Sum(A, B)), M.T @ (M + N)),
        (Difference(A, svd(M, k=4)), torch.zeros(6, 4).double()),
        (BlockDiagonal(torch.stack([M, N])), torch.block_diag(M, N)),
    ]:  # fmt: skip
        assert isinstance(operator, LinearOperator)
        assert operator.shape == tuple(truth.shape) and operator.dtype == torch.float64
        assert torch.allclose(dense(operator), truth, atol=1e-12) and adjoint_holds(operator)
    for wrong in (Sum, Difference):
        with pytest.raises(ValueError):
            wrong(A, T)
    with pytest.raises(ValueError):
        Product(A, B)


def test_what_an_approximation_leaves_out_has_the_next_singular_value() -> None:
    A = torch.from_numpy(oracles.rng(3).standard_normal((60, 40)))
    truth = torch.linalg.svdvals(A)
    left = golub_kahan_norm(Difference(Dense(A), svd(A, k=5)))
    assert left.value == pytest.approx(float(truth[5]), rel=1e-6)


def test_density_of_a_map_that_is_not_formed() -> None:
    A = torch.from_numpy(oracles.rng(8).standard_normal((500, 300)))
    sigma = torch.linalg.svdvals(A).numpy()
    for operator in (Dense(A), Transposed(Dense(A))):
        d = spectral_density(operator, probes=12, steps=40)
        assert d.shape == operator.shape and d.count == 300
        assert np.allclose(d.weights.sum(1), 1)
        total, spread = d.sum(np.square)
        assert abs(total - (sigma**2).sum()) <= 5 * spread
        for q in (0.25, 0.5, 0.75):
            assert d.below(float(np.quantile(sigma, q))) == pytest.approx(q, abs=0.05)
