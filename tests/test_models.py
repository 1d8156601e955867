import warnings
from pathlib import Path

import pytest
import safetensors.torch
import timm
import torch
from torch import nn

from lowres_vision.models import LowResClassifier
from lowres_vision.resizer import LearnableResizer

LAYOUTS = {  # one of each feature layout, small
    "nchw": ("test_resnet", 64, {}),
    "nhwc": ("swin_tiny_patch4_window7_224", 64, {"embed_dim": 24, "depths": (1, 1, 1, 1)}),
    "tokens": ("test_vit", 64, {}),
    "beit": (
        "beit_base_patch16_224",
        32,
        {"patch_size": 8, "embed_dim": 32, "depth": 2, "num_heads": 2},
    ),
}


@pytest.mark.parametrize("pool", [None, "gem"])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_layout_gives_logits_and_gradients(layout: str, pool: str | None) -> None:
    name, size, timm_args = LAYOUTS[layout]
    model = LowResClassifier(name, 5, image_size=size, pool=pool, **timm_args)
    logits = model(torch.randn(2, 3, size, size))
    assert logits.shape == (2, 5)
    logits.sum().backward()
    without = [name for name, p in model.named_parameters() if p.requires_grad and p.grad is None]
    assert all("fc_norm" in name or "norm" in name for name in without), without


@pytest.mark.parametrize("layout", LAYOUTS)
def test_gem_pools_the_map_it_should(layout: str) -> None:
    """With p = 1 GeM is the mean over positions, whichever way the backbone lays them out."""
    name, size, timm_args = LAYOUTS[layout]
    seen = []

    class Mean(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            seen.append(x)
            return x.mean(dim=(2, 3))

    model = LowResClassifier(name, 5, image_size=size, pool=Mean(), **timm_args).eval()
    images = torch.randn(2, 3, size, size)
    with torch.no_grad():
        embedding = model.embed(images)
        features = model.backbone.forward_features(images)
    prefix = model.backbone.num_prefix_tokens if features.ndim == 3 else 0
    channels_first = {"nchw": lambda f: f, "nhwc": lambda f: f.permute(0, 3, 1, 2)}.get(
        layout, lambda f: f[:, prefix:].transpose(1, 2)
    )
    expected = channels_first(features).flatten(2).mean(dim=2)
    torch.testing.assert_close(embedding, expected)
    assert seen[0].shape[1] == model.backbone.num_features


def test_own_pooling_is_timms() -> None:
    torch.manual_seed(0)
    model = LowResClassifier("test_resnet", 5, image_size=64).eval()
    reference = timm.create_model("test_resnet", num_classes=5).eval()
    reference.load_state_dict(
        {**model.backbone.state_dict(), "fc.weight": model.head.weight, "fc.bias": model.head.bias}
    )
    images = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        torch.testing.assert_close(model(images), reference(images))


def test_resizer_neck_and_cosine_head_join() -> None:
    resizer = LearnableResizer((32, 32), zero_init=True)
    model = LowResClassifier(
        "test_vit", 4, image_size=32, resizer=resizer, neck="embedding", head="cosine", drop=0.1
    )
    cosines = model(torch.randn(3, 3, 16, 16))
    assert cosines.shape == (3, 4)
    assert cosines.abs().max() <= 1
    assert model.outputs == "cosines"
    assert model.embed(torch.randn(3, 3, 16, 16)).shape == (3, 512)


def test_normalisation_is_the_weights_own() -> None:
    beit = LowResClassifier("beit_base_patch16_224", 2, image_size=32, **LAYOUTS["beit"][2])
    assert beit.mean == beit.std == (0.5, 0.5, 0.5)
    resnet = LowResClassifier("resnet10t", 2)
    assert resnet.mean == (0.485, 0.456, 0.406)
    assert resnet.image_size == (176, 176)


def test_a_patch_grid_that_leaves_pixels_unread_is_refused() -> None:
    with pytest.raises(ValueError, match=r"\(64, 64\) leaves 23.4% of the pixels unread"):
        LowResClassifier("vit_small_patch14_dinov2", 2, image_size=64, depth=1, embed_dim=24)
    padded = LowResClassifier(
        "vit_small_patch14_dinov2", 2, image_size=70, depth=1, dynamic_img_pad=True,
        dynamic_img_size=True,
    )  # fmt: skip
    assert padded(torch.randn(1, 3, 64, 64)).shape == (1, 2)


def test_a_checkpoint_loads_strictly(tmp_path: Path) -> None:
    source = timm.create_model("test_resnet", num_classes=7)
    path = tmp_path / "weights.safetensors"
    safetensors.torch.save_file(source.state_dict(), path)
    model = LowResClassifier("test_resnet", 3, checkpoint_path=path)
    for name, value in model.backbone.state_dict().items():
        assert torch.equal(value, source.state_dict()[name])

    torch.save(source.state_dict(), tmp_path / "weights.pth")
    again = LowResClassifier("test_resnet", 3, checkpoint_path=tmp_path / "weights.pth")
    assert torch.equal(again.backbone.conv1[0].weight, source.conv1[0].weight)


def test_a_checkpoint_that_does_not_fit_is_refused(tmp_path: Path) -> None:
    state = timm.create_model("test_resnet", num_classes=7).state_dict()
    path = tmp_path / "weights.safetensors"
    safetensors.torch.save_file({k: v for k, v in state.items() if "layer2.0" not in k}, path)
    with pytest.raises(
        ValueError, match=r"weights\.safetensors does not fit 'test_resnet'.*layer2"
    ):
        LowResClassifier("test_resnet", 3, checkpoint_path=path)
    with pytest.raises(FileNotFoundError, match=r"`checkpoint_path` .*nowhere\.pth is not a file"):
        LowResClassifier("test_resnet", 3, checkpoint_path=tmp_path / "nowhere.pth")
    with pytest.raises(ValueError, match="not both"):
        LowResClassifier("test_resnet", 3, checkpoint_path=path, pretrained=True)


def test_weights_that_cannot_be_fetched_are_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with pytest.raises(OSError, match=r"weights of 'vgg11.*give their file with") as error:
            LowResClassifier("vgg11.tv_in1k", 3, pretrained=True)
    assert "\n" not in str(error.value)


def test_refusals() -> None:
    with pytest.raises(ValueError, match=r"timm model, got 'resnet1' \(near ones: resnet"):
        LowResClassifier("resnet1", 2)
    with pytest.raises(ValueError, match=r"timm model, got 'beit_base_patch16_224\.nope'"):
        LowResClassifier("beit_base_patch16_224.nope", 2)
    with pytest.raises(ValueError, match="`num_classes` must be >= 2, got 1"):
        LowResClassifier("test_resnet", 1)
    with pytest.raises(ValueError, match="`pool` must be one of 'gem', got 'max'"):
        LowResClassifier("test_resnet", 2, pool="max")
    model = LowResClassifier("test_resnet", 2, pool="gem")
    model.backbone.forward_features = lambda images: images.flatten(2)
    with pytest.raises(ValueError, match=r"features of shape \(1, 3, 4096\), which `pool` cannot"):
        model(torch.randn(1, 3, 64, 64))


@pytest.mark.parametrize(
    ("name", "classes", "accuracy"),
    [("mobilenetv2_100.in1k_tf2ptq", 1000, 0.9), ("mobilenetv2_100.inat_birds965", 965, None)],
)
def test_real_weights_load(
    name: str, classes: int, accuracy: float | None, shared_data: Path
) -> None:
    path = shared_data / "weights" / f"{name}.safetensors"
    state = safetensors.torch.load_file(path)
    model = LowResClassifier("mobilenetv2_100", 25, checkpoint_path=path, pad_type="same")
    assert state["classifier.weight"].shape[0] == classes
    for key, value in model.backbone.state_dict().items():
        assert torch.equal(value, state[key]), key
