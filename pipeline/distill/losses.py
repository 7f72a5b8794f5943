"""The paper's three losses (Rusu et al. 2015, Section 3). Each returns one number per example; only the trainer takes the mean.

The temperature divides the teacher's Q-values alone: tau = 0.01 sharpens them into a policy that the student's logits imitate.

Dimensions: B batch, A actions.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional

LossName = Literal["kl", "nll", "mse"]


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


def loss_B(name: LossName, student_BA: Tensor, q_BA: Tensor, temperature: float) -> Tensor:
    """The loss called `name`, per example."""
    assert student_BA.shape == q_BA.shape, (student_BA.shape, q_BA.shape)
    match name:
        case "kl":
            return kl(student_BA, q_BA, temperature)
        case "nll":
            return nll(student_BA, q_BA)
        case "mse":
            return mse(student_BA, q_BA)


def policy_logits(name: LossName, student_BA: Tensor, temperature: float) -> Tensor:
    """The logits of the student's policy: its outputs, or for a student of Q-values (MSE) those over the teacher's tau."""
    return student_BA / temperature if name == "mse" else student_BA


def regret(student_BA: Tensor, q_BA: Tensor) -> Tensor:
    """What the student's action costs by the teacher's own Q-values, per example: max q - q[argmax student], >= 0."""
    chosen_B1 = student_BA.argmax(dim=1, keepdim=True)
    return q_BA.max(dim=1).values - torch.gather(q_BA, 1, chosen_B1).squeeze(1)
