import copy
import pickle
import warnings
from pathlib import Path

import pytest
import safetensors.torch
import timm
import torch
from torch import nn

from lowres_vision.models import LowResClassifier, freeze_except
from lowres_vision.resizer import LearnableResizer, Resize

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


def test_images_as_decoded_are_refused_unless_a_resize_takes_them() -> None:
    images = torch.randint(0, 256, (2, 3, 16, 16), dtype=torch.uint8)
    with pytest.raises(TypeError, match=r"got torch.uint8; send them through a BatchTransform"):
        LowResClassifier("test_resnet", 3)(images)
    resize = Resize(32, mean=(0.5,) * 3, std=(0.5,) * 3)
    assert LowResClassifier("test_resnet", 3, resizer=resize)(images).shape == (2, 3)


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


@pytest.mark.parametrize("name", ["pvt_v2_b0", "xcit_nano_12_p8_224", "efficientvit_m0"])
def test_overlapping_patches_that_read_every_pixel_are_no_grid(name: str) -> None:
    size = {"pvt_v2_b0": 66}.get(name, 64)
    model = LowResClassifier(name, 2, image_size=size).eval()
    images = torch.randn(2, 3, size, size, requires_grad=True)
    model(images)[:, 0].sum().backward()
    assert images.grad is not None
    assert images.grad.ne(0).any(0).any(0).all()


def test_a_stem_of_whole_patches_is_a_grid() -> None:
    with pytest.raises(ValueError, match=r"\(50, 50\) leaves 7\.8% .* \(48, 48\); .* of 4$"):
        LowResClassifier("test_convnext", 2, image_size=50)
    assert LowResClassifier("test_convnext", 2, image_size=48).image_size == (48, 48)


def test_features_of_several_tensors_are_refused_by_pool() -> None:
    model = LowResClassifier("efficientvim_m1", 2, image_size=64, pool="gem")
    with pytest.raises(ValueError, match="EfficientViM gives features of several tensors, which"):
        model(torch.randn(2, 3, 64, 64))


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
        with pytest.raises(OSError, match=r"weights of 'vgg11.*give their file, ") as error:
            LowResClassifier("vgg11.tv_in1k", 3, pretrained=True)
    assert "model.safetensors of https://huggingface.co/timm/vgg11.tv_in1k" in str(error.value)
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


class TestFreezeExcept:
    @staticmethod
    def model() -> nn.Module:
        return LowResClassifier("test_resnet", 3, pool="gem", neck="embedding")

    @staticmethod
    def trainable(model: nn.Module) -> list[str]:
        return [name for name, p in model.named_parameters() if p.requires_grad]

    def test_by_count_the_last_tensors_train(self) -> None:
        model = self.model()
        every = [name for name, _ in model.named_parameters()]
        for last in (9, 1, len(every)):
            assert freeze_except(model, last=last) == every[-last:] == self.trainable(model)

    def test_by_name_of_parameter_module_or_pattern(self) -> None:
        model = self.model()
        assert freeze_except(model, "head") == ["head.weight", "head.bias"]
        assert freeze_except(model, ["pool.p", "neck.norm"]) == [
            "pool.p", "neck.norm.weight", "neck.norm.bias",
        ]  # fmt: skip
        found = freeze_except(model, ["backbone.layer[34].0.bn?"])
        assert found == self.trainable(model)
        assert len(found) == 10  # a bottleneck's three norms and a basic block's two
        # A name is not the beginning of a name.
        freeze_except(model, ["backbone.layer4"])
        assert not any("layer40" in name for name in self.trainable(model))

    def test_frozen_statistics_stay_and_others_move(self) -> None:
        model = self.model()
        freeze_except(model, ["backbone.layer4", "neck", "head"])
        model.train()
        before = copy.deepcopy(model.state_dict())
        model(torch.randn(4, 3, 32, 32)).sum().backward()
        for name, value in model.state_dict().items():
            if name.endswith("running_mean"):
                frozen = not name.startswith(("backbone.layer4", "neck"))
                assert torch.equal(value, before[name]) == frozen, name
        for name, parameter in model.named_parameters():
            assert (parameter.grad is None) == (name not in self.trainable(model)), name

    def test_a_later_call_decides_anew(self) -> None:
        model = self.model()
        freeze_except(model, "head")
        freeze_except(model, "backbone")
        assert all(name.startswith("backbone.") for name in self.trainable(model))
        norms = {n: m for n, m in model.named_modules() if hasattr(m, "running_mean")}
        assert {n for n, m in norms.items() if not m.training} == {"neck.norm"}
        freeze_except(model, "*")
        assert all(module.training for module in model.modules())

    def test_a_thawed_layer_takes_the_models_mode(self) -> None:
        model = self.model()
        freeze_except(model, "head")
        model.eval()
        freeze_except(model, "*")
        assert not any(module.training for module in model.modules())

    def test_a_norm_without_weights_goes_by_its_parent(self) -> None:
        def block() -> nn.Module:
            return nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2, affine=False))

        model = nn.Sequential(block(), block()).train()
        freeze_except(model, "1")
        assert [block[1].training for block in model] == [False, True]
        assert [block[1].training for block in model.train()] == [False, True]

    @pytest.mark.parametrize("again", [copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m))])
    def test_copies_are_frozen_by_themselves(self, again) -> None:
        model = self.model()
        freeze_except(model, "head")
        copied = again(model)
        freeze_except(model, "*")
        copied.train()
        norms = [m for m in copied.modules() if hasattr(m, "running_mean")]
        assert not any(norm.training for norm in norms)
        assert all(norm.train().training is False for norm in norms)
        assert all(module.training for module in model.modules())

    def test_states_fit_whatever_is_frozen(self) -> None:
        frozen, free = self.model(), self.model()
        freeze_except(frozen, "head")
        free.load_state_dict(frozen.state_dict())
        frozen.load_state_dict(free.state_dict())

    def test_refusals(self) -> None:
        model = self.model()
        before = self.trainable(model)
        for arguments in ({}, {"names": "head", "last": 2}):
            with pytest.raises(ValueError, match="give `names` or `last`, one of them"):
                freeze_except(model, **arguments)
        with pytest.raises(ValueError, match=r"'haed', which matches no .* \(near ones: head"):
            freeze_except(model, ["neck", "haed"])
        with pytest.raises(ValueError, match="`names` must hold at least one name"):
            freeze_except(model, [])
        with pytest.raises(ValueError, match=r"`last` must be >= 1 and <= \d+, got 0"):
            freeze_except(model, last=0)
        assert self.trainable(model) == before


def test_embedding_then_classifying_is_the_forward_pass() -> None:
    model = LowResClassifier("test_resnet", 3, neck="embedding", drop=0.5).eval()
    images = torch.randn(2, 3, 32, 32)
    assert torch.equal(model.classify(model.embed(images)), model(images))


def test_another_image_size_keeps_the_weights() -> None:
    model = LowResClassifier("test_vit", 3, image_size=32).eval()
    before = copy.deepcopy(model.state_dict())
    model.set_image_size(32)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    with pytest.raises(ValueError, match=r"\(24, 24\) leaves 55\.6% of the pixels unread"):
        model.set_image_size(24)
    assert model.image_size == (32, 32)
