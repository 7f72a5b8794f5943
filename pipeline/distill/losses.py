"""What a student may learn from stored Q-values. Each loss returns one number per example; only the trainer takes the mean.

kl, nll, mse            Rusu et al. 2015, Section 3
policy-regression       Parisotto et al. 2016 (Actor-Mimic), eq. 2: cross-entropy to the teacher's policy, KL's gradient
reverse-kl              KL with its arguments exchanged: the student may keep to one of several good actions
normalised-mse          MSE of Q-values brought to mean 0 and deviation 1 over the dataset: games differ in scale by hundreds

The temperature divides the teacher's Q-values alone: tau = 0.01 sharpens them into a policy that the student's logits imitate.

Dimensions: B batch, A actions.
"""

from __future__ import annotations

from typing import Final, Literal, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

LossName = Literal["kl", "nll", "mse", "policy-regression", "reverse-kl", "normalised-mse"]


class Scale(NamedTuple):
    """What a dataset's Q-values are like: mean, standard deviation, and median gap between the best two actions."""

    mean: float
    deviation: float
    gap: float


UNIT: Final = Scale(0.0, 1.0, 1.0)


def scale(q_NA: Tensor) -> Scale:
    """The scale of these Q-values (N, A). The gap is 0 where there is only one action."""
    best_N2 = q_NA.topk(min(2, q_NA.shape[1]), dim=1).values
    gap = float((best_N2[:, 0] - best_N2[:, -1]).median())
    return Scale(float(q_NA.mean()), float(q_NA.std()) or 1.0, gap)


def kl(student_BA: Tensor, q_BA: Tensor, temperature: float) -> Tensor:
    """KL(softmax(q / tau) || softmax(student)) in nats, per example (eq. 3). `student_BA` are logits of a policy."""
    log_p_BA = functional.log_softmax(q_BA.float() / temperature, dim=1)
    log_s_BA = functional.log_softmax(student_BA.float(), dim=1)
    return (log_p_BA.exp() * (log_p_BA - log_s_BA)).sum(dim=1)


def nll(student_BA: Tensor, q_BA: Tensor) -> Tensor:
    """-log softmax(student)[argmax q] in nats, per example (eq. 1). `student_BA` are logits of a policy."""
    return functional.cross_entropy(student_BA.float(), q_BA.argmax(dim=1), reduction="none")


def mse(student_BA: Tensor, q_BA: Tensor) -> Tensor:
    """Squared distance of the Q-vectors, summed over actions, per example (eq. 2). `student_BA` are Q-values."""
    return (student_BA.float() - q_BA.float()).square().sum(dim=1)


def policy_regression(student_BA: Tensor, q_BA: Tensor, temperature: float) -> Tensor:
    """-sum softmax(q / tau) log softmax(student) in nats, per example: KL plus the entropy of the teacher's policy."""
    p_BA = functional.softmax(q_BA.float() / temperature, dim=1)
    return -(p_BA * functional.log_softmax(student_BA.float(), dim=1)).sum(dim=1)


def reverse_kl(student_BA: Tensor, q_BA: Tensor, temperature: float) -> Tensor:
    """KL(softmax(student) || softmax(q / tau)) in nats, per example. `student_BA` are logits of a policy."""
    return kl(q_BA / temperature, student_BA, 1.0)


def loss_B(name: LossName, student_BA: Tensor, q_BA: Tensor, temperature: float, scale: Scale = UNIT) -> Tensor:
    """The loss called `name`, per example; `scale` is that of the dataset."""
    assert student_BA.shape == q_BA.shape, (student_BA.shape, q_BA.shape)
    match name:
        case "kl":
            return kl(student_BA, q_BA, temperature)
        case "nll":
            return nll(student_BA, q_BA)
        case "mse":
            return mse(student_BA, q_BA)
        case "policy-regression":
            return policy_regression(student_BA, q_BA, temperature)
        case "reverse-kl":
            return reverse_kl(student_BA, q_BA, temperature)
        case "normalised-mse":
            return mse(student_BA, (q_BA - scale.mean) / scale.deviation)


def blind_loss(name: LossName, q_NA: Tensor, temperature: float, scale: Scale = UNIT) -> float:
    """The mean loss of the best student that does not look at the state: the loss in which games can be compared."""
    log_p_NA = functional.log_softmax(q_NA.float() / temperature, dim=1)
    match name:
        case "kl" | "policy-regression":
            constant_A = log_p_NA.exp().mean(dim=0).clamp_min(1e-12).log()
        case "reverse-kl":
            constant_A = log_p_NA.mean(dim=0)
        case "nll":
            counts_A = torch.bincount(q_NA.argmax(dim=1), minlength=q_NA.shape[1])
            constant_A = (counts_A / len(q_NA)).clamp_min(1e-12).log()
        case "mse":
            constant_A = q_NA.mean(dim=0)
        case "normalised-mse":
            constant_A = (q_NA.mean(dim=0) - scale.mean) / scale.deviation
    return float(loss_B(name, constant_A.expand_as(q_NA), q_NA, temperature, scale).mean())


def policy_logits(name: LossName, student_BA: Tensor, temperature: float, scale: Scale = UNIT) -> Tensor:
    """The logits of the student's policy: its outputs, or for a student of Q-values those over the teacher's tau."""
    match name:
        case "mse":
            return student_BA / temperature
        case "normalised-mse":
            return student_BA * (scale.deviation / temperature)
        case _:
            return student_BA


def regret(student_BA: Tensor, q_BA: Tensor) -> Tensor:
    """What the student's action costs by the teacher's own Q-values, per example: max q - q[argmax student], >= 0."""
    chosen_B1 = student_BA.argmax(dim=1, keepdim=True)
    return q_BA.max(dim=1).values - torch.gather(q_BA, 1, chosen_B1).squeeze(1)
