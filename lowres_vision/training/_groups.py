"""Learning rates that differ from parameter to parameter."""

from collections.abc import Mapping
from fnmatch import fnmatchcase
from types import SimpleNamespace
from typing import Any

from timm.models import group_parameters
from torch import nn

from lowres_vision._checks import check_range


def parameter_groups(
    model: nn.Module,
    *,
    layer_decay: float = 1.0,
    rates: Mapping[str, float] | None = None,
    weight_decay: float = 0.05,
) -> list[dict[str, Any]]:
    """Group a model's trainable parameters by learning rate and weight decay.

    For the ``groups`` of a :class:`Classifier`, e.g. ``partial(parameter_groups,
    layer_decay=0.75)``. Each group's ``lr_scale`` multiplies the optimiser's learning rate.

    With ``layer_decay`` d, a layer of the backbone that n layers follow gets ``d^n``, so that early
    layers, which fit most images, move least. The layers are counted as timm counts them, the
    classifier being the last. What is not the backbone's (resizer, pooling, neck, head) gets 1.
    Vectors (biases, norms, the power of GeM) and what the backbone itself exempts (position
    embeddings, class tokens) have no weight decay.

    Args:
        model: A :class:`~lowres_vision.models.LowResClassifier`; for ``layer_decay`` 1, any Module.
        layer_decay: In (0, 1]; 1 is no decay.
        rates: Further factors >= 0 by name of parameter or Module, or pattern of either, e.g.
            ``{"head": 10, "pool.p": 10}``; where several match, the last counts.
        weight_decay: Of matrices and convolutions, >= 0. It takes the place of the optimiser's.

    Returns:
        Groups with ``params``, ``lr_scale`` and ``weight_decay``; every trainable parameter is in
        one of them.

    Raises:
        ValueError: If an argument is out of range, a name in ``rates`` matches nothing, or timm
            cannot count the layers.

    Example:
        >>> from lowres_vision.models import LowResClassifier
        >>> model = LowResClassifier("test_vit", num_classes=3)
        >>> groups = parameter_groups(model, layer_decay=0.5, rates={"head": 10})
        >>> sorted({group["lr_scale"] for group in groups})
        [0.0078125, 0.015625, 0.03125, 0.0625, 0.125, 0.25, 0.5, 10.0]

    References:
        Clark et al., "ELECTRA", ICLR 2020, https://arxiv.org/abs/2003.10555, and Bao et al.,
        "BEiT", ICLR 2022, https://arxiv.org/abs/2106.08254, fine-tune with it. The scales are those
        of ``timm.optim.param_groups_layer_decay`` for the same model with timm's own classifier.
    """
    check_range("layer_decay", layer_decay, 0.0, 1.0, open_low=True)
    check_range("weight_decay", weight_decay, 0.0)
    scales = {} if layer_decay == 1 else _layer_scales(model, layer_decay)
    rates = rates or {}
    unused = set(rates)
    exempt = {f"backbone.{name}" for name in _exempt(getattr(model, "backbone", None))}
    groups: dict[tuple[float, float], dict[str, Any]] = {}
    for name, parameter in model.named_parameters():
        factor = 1.0
        for pattern, rate in rates.items():
            check_range(f"rates[{pattern!r}]", rate, 0.0)
            if fnmatchcase(name, pattern) or fnmatchcase(name, f"{pattern}.*"):
                unused.discard(pattern)
                factor = rate
        if not parameter.requires_grad:
            continue
        scale = factor * scales.get(id(parameter), 1.0)
        decay = weight_decay if parameter.ndim > 1 and name not in exempt else 0.0
        group = groups.setdefault(
            (scale, decay), {"params": [], "lr_scale": scale, "weight_decay": decay}
        )
        group["params"].append(parameter)
    if unused:
        raise ValueError(f"`rates` has {min(unused)!r}, which matches no parameter")
    return list(groups.values())


def _exempt(backbone: Any) -> set[str]:
    return set(backbone.no_weight_decay()) if hasattr(backbone, "no_weight_decay") else set()


def _layer_scales(model: nn.Module, layer_decay: float) -> dict[int, float]:
    """Return the factor of each parameter of the backbone, by its id."""
    backbone: Any = getattr(model, "backbone", None)
    if not hasattr(backbone, "group_matcher"):
        raise ValueError(
            f"`layer_decay` < 1 needs a `backbone` whose layers timm can count, "
            f"{type(model).__name__} has none; give `rates` by name"
        )
    parameters = dict(backbone.named_parameters())
    classifier = backbone.pretrained_cfg.get("classifier", "head")
    head = classifier if isinstance(classifier, str) else classifier[0]
    # The classifier stands outside of the backbone, but has its place in the count.
    named: Any = SimpleNamespace(
        named_parameters=lambda: [*parameters.items(), (f"{head}.weight", None)]
    )
    layers = group_parameters(named, backbone.group_matcher(coarse=False), reverse=True)
    top = max(layers.values())
    return {id(p): layer_decay ** (top - layers[name]) for name, p in parameters.items()}
