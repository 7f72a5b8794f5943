"""Each loss: a number worked by hand, the gradient's direction, batch invariance."""

import math
from typing import get_args

import pytest
import torch

from pipeline.distill.losses import (
    LossName,
    Scale,
    blind_loss,
    kl,
    loss_B,
    mse,
    nll,
    policy_logits,
    policy_regression,
    regret,
    reverse_kl,
    scale,
)

LOSSES = list(get_args(LossName))
Q = torch.tensor([[0.02, 0.01, 0.0], [1.0, 0.0, 0.5]])


def test_kl_by_hand() -> None:
    p = [math.exp(2), math.exp(1), 1.0]
    p = [x / sum(p) for x in p]
    expected = sum(x * (math.log(x) - math.log(1 / 3)) for x in p)
    assert kl(torch.zeros(1, 3), Q[:1], 0.01).item() == pytest.approx(expected, rel=1e-5)


def test_kl_is_zero_at_the_teachers_policy_and_tau_divides_the_teacher_only() -> None:
    assert kl(Q / 0.01, Q, 0.01).abs().max() < 1e-5
    assert kl(Q, Q, 0.01).min() > 0.1


def test_nll_by_hand() -> None:
    student = torch.tensor([[0.0, math.log(2.0), 0.0]])
    assert nll(student, torch.tensor([[0.0, 5.0, 1.0]])).item() == pytest.approx(-math.log(2 / 4))


def test_mse_by_hand() -> None:
    assert mse(torch.tensor([[1.0, 2.0]]), torch.tensor([[0.0, 4.0]])).item() == pytest.approx(1 + 4)


@pytest.mark.parametrize("name", LOSSES)
def test_the_gradient_moves_towards_the_teacher(name: LossName) -> None:
    student = torch.zeros(2, 3, requires_grad=True)
    loss_B(name, student, Q, 0.01).sum().backward()  # type: ignore[no-untyped-call]
    assert student.grad is not None
    best = Q.argmax(dim=1)
    assert (student.grad.gather(1, best[:, None]) < 0).all()
    after = loss_B(name, (student - 1e-3 * student.grad).detach(), Q, 0.01)
    assert (after < loss_B(name, student, Q, 0.01)).all()


@pytest.mark.parametrize("name", LOSSES)
def test_an_examples_loss_does_not_depend_on_its_batch(name: LossName) -> None:
    student = torch.randn(2, 3, generator=torch.Generator().manual_seed(0))
    whole = loss_B(name, student, Q, 0.01)
    assert whole.shape == (2,)
    assert torch.equal(loss_B(name, student[1:], Q[1:], 0.01), whole[1:])


@pytest.mark.parametrize("name", LOSSES)
def test_huge_gaps_stay_finite(name: LossName) -> None:
    student = torch.tensor([[500.0, -500.0]], requires_grad=True)
    loss = loss_B(name, student, torch.tensor([[-30.0, 30.0]]), 0.001)
    loss.sum().backward()  # type: ignore[no-untyped-call]
    assert torch.isfinite(loss).all()
    assert student.grad is not None
    assert torch.isfinite(student.grad).all()


def test_actor_mimics_policy_regression_has_kls_gradient() -> None:
    student = torch.randn(2, 3, generator=torch.Generator().manual_seed(0)).requires_grad_()
    ours = torch.autograd.grad(kl(student, Q, 0.01).sum(), student)[0]
    theirs = torch.autograd.grad(policy_regression(student, Q, 0.01).sum(), student)[0]
    assert torch.allclose(ours, theirs, atol=1e-6)
    p = torch.softmax(Q / 0.01, 1)
    entropy = -(p * p.clamp_min(1e-30).log()).sum(1)
    assert torch.allclose(policy_regression(student, Q, 0.01), kl(student, Q, 0.01) + entropy, atol=1e-5)


def test_reverse_kl_by_hand() -> None:
    p, s = [0.5, 0.5], [0.9, 0.1]
    expected = sum(b * math.log(b / a) for a, b in zip(p, s, strict=True))
    found = reverse_kl(torch.tensor([s]).log(), torch.tensor([[2.0, 2.0]]), 0.01)
    assert found.item() == pytest.approx(expected, rel=1e-5)
    assert reverse_kl(Q / 0.01, Q, 0.01).abs().max() < 1e-5


def test_the_scale_of_a_dataset() -> None:
    found = scale(torch.tensor([[1.0, 3.0, 2.5], [0.0, 0.0, 4.0], [5.0, 1.0, 4.0]]))
    assert found.gap == pytest.approx(1.0)
    assert found.mean == pytest.approx(20.5 / 9)
    assert scale(torch.ones(4, 1)) == Scale(1.0, 1.0, 0.0)


def test_a_normalised_mse_does_not_see_the_games_scale() -> None:
    student = torch.randn(2, 3, generator=torch.Generator().manual_seed(0))
    small, large = Q, 300 * Q - 7
    one, other = (loss_B("normalised-mse", student, q, 0.01, scale(q)) for q in (small, large))
    assert torch.allclose(one, other, rtol=1e-4)
    exact = (large - scale(large).mean) / scale(large).deviation
    assert kl(policy_logits("normalised-mse", exact, 0.5, scale(large)), large, 0.5).abs().max() < 1e-3


def test_regret_and_policy() -> None:
    student = torch.tensor([[0.0, 1.0, 0.0], [1.0, 0.0, 0.0]])
    assert torch.allclose(regret(student, Q), torch.tensor([0.01, 0.0]))
    assert torch.equal(policy_logits("mse", student, 0.5), student * 2)
    assert torch.equal(policy_logits("kl", student, 0.5), student)


@pytest.mark.parametrize("name", LOSSES)
def test_no_student_that_does_not_look_at_the_state_is_better_than_the_blind_one(name: LossName) -> None:
    q_NA = torch.randn(64, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64) * 0.1 + 2.0
    unit = scale(q_NA)
    constant_A = torch.zeros(3, dtype=torch.float64, requires_grad=True)
    search = torch.optim.LBFGS([constant_A], max_iter=500, line_search_fn="strong_wolfe")

    def mean_loss() -> torch.Tensor:
        search.zero_grad()
        loss = loss_B(name, constant_A.expand_as(q_NA), q_NA, 0.05, unit).mean()
        torch.autograd.backward(loss)
        return loss

    search.step(mean_loss)  # type: ignore[no-untyped-call]
    assert blind_loss(name, q_NA, 0.05, unit) == pytest.approx(mean_loss().item(), rel=1e-4)
