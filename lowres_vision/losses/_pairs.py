"""Losses between two predictions of one picture: of a teacher and a student, or of two views.

They read logits, whatever loss trains the model: ``loss.logits(outputs)`` of a loss Module gives
them. Neither reads the target, so mixed and hard labels make no difference here; the views must
be mixed alike.
"""

import math
from typing import Literal

import torch
from torch import Tensor

from lowres_vision._checks import check_choice, check_range
from lowres_vision._numerics import at_least_float32, unit_vectors
from lowres_vision.losses._contract import Reduction, mean_of_rows

Divergence = Literal["jensen_shannon", "kl"]
Distance = Literal["cosine", "mse"]


def distillation_loss(
    logits: Tensor,
    teacher_logits: Tensor,
    *,
    temperature: float = 2.0,
    reduction: Reduction = "mean",
) -> Tensor:
    r"""Return how far a student's softened prediction is from its teacher's.

    .. math:: L_i = T^2 \, KL(q_i \,\Vert\, p_i), \quad
        q = softmax(t / T), \; p = softmax(z / T)

    with the student's logits z, the teacher's t and the temperature T. The factor keeps the
    gradient's size about the same at every T. Gradients flow to both; detach the teacher's logits
    where the teacher is not to learn.

    Args:
        logits: ``(B, K)`` of the student.
        teacher_logits: ``(B, K)``.
        temperature: T > 0; larger ones say more of the classes that are not the likeliest.
        reduction: "mean" over the batch, "sum" or "none".

    Returns:
        Scalar, or ``(B,)`` with reduction "none"; float64 for float64 logits, else float32.

    Raises:
        ValueError: If a shape or an option does not fit.

    Example:
        >>> student, teacher = torch.tensor([[2.0, 0.0]]), torch.tensor([[4.0, 0.0]])
        >>> distillation_loss(student, teacher, temperature=2.0)
        tensor(0.2685)
        >>> distillation_loss(student, student)
        tensor(0.)

    References:
        Hinton, Vinyals, Dean, "Distilling the Knowledge in a Neural Network", 2015,
        https://arxiv.org/abs/1503.02531, whose cross-entropy differs by the teacher's entropy, a
        constant.
    """
    check_range("temperature", temperature, 0.0, open_low=True)
    _check("teacher_logits", logits, teacher_logits, reduction)
    student = (at_least_float32(logits) / temperature).log_softmax(1)
    teacher = (at_least_float32(teacher_logits) / temperature).log_softmax(1)
    return _reduce(temperature**2 * _kl(teacher, student), reduction)


def consistency_loss(
    logits: Tensor,
    other: Tensor,
    *,
    divergence: Divergence = "jensen_shannon",
    reduction: Reduction = "mean",
) -> Tensor:
    r"""Return how far two predictions of one picture are from each other, symmetrically.

    With p and q their softmax, and m = (p + q) / 2:

    .. math:: JS_i = \tfrac12 KL(p_i \Vert m_i) + \tfrac12 KL(q_i \Vert m_i), \quad
        KL_i = \tfrac12 KL(p_i \Vert q_i) + \tfrac12 KL(q_i \Vert p_i)

    The first is at most log 2, so that one bad view cannot outweigh the labels; the second is not
    bounded and pulls harder where the views disagree most.

    Args:
        logits: ``(B, K)`` of one view.
        other: ``(B, K)`` of the other; detach the one that is not to move.
        divergence: "jensen_shannon" or "kl".
        reduction: "mean" over the batch, "sum" or "none".

    Returns:
        Scalar, or ``(B,)`` with reduction "none"; float64 for float64 logits, else float32.

    Raises:
        ValueError: If a shape or an option does not fit.

    Example:
        >>> low, high = torch.tensor([[0.0, 99.0]]), torch.tensor([[99.0, 0.0]])
        >>> consistency_loss(low, high), consistency_loss(low, high, divergence="kl")
        (tensor(0.6931), tensor(99.))

    References:
        Wu et al., "R-Drop", NeurIPS 2021, https://arxiv.org/abs/2106.14448 (the two-way KL, between
        two dropouts); Hendrycks et al., "AugMix", ICLR 2020, https://arxiv.org/abs/1912.02781 (the
        Jensen-Shannon divergence, between three views).
    """
    check_choice("divergence", divergence, ("jensen_shannon", "kl"))
    _check("other", logits, other, reduction)
    first, second = (at_least_float32(view).log_softmax(1) for view in (logits, other))
    if divergence == "kl":
        return _reduce((_kl(first, second) + _kl(second, first)) / 2, reduction)
    middle = torch.logaddexp(first, second) - math.log(2)
    return _reduce((_kl(first, middle) + _kl(second, middle)) / 2, reduction)


def feature_loss(
    features: Tensor,
    teacher_features: Tensor,
    *,
    distance: Distance = "cosine",
    reduction: Reduction = "mean",
) -> Tensor:
    """Return how far a student's embedding is from its teacher's.

    ``1 - <f / |f|, g / |g|>`` for "cosine", which leaves the student its own scale, or the mean of
    ``(f - g)^2`` over the D features for "mse".

    Args:
        features: ``(B, D)`` of the student, after a projection if its width was another.
        teacher_features: ``(B, D)``.
        distance: "cosine" or "mse".
        reduction: "mean" over the batch, "sum" or "none".

    Returns:
        Scalar, or ``(B,)`` with reduction "none"; float64 for float64 features, else float32.

    Raises:
        ValueError: If a shape or an option does not fit.

    Example:
        >>> f, g = torch.tensor([[3.0, 4.0]]), torch.tensor([[4.0, 3.0]])
        >>> feature_loss(f, g), feature_loss(f, g, distance="mse")
        (tensor(0.0400), tensor(1.))

    References:
        Romero et al., "FitNets", ICLR 2015, https://arxiv.org/abs/1412.6550, equation 3, whose
        regressor from the student's width to the teacher's is the projection above and whose sum
        over the features is a mean here, so that one weight serves every width.
    """
    check_choice("distance", distance, ("cosine", "mse"))
    _check("teacher_features", features, teacher_features, reduction)
    features, teacher_features = at_least_float32(features), at_least_float32(teacher_features)
    if distance == "mse":
        return _reduce((features - teacher_features).square().mean(1), reduction)
    return _reduce(1 - (unit_vectors(features) * unit_vectors(teacher_features)).sum(1), reduction)


def _kl(of: Tensor, to: Tensor) -> Tensor:
    """Return KL(of || to) ``(B,)`` of log-probabilities ``(B, K)``."""
    return (of.exp() * (of - to)).sum(1)


def _reduce(rows: Tensor, reduction: Reduction) -> Tensor:
    if reduction == "none":
        return rows
    return rows.sum() if reduction == "sum" else mean_of_rows(rows)


def _check(name: str, first: Tensor, second: Tensor, reduction: str) -> None:
    check_choice("reduction", reduction, ("mean", "sum", "none"))
    if first.ndim != 2 or first.shape != second.shape:
        raise ValueError(
            f"`{name}` must be two-dimensional and of the first argument's shape "
            f"{tuple(first.shape)}, got {tuple(second.shape)}"
        )
