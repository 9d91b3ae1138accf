"""Curvature: gradients and products agree with torch.func on nets small enough to differentiate."""

import re
from dataclasses import replace

import numpy as np
import pytest
import torch
from influence_tasks import EXACT, dense_hessian, design, logistic, ridge, small_net
from torch import Tensor, nn
from torch.func import functional_call, jacrev
from torch.nn import functional as F

from unlearnlib.influence import curvature
from unlearnlib.influence.curvature import Loss, Objective
from unlearnlib.models import architectures

GROUP = torch.tensor([3, 17, 4, 21, 9])


def direction(objective: Objective, seed: int = 5) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(len(curvature.flatten(objective.network)), generator=generator).double()


def moved(objective: Objective, step: Tensor) -> Objective:
    network = small_net().network
    curvature.assign(network, curvature.flatten(objective.network) + step)
    return replace(objective, network=network)


def close(actual: Tensor, expected: Tensor, *, tolerance: float = 1e-9) -> None:
    torch.testing.assert_close(actual, expected, rtol=tolerance, atol=tolerance)


# ------------------------------------------------------------------------ flat parameters


def test_flat_parameters_go_out_and_in_bit_by_bit():
    network = architectures.build("lenet5", width=0.5, channels=2)
    flat = curvature.flatten(network)
    other = architectures.build("lenet5", width=0.5, channels=2)
    curvature.assign(other, flat)
    assert all(
        torch.equal(p, q) for p, q in zip(network.parameters(), other.parameters(), strict=True)
    )
    named = curvature.unflatten(network, flat)
    assert all(torch.equal(named[name], p) for name, p in network.named_parameters())
    images = torch.rand(2, 2, 28, 28)
    torch.testing.assert_close(functional_call(network, named, (images,)), network(images))


def test_a_vector_of_another_length_is_refused():
    with pytest.raises(ValueError, match=r"shape \(3,\) for 6 parameters"):
        curvature.assign(nn.Linear(2, 2), torch.zeros(3))


# ------------------------------------------------------------------------------ gradients


def test_the_gradient_is_that_of_the_mean_loss_by_finite_differences():
    objective, v = small_net(), direction(small_net())
    slope = curvature.gradient_sum(objective) @ v / objective.items
    ahead, behind = (curvature.mean_loss(moved(objective, h * v)) for h in (1e-5, -1e-5))
    assert slope.item() == pytest.approx((ahead - behind) / 2e-5, rel=1e-6)


def test_group_gradients_are_sums_of_item_gradients_with_their_penalty():
    objective = small_net()
    rows = curvature.item_gradients(objective)
    close(curvature.gradient_sum(objective), rows.sum(0))
    close(curvature.gradient_sum(objective, index=GROUP), rows[GROUP].sum(0))
    close(curvature.item_gradients(objective, index=GROUP), rows[GROUP])
    unpenalised = curvature.gradient_sum(replace(objective, l2=0.0), index=GROUP)
    theta = curvature.flatten(objective.network)
    close(rows[GROUP].sum(0) - unpenalised, 5 * 0.02 * theta)


def test_the_gradient_vanishes_at_an_exact_minimum():
    for objective in (ridge(), logistic()):
        assert curvature.gradient_sum(objective).abs().max() < EXACT


def test_chunks_do_not_change_a_result():
    objective = small_net()
    whole = replace(objective, batch_size=1000)
    v = direction(objective)
    for function in (curvature.gradient_sum, curvature.item_gradients, curvature.gauss_newton):
        close(function(objective), function(whole))
    for function in (curvature.hessian_operator, curvature.gauss_newton_operator):
        close(function(objective)(v), function(whole)(v))
    assert curvature.mean_loss(objective) == pytest.approx(curvature.mean_loss(whole))


def test_buffers_and_parameters_stay_as_they_are():
    objective = small_net()
    before = {k: v.clone() for k, v in objective.network.state_dict().items()}
    curvature.gauss_newton(objective)
    curvature.hessian_operator(objective)(direction(objective))
    assert all(torch.equal(before[k], v) for k, v in objective.network.state_dict().items())
    assert all(p.grad is None for p in objective.network.parameters())


# ------------------------------------------------------------------------------ curvature


@pytest.mark.parametrize("index", [None, GROUP])
def test_hessian_products_are_those_of_torch_func(index: Tensor | None):
    objective, v = small_net(), direction(small_net())
    product = curvature.hessian_operator(objective, index=index)(v)
    close(product, dense_hessian(objective, index) @ v)


def test_hessian_products_agree_with_finite_differences():
    objective, v = small_net(), direction(small_net())
    ahead, behind = (
        curvature.gradient_sum(moved(objective, h * v)) / objective.items for h in (1e-5, -1e-5)
    )
    product = curvature.hessian_operator(objective)(v)
    close(product, (ahead - behind) / 2e-5, tolerance=1e-6)


@pytest.mark.parametrize("columns", [1, 8, 9])
@pytest.mark.parametrize("mask", [None, torch.arange(88) % 3 == 1])
def test_a_product_with_columns_is_that_with_each(columns: int, mask: Tensor | None):
    objective = small_net()
    vectors = [direction(objective, seed)[slice(None) if mask is None else mask]
               for seed in range(columns)]  # fmt: skip
    for function in (curvature.hessian_operator, curvature.gauss_newton_operator):
        product = function(objective, index=GROUP, mask=mask)
        found = product(torch.stack(vectors, 1))
        assert found.dtype == torch.float64
        close(found, torch.stack([product(v) for v in vectors], 1))


def test_columns_share_the_passes_that_do_not_depend_on_them():
    objective, calls = small_net(), []
    objective.network.register_forward_hook(lambda *_: calls.append(1))
    vectors = torch.randn(88, curvature.COLUMNS, generator=torch.Generator().manual_seed(0))
    curvature.hessian_operator(objective)(vectors.double())
    assert len(calls) == 5  # chunks of the items, and not chunks times columns


def test_third_products_agree_with_finite_differences():
    objective, v = small_net(), direction(small_net())
    ahead, behind = (curvature.hessian_operator(moved(objective, h * v))(v) for h in (1e-5, -1e-5))
    product = curvature.third_operator(objective)(v)
    assert product.norm() > 1e-2
    close(product, (ahead - behind) / 2e-5, tolerance=1e-6)


def test_a_quadratic_loss_has_no_third_derivative():
    assert not curvature.third_operator(ridge())(direction(ridge())).any()


def explicit_gauss_newton(objective: Objective) -> Tensor:
    """Sum J^T (diag(p) - p p^T) J item by item."""
    network, theta = objective.network, curvature.flatten(objective.network)
    total = objective.l2 * torch.eye(len(theta)).double()
    for x in objective.inputs:

        def logits(theta: Tensor, x: Tensor = x) -> Tensor:
            return functional_call(network, curvature.unflatten(network, theta), (x[None],))[0]

        jacobian, p = jacrev(logits)(theta), logits(theta).softmax(0)
        total += jacobian.T @ (p.diag() - p.outer(p)) @ jacobian / objective.items
    return total


def test_the_gauss_newton_matrix_is_the_sum_of_its_definition():
    objective = small_net()
    matrix = curvature.gauss_newton(objective)
    assert matrix.dtype == torch.float64
    close(matrix, matrix.T)
    close(matrix, explicit_gauss_newton(objective))
    assert torch.linalg.eigvalsh(matrix).min() > 0.02 - EXACT


@pytest.mark.parametrize("index", [None, GROUP])
def test_the_gauss_newton_product_is_that_of_its_matrix(index: Tensor | None):
    objective, v = small_net(), direction(small_net())
    matrix = curvature.gauss_newton(objective, index=index)
    close(curvature.gauss_newton_operator(objective, index=index)(v), matrix @ v)


def test_gauss_newton_is_the_hessian_where_logits_are_linear():
    for objective in (ridge(), logistic()):
        close(curvature.gauss_newton(objective), dense_hessian(objective))
    x = design(ridge())
    gram = (x.T @ x / 40 + 0.1 * torch.eye(6).double()).numpy()
    eigenvalues = torch.linalg.eigvalsh(curvature.gauss_newton(ridge()))
    close(eigenvalues, torch.from_numpy(np.linalg.eigvalsh(np.kron(gram, np.eye(2)))))


def test_the_roots_of_items_square_to_their_own_curvature():
    objective = replace(small_net(), l2=0.0)
    roots = curvature.item_roots(objective, index=GROUP)
    assert (roots.shape, roots.dtype) == ((5, 3, 88), torch.float64)
    for item, root in zip(GROUP[:, None], roots, strict=True):
        close(root.T @ root, curvature.gauss_newton(objective, index=item))


@pytest.mark.parametrize("chunk", [1, 2, 100])
def test_the_rooted_jacobian_squares_to_the_gauss_newton_matrix(chunk: int):
    objective = small_net()
    rows = curvature.rooted_jacobian(objective, index=GROUP, chunk=chunk)
    assert rows.shape == (5 * 3, 88)
    matrix = curvature.gauss_newton(replace(objective, l2=0.0), index=GROUP)
    close(rows.T @ rows, matrix)


def test_the_rooted_jacobian_of_a_linear_map_is_known():
    network = nn.Linear(3, 2).double().eval()
    inputs = torch.randn(5, 3, generator=torch.Generator().manual_seed(0)).double()
    objective = Objective(network, inputs, torch.zeros(5, 2), loss=curvature.SQUARED)
    rows = curvature.rooted_jacobian(objective)
    expected = torch.block_diag(inputs.T @ inputs, inputs.T @ inputs) / 5
    close((rows.T @ rows)[:6, :6], expected)


def test_a_mask_selects_a_block():
    objective = small_net()
    mask = torch.arange(88) % 3 == 1
    v = direction(objective)[mask]
    matrix, whole = curvature.gauss_newton(objective), dense_hessian(objective)
    close(curvature.gauss_newton(objective, mask=mask), matrix[mask][:, mask])
    product = curvature.gauss_newton_operator(objective, mask=mask)(v)
    close(product, matrix[mask][:, mask] @ v)
    product = curvature.hessian_operator(objective, mask=mask)(v)
    close(product, whole[mask][:, mask] @ v)


@pytest.mark.parametrize("scale", [1.0, 30.0, 1000.0])
def test_the_softmax_root_squares_to_the_hessian_even_when_certain(scale: float):
    logits = scale * torch.randn(6, 5, generator=torch.Generator().manual_seed(1)).double()
    p, root = logits.softmax(1), curvature.softmax_root(logits)
    assert root.shape == (6, 5, 4)
    close(root @ root.mT, torch.diag_embed(p) - p[:, :, None] * p[:, None, :], tolerance=1e-12)


def test_a_loss_of_ones_own_is_plugged_in():
    def values(outputs: Tensor, targets: Tensor) -> Tensor:
        return 3 * (outputs - targets).square().sum(1)

    def root(outputs: Tensor) -> Tensor:
        return 6**0.5 * torch.eye(2).double().expand(len(outputs), 2, 2)

    objective = replace(ridge(), loss=Loss(values, root))
    close(curvature.gauss_newton(objective), dense_hessian(objective))


def test_single_precision_networks_are_summed_in_double():
    double = logistic()
    network = architectures.Logistic(num_classes=3, side=2).eval()
    curvature.assign(network, curvature.flatten(double.network))
    single = replace(double, network=network, inputs=double.inputs.float())
    close(curvature.gauss_newton(single), curvature.gauss_newton(double), tolerance=EXACT)
    product = curvature.hessian_operator(single)(direction(double))
    assert product.dtype == torch.float64
    close(product, curvature.hessian_operator(double)(direction(double)), tolerance=1e-5)


@pytest.mark.parametrize("model", ["compact", "logistic", "lenet5", "resnet18", "vit", "allcnn"])
def test_every_architecture_has_gradients_and_curvature(model: str):
    torch.manual_seed(0)
    network = (
        architectures.build(model, width=0.25 if model in ("compact", "lenet5") else 0.0625)
        .double()
        .eval()
    )
    objective = Objective(network, torch.rand(3, 1, 28, 28).double(), torch.tensor([1, 2, 3]))
    v = direction(objective)
    v /= v.norm()
    logits = network(objective.inputs)
    gradients = torch.autograd.grad(
        F.cross_entropy(logits, objective.targets, reduction="sum"), list(network.parameters())
    )
    close(curvature.gradient_sum(objective), torch.cat([g.reshape(-1) for g in gradients]))
    close(curvature.item_gradients(objective).sum(0), curvature.gradient_sum(objective))
    rows = curvature.rooted_jacobian(objective)
    close(curvature.gauss_newton_operator(objective)(v), rows.T @ (rows @ v))
    columns = torch.stack([v, -2 * v], 1)
    for function in (curvature.hessian_operator, curvature.gauss_newton_operator):
        product = function(objective)
        close(product(columns), torch.stack([product(v), product(-2 * v)], 1))


# ------------------------------------------------------------------------------ refusals


def test_training_mode_is_refused():
    objective = small_net()
    objective.network.train()
    for function in (
        curvature.gradient_sum,
        curvature.gauss_newton,
        curvature.item_gradients,
        curvature.rooted_jacobian,
    ):
        with pytest.raises(ValueError, match=r"training mode.*eval\(\)"):
            function(objective)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"inputs": torch.zeros(0, 1)}, "0 inputs and 40 targets"),
        ({"targets": torch.zeros(3)}, "40 inputs and 3 targets"),
        ({"l2": -1.0}, "l2=-1.0.*0 or more"),
        ({"l2": float("nan")}, "l2=nan"),
        ({"batch_size": 0}, "batch_size=0"),
    ],
)
def test_a_wrong_objective_is_refused(change: dict, message: str):
    with pytest.raises(ValueError, match=message):
        replace(ridge(), **change)


def test_a_wrong_index_mask_vector_or_kind_is_refused():
    objective = ridge()
    for function in (curvature.gradient_sum, curvature.rooted_jacobian):
        with pytest.raises(ValueError, match="empty index selects no items; give at least one"):
            function(objective, index=torch.empty(0, dtype=torch.long))
    for mask in (torch.zeros(12, dtype=torch.bool), torch.ones(12), torch.ones(5, dtype=bool)):
        with pytest.raises(ValueError, match=r"mask of shape.*bool tensor \[12\]"):
            curvature.gauss_newton(objective, mask=mask)
    for shape in ((3,), (3, 12), (12, 2, 1)):
        found = re.escape(f"shape {shape} for 12 parameters")
        with pytest.raises(ValueError, match=found):
            curvature.hessian_operator(objective)(torch.zeros(shape))
    with pytest.raises(ValueError, match=r"'fisher'.*gauss_newton.*hessian"):
        curvature.curvature_operator("fisher", objective)
