"""What a predictor is made of, and what one made anew has to have in common with it."""

from typing import Any

import torch
from torch import Tensor, nn

from lowres_vision._modes import evaluation_mode
from lowres_vision.augment import BatchTransform
from lowres_vision.ensemble import VotingEnsemble
from lowres_vision.export._parts import describe
from lowres_vision.models import LowResClassifier
from lowres_vision.resizer import Resize

_HEIGHT, _WIDTH = 48, 40  # of the images that are asked about; any size would do


def record_of(predictor: Any) -> dict[str, Any]:
    """Return what a ``Predictor`` is made of, as JSON.

    Raises:
        ValueError: If a part of it cannot be described.
    """
    members = []
    vote = predictor.vote
    for index, (model, probabilities) in enumerate(
        zip(vote.models, vote.probabilities, strict=True)
    ):
        loss = getattr(probabilities, "__self__", probabilities)
        members.append(
            {
                "model": describe(model, where=f"member {index}"),
                "loss": describe(loss, where=f"the loss of member {index}"),
            }
        )
    return {
        "classes": list(predictor.classes),
        "members": members,
        "vote": vote.vote,
        "weights": vote.weights,
        "calibration": describe(predictor.calibration, where="`calibration`"),
        "notes": dict(predictor.notes),
    }


def tensors_of(module: nn.Module) -> dict[str, Tensor]:
    """Return the state as contiguous tensors on the CPU, tied ones once per name."""
    return {
        name: value.detach().cpu().clone(memory_format=torch.contiguous_format)
        for name, value in module.state_dict().items()
    }


def fill(module: nn.Module, tensors: dict[str, Tensor]) -> None:
    """Load all tensors, each in its own dtype and in the module's memory format.

    Raises:
        RuntimeError: If names or shapes are not those of the module.
    """
    for name, value in module.state_dict(keep_vars=True).items():
        if name in tensors:
            value.data = value.data.to(tensors[name].dtype)
    module.load_state_dict(tensors)


@torch.no_grad()
def answers(vote: VotingEnsemble) -> Tensor:
    """Return each member's outputs ``(M, 2, K)`` for two made-up images, float32.

    Outputs, not probabilities: those of a model that is sure of itself are 0 and 1, whatever
    changes.
    """
    images = _images(vote)
    with evaluation_mode(vote):
        return torch.stack([model(images).float() for model in vote.models])


def agree(given: Tensor, found: Tensor, *, tolerance: float) -> bool:
    """Whether no answer differs by more than ``tolerance`` times the largest, or 1 if more.

    A NaN agrees with nothing.
    """
    if given.shape != found.shape:
        return False
    scale = given.abs().max().clamp(min=1)
    return bool(((given - found).abs() <= tolerance * scale).all())


def any_half(module: nn.Module) -> bool:
    """Whether some weights have a half type."""
    return any(weight.dtype in (torch.float16, torch.bfloat16) for weight in module.parameters())


def _images(vote: VotingEnsemble) -> Tensor:
    """Return a batch of what the members take, uint8 where each begins with a resize."""
    models = [part for part in vote.modules() if isinstance(part, LowResClassifier)]
    channels = int(models[0].timm_args.get("in_chans", 3))
    decoded = all(
        isinstance(member, nn.Sequential) and isinstance(member[0], BatchTransform | Resize)
        for member in vote.models
    )
    height, width = (_HEIGHT, _WIDTH) if decoded else models[0].image_size
    # Multiplication modulo a prime: the same noise everywhere, for ever.
    count = torch.arange(1, 2 * channels * height * width + 1)
    noise = (count * 48271 % 2147483647 >> 8).to(torch.uint8).view(2, channels, height, width)
    weight = next(vote.parameters())
    noise = noise.to(weight.device)
    return noise if decoded else (noise / 127.5 - 1).to(weight.dtype)
