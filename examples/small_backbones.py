"""Two small backbones that timm has not got under a name: imported, they are names like any other.

    import small_backbones  # noqa: F401, and --backbone mobilenetv1_025 works

`mobilenetv1_025` (0.2 M parameters, 128 px) and `squeezenet1_0` (0.7 M parameters, 224 px) train on
two processor cores in seconds an epoch. They stand in for the sources' large backbones where this
documentation quotes figures on small real sets. It is also how to bring a model of your own:
`timm.models.register_model` makes it a name that every part of this library takes.
"""

from typing import Any

from timm.models import build_model_with_cfg, generate_default_cfgs, register_model
from timm.models.efficientnet import _gen_mobilenet_v1
from torch import Tensor, nn
from torchvision.models import SqueezeNet

default_cfgs = generate_default_cfgs(
    {
        "mobilenetv1_025.untrained": {
            "input_size": (3, 128, 128),
            "mean": (0.5, 0.5, 0.5),
            "std": (0.5, 0.5, 0.5),
            "first_conv": "conv_stem",
            "classifier": "classifier",
        },
        "squeezenet1_0.untrained": {
            "input_size": (3, 224, 224),
            "mean": (0.485, 0.456, 0.406),
            "std": (0.229, 0.224, 0.225),
            "first_conv": "features.0",
            "classifier": "classifier.1",
        },
    }
)


class _SqueezeNet(SqueezeNet):
    """torchvision's SqueezeNet with the methods of a timm model."""

    num_features = head_hidden_size = 512

    def __init__(self, num_classes: int = 1000, in_chans: int = 3, **kwargs: Any) -> None:
        if in_chans != 3:
            raise ValueError(f"squeezenet1_0 reads 3 channels, got in_chans={in_chans}")
        super().__init__("1_0", max(1, num_classes), **kwargs)
        self.reset_classifier(num_classes)

    def reset_classifier(self, num_classes: int) -> None:
        self.num_classes = num_classes
        if num_classes == 0:
            self.classifier = nn.Sequential(nn.AdaptiveAvgPool2d(1))

    def forward_features(self, x: Tensor) -> Tensor:
        return self.features(x)

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        return x.mean((2, 3)) if pre_logits else self.classifier(x).flatten(1)

    def forward(self, x: Tensor) -> Tensor:
        return self.forward_head(self.forward_features(x))


@register_model
def mobilenetv1_025(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """MobileNetV1 at a quarter of its width."""
    return _gen_mobilenet_v1("mobilenetv1_025", 0.25, pretrained=pretrained, **kwargs)


@register_model
def squeezenet1_0(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """SqueezeNet 1.0 of torchvision."""
    for name in ("pretrained_cfg", "pretrained_cfg_overlay"):
        kwargs.setdefault(name, None)
    return build_model_with_cfg(_SqueezeNet, "squeezenet1_0", pretrained, **kwargs)
