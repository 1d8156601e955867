from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import torchvision
from safetensors.torch import load_file, save_file
from torch import nn

from lowres_vision.augment import (
    StylePair,
    StyleTransfer,
    content_loss,
    draw_style_pairs,
    gram_matrix,
    style_loss,
    total_variation,
)
from lowres_vision.augment._features import Features, vgg19_layers
from lowres_vision.augment._style_pairs import add_rows
from lowres_vision.data import DataError, Manifest, MultiResolutionDataset, decode_image


def network(seed: int = 0) -> nn.Sequential:
    """Two convolutions with in-place activations and a pooling between them."""
    torch.manual_seed(seed)
    return nn.Sequential(
        nn.Conv2d(3, 6, 3, padding=1),
        nn.ReLU(inplace=True),
        nn.MaxPool2d(2),
        nn.Conv2d(6, 8, 3, padding=1),
        nn.ReLU(inplace=True),
        nn.Conv2d(8, 4, 3),
    )


def transfer(**arguments: object) -> StyleTransfer:
    settings: dict[str, object] = {"content_layers": ["4"], "style_layers": ["1", "4"], "steps": 15}
    return StyleTransfer(network(), **(settings | arguments))  # type: ignore[arg-type]


def images(count: int, height: int = 24, width: int = 20, seed: int = 0) -> torch.Tensor:
    coarse = torch.rand(count, 3, 5, 5, generator=torch.Generator().manual_seed(seed))
    fine = nn.functional.interpolate(coarse, (height, width), mode="bicubic")
    return (fine.clamp(0, 1) * 255).to(torch.uint8)


def maps(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_gram_and_losses_are_the_papers_in_loops() -> None:
    x, y = maps(2, 3, 4, 5).numpy(), maps(2, 3, 4, 5, seed=1).numpy()
    for b in range(2):
        gram, other = np.zeros((3, 3)), np.zeros((3, 3))
        for i in range(3):
            for j in range(3):
                for r in range(4):
                    for c in range(5):
                        gram[i, j] += x[b, i, r, c] * x[b, j, r, c] / 20
                        other[i, j] += y[b, i, r, c] * y[b, j, r, c] / 20
        first, second = torch.from_numpy(x), torch.from_numpy(y)
        np.testing.assert_allclose(gram_matrix(first)[b].numpy(), gram, rtol=1e-13)
        # The paper's E_l and L_content, each over its value for a target against nothing.
        paper_style = ((gram - other) ** 2).sum() / (4 * 9), (other**2).sum() / (4 * 9)
        got = style_loss(gram_matrix(first), gram_matrix(second))[b]
        assert float(got) == pytest.approx(paper_style[0] / paper_style[1], rel=1e-13)
        paper_content = ((x[b] - y[b]) ** 2).sum() / 2, (y[b] ** 2).sum() / 2
        got = content_loss(first, second)[b]
        assert float(got) == pytest.approx(paper_content[0] / paper_content[1], rel=1e-13)


def test_limits_of_the_losses() -> None:
    x = maps(2, 3, 4, 4)
    assert content_loss(x, x).tolist() == [0, 0]
    assert style_loss(gram_matrix(x), gram_matrix(x)).tolist() == [0, 0]
    shuffled = x.flatten(2)[..., torch.randperm(16)].reshape(x.shape)
    torch.testing.assert_close(gram_matrix(shuffled), gram_matrix(x))  # a Gram knows no place
    assert total_variation(torch.ones(2, 3, 4, 4)).tolist() == [0, 0]
    assert total_variation(torch.ones(1, 3, 1, 1)).tolist() == [0]
    ramp = torch.arange(5.0).expand(1, 3, 4, 5)
    assert total_variation(ramp).tolist() == [1]


def test_gradients_of_the_losses() -> None:
    x, y = maps(1, 2, 3, 3).requires_grad_(), maps(1, 2, 3, 3, seed=1)
    assert torch.autograd.gradcheck(lambda z: content_loss(z, y), (x,))
    assert torch.autograd.gradcheck(lambda z: style_loss(gram_matrix(z), gram_matrix(y)), (x,))
    assert torch.autograd.gradcheck(total_variation, (x,))


def test_objective_is_the_weighted_sum_over_the_layers_named() -> None:
    made = transfer(content_weight=2.0, style_weight=3.0, tv_weight=0.5, average_pooling=False)
    made = made.double()
    content, style, image = (
        maps(2, 3, 12, 10),
        maps(1, 3, 16, 8, seed=1),
        maps(2, 3, 12, 10, seed=2),
    )

    plain = network().double()
    for layer in plain:
        if isinstance(layer, nn.ReLU):
            layer.inplace = False
    first, second = plain[:2], plain[:5]
    expected = 2.0 * content_loss(second(image), second(content)) + 0.5 * total_variation(image)
    for part in (first, second):
        expected = expected + 1.5 * style_loss(gram_matrix(part(image)), gram_matrix(part(style)))
    torch.testing.assert_close(made.losses(image, content, style), expected)


def test_features_stop_early_see_no_in_place_writes_and_leave_the_network_alone() -> None:
    source = network().train()
    last = source[5]
    calls: list[object] = []
    features = Features(source, ["0", "1"])
    features.network[5].register_forward_hook(lambda *_: calls.append(1))  # type: ignore[index]
    x = torch.randn(1, 3, 8, 8)
    found = features(x)
    assert not calls
    assert bool((found["0"] < 0).any())
    torch.testing.assert_close(found["1"], found["0"].relu())
    assert source.training
    assert last.weight.requires_grad
    assert source[1].inplace
    average = Features(source, ["2"], average_pooling=True)(x)["2"]
    torch.testing.assert_close(average, nn.functional.avg_pool2d(found["1"], 2))


@pytest.mark.parametrize("optimizer", ["lbfgs", "adam"])
def test_style_moves_towards_the_style_image(optimizer: str) -> None:
    made = transfer(optimizer=optimizer, steps=30)
    content, style = images(2), images(1, 30, 16, seed=5)
    losses: list[float] = []
    got = made(content, style, callback=lambda number, loss: losses.append(loss))
    assert got.shape == content.shape
    assert got.dtype == torch.uint8
    grams = [gram_matrix(made.features(made._normalised(x))["1"]) for x in (content, got, style)]
    assert bool((style_loss(grams[1], grams[2]) < 0.5 * style_loss(grams[0], grams[2])).all())
    assert losses[-1] < losses[0]


def test_only_content_gives_the_content_back() -> None:
    content = images(1)
    got = transfer(style_weight=0.0)(content, images(1, seed=5))
    assert int((got.int() - content.int()).abs().max()) <= 1


@pytest.mark.parametrize("optimizer", ["lbfgs", "adam"])
def test_a_result_does_not_depend_on_its_batch_and_repeats(optimizer: str) -> None:
    made = transfer(optimizer=optimizer, steps=5)
    content, style = images(3), images(3, seed=5)
    together = made(content, style)
    torch.manual_seed(99)
    alone = made(content[1:2], style[1:2])
    # Convolutions of a batch may sum in another order; five steps leave that below a level.
    assert int((together[1].int() - alone[0].int()).abs().max()) <= 1
    assert torch.equal(made(content, style), together)


def test_large_images_shrink_to_max_side() -> None:
    assert transfer(max_side=16, steps=1)(images(1, 32, 24), images(1)).shape == (1, 3, 16, 12)


def test_vgg19_layers_are_torchvisions() -> None:
    features = torchvision.models.vgg19(init_weights=False).features
    names = vgg19_layers()
    assert list(names)[:3] == ["conv1_1", "conv1_2", "conv2_1"]
    assert list(names)[-1] == "conv5_4"
    channels = {"1": 64, "2": 128, "3": 256, "4": 512, "5": 512}
    for name, path in names.items():
        index = int(path.removeprefix("features."))
        assert isinstance(features[index], nn.ReLU)
        assert features[index - 1].out_channels == channels[name[4]]
    pools = [index for index, layer in enumerate(features) if isinstance(layer, nn.MaxPool2d)]
    for block, pool in enumerate(pools, start=1):
        last = max(name for name in names if name.startswith(f"conv{block}"))
        assert names[last] == f"features.{pool - 1}"


@pytest.mark.parametrize("suffix", [".safetensors", ".pth"])
def test_vgg19_is_read_from_a_file(tmp_path: Path, suffix: str) -> None:
    vgg = torchvision.models.vgg19(init_weights=False)
    state = {f"features.{name}": value for name, value in vgg.features.state_dict().items()}
    file = tmp_path / f"vgg{suffix}"
    (save_file if suffix == ".safetensors" else torch.save)(state, file)  # type: ignore[operator]
    made = StyleTransfer(checkpoint_path=file, average_pooling=False, steps=1)
    assert made.content_layers == ("features.22",)
    assert made.style_layers[-1] == "features.29"
    x = torch.rand(1, 3, 16, 16)
    vgg.eval()
    torch.testing.assert_close(made.features(x)["features.29"], vgg.features[:29](x).relu())
    with pytest.raises(ValueError, match=r"of \(8, 8\) .* too small for the network"):
        made(images(1, 8, 8), images(1))


def test_refusals(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"has no layer 'relu'; its layers are '0', '1'"):
        transfer(style_layers=["relu"])
    with pytest.raises(ValueError, match="VGG-19 has no layer 'conv9_1'; its layers are conv1_1"):
        StyleTransfer(content_layers=["conv9_1"])
    with pytest.raises(ValueError, match="needs `content_layers` and `style_layers`"):
        StyleTransfer(network())
    with pytest.raises(FileNotFoundError, match="is not a file"):
        StyleTransfer(checkpoint_path=tmp_path / "none.pth")
    save_file({"features.0.weight": torch.zeros(2)}, tmp_path / "other.safetensors")
    with pytest.raises(ValueError, match="does not fit VGG-19"):
        StyleTransfer(checkpoint_path=tmp_path / "other.safetensors")
    made = transfer()
    with pytest.raises(TypeError, match="`content` must be uint8"):
        made(images(1) / 255, images(1))
    with pytest.raises(ValueError, match="got 2 for 3"):
        made(images(3), images(2))
    with pytest.raises(ValueError, match=r"`style` must be \(B, 3, H, W\), not empty"):
        made(images(3), images(3)[0])
    with pytest.raises(FloatingPointError, match="lower `style_weight`"):
        transfer(style_weight=1e38, optimizer="adam", lr=1e30)(images(1), images(1, seed=5))


@pytest.fixture(scope="module")
def singles(toy: Path, tmp_path_factory: pytest.TempPathFactory) -> Manifest:
    """The toy's low images without their high ones, one class thinned to four."""
    lines = (toy / "train.csv").read_text().splitlines()
    rows = [line.split(",") for line in lines]
    kept, rare = ["img_path,label,number"], 0
    for low, _, label in rows[1:]:
        rare += label == "Amber Finch"
        if label != "Amber Finch" or rare <= 4:
            kept.append(f"{low},{label},{len(kept)}")
    file = tmp_path_factory.mktemp("singles") / "single.csv"
    file.write_text("\n".join(kept))
    return Manifest.read_csv(file, root=toy)


def test_top_up_adds_labelled_rows_after_the_old_ones(singles: Manifest, tmp_path: Path) -> None:
    manifest = singles
    assert manifest.class_counts()["Amber Finch"] == 4
    made = transfer(steps=2).top_up(manifest, tmp_path, to=7)
    assert made.class_counts() == manifest.class_counts() | {"Amber Finch": 7}
    assert made.low[: len(manifest)] == manifest.low
    assert len(set(made.ids)) == len(made) == len(manifest) + 3
    assert all(name.startswith("styled-") for name in made.ids[-3:])
    dataset = MultiResolutionDataset(made)
    label = manifest.classes.index("Amber Finch")
    pairs = draw_style_pairs(manifest.labels.tolist(), to={label: 7})
    for row, pair in enumerate(pairs, start=len(manifest)):
        content, style = (
            decode_image(manifest.root / manifest.low[number])[None]
            for number in (pair.content, pair.style)
        )
        assert dataset[row].target == label
        assert made.columns["number"][row] == manifest.columns["number"][pair.content]
        assert made.columns["content_id"][row] == manifest.ids[pair.content]
        assert made.columns["style_id"][row] == manifest.ids[pair.style]
        assert torch.equal(dataset[row].image, transfer(steps=2)(content, style)[0])
    assert set(made.columns["style_id"][: len(manifest)]) == {""}


def test_top_up_goes_on_where_it_stopped_and_tells_settings_apart(
    singles: Manifest, tmp_path: Path
) -> None:
    manifest = singles
    made = transfer(steps=2)
    first = made.top_up(manifest, tmp_path, to={"Amber Finch": 6})
    times = {path: path.stat().st_mtime_ns for path in tmp_path.iterdir()}
    progress: list[tuple[int, int]] = []
    again = made.top_up(
        manifest, tmp_path, to={"Amber Finch": 7}, callback=lambda *at: progress.append(at)
    )
    assert progress == [(1, 3), (2, 3), (3, 3)]
    assert again.low[: len(first)] == first.low
    assert all(path.stat().st_mtime_ns == time for path, time in times.items())
    assert len(list(tmp_path.iterdir())) == 3
    transfer(steps=3).top_up(manifest, tmp_path, to={"Amber Finch": 6})
    assert len(list(tmp_path.iterdir())) == 5


def test_top_up_draws_from_the_rows_given_alone(singles: Manifest, tmp_path: Path) -> None:
    manifest = singles
    amber = [row for row, label in enumerate(manifest.labels) if label == 0]
    train = [row for row in range(len(manifest)) if row not in amber[2:]]
    made = transfer(steps=1).top_up(manifest, tmp_path, to={"Amber Finch": 4}, rows=train)
    drawn = set(made.ids[len(manifest) :])
    held = [manifest.ids[row] for row in amber[2:]]
    assert len(drawn) == 2
    assert not [name for name in drawn for other in held if other in name]


def test_top_up_refusals(toy: Path, singles: Manifest, tmp_path: Path) -> None:
    made = transfer(steps=1)
    with pytest.raises(ValueError, match="`manifest` must have single images"):
        made.top_up(Manifest.read_csv(toy / "train.csv"), tmp_path, to=20)
    with pytest.raises(DataError, match="unlabelled"):
        made.top_up(Manifest.read_csv(toy / "test.csv"), tmp_path, to=20)
    with pytest.raises(ValueError, match=r"`to` names no class of the manifest: \['Wren'\]"):
        made.top_up(singles, tmp_path, to={"Wren": 3})
    mask = np.arange(len(singles)) > 0
    for rows in (mask, mask.tolist()):
        with pytest.raises(TypeError, match=r"of a mask give `numpy\.flatnonzero"):
            made.top_up(singles, tmp_path, to=20, rows=rows)


def test_top_up_takes_numbers_of_numpy_and_one_resolution_of_pairs(
    toy: Path, singles: Manifest, tmp_path: Path
) -> None:
    most = np.bincount(singles.labels).max()
    made = transfer(steps=1).top_up(singles, tmp_path, to=most - 7, rows=np.arange(len(singles)))
    assert made.class_counts()["Amber Finch"] == most - 7
    pairs = Manifest.read_csv(toy / "train.csv")
    assert transfer().top_up(replace(pairs, high=None), tmp_path, to=2).low == pairs.low


def test_top_up_gives_each_row_an_id_of_its_own(singles: Manifest, tmp_path: Path) -> None:
    few = np.flatnonzero(singles.labels == 0)[:3]
    manifest = replace(singles.take(few), ids=("1", "1-1", "2"))  # 1 after 1-1, 1-1 after 1
    rows, made = [0, 1, 2], transfer(steps=1)
    once = made.top_up(manifest, tmp_path, to={"Amber Finch": 9})
    again = made.top_up(once, tmp_path, to={"Amber Finch": 9}, rows=rows)
    assert len(again) == len(set(again.ids)) == 15
    for name in ("content_id", "style_id"):
        assert again.columns[name][:9] == once.columns[name] == ("",) * 3 + once.columns[name][3:]
        assert set(again.columns[name][3:]) == {"1", "1-1", "2"}


def test_top_up_finds_its_files_from_behind_a_link(singles: Manifest, tmp_path: Path) -> None:
    (tmp_path / "linked").symlink_to(singles.root, target_is_directory=True)
    linked = replace(singles, root=tmp_path / "linked")
    made = transfer(steps=1).top_up(linked, tmp_path / "styled", to={"Amber Finch": 5})
    assert MultiResolutionDataset(made)[len(made) - 1].image.shape == (3, 64, 64)


class OnMeta(nn.Module):
    """Notes where images come to it, on a device that every machine has."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(3, device="meta"), persistent=False)
        self.met: list[str] = []

    def forward(self, content: torch.Tensor, style: torch.Tensor) -> torch.Tensor:
        self.met += [content.device.type, style.device.type]
        return images(1)


def test_images_go_to_the_device_of_the_network(singles: Manifest, tmp_path: Path) -> None:
    module = OnMeta()
    pairs = [StylePair(content=0, style=1, label=0)]
    add_rows(singles, pairs, tmp_path, module, callback=None)
    assert module.met == ["meta", "meta"]


def test_real_paintings_move_towards_the_style(shared_data: Path) -> None:
    squeezenet = torchvision.models.squeezenet1_0()
    weights = shared_data / "weights" / "squeezenet1_0.in1k_deepcomp.safetensors"
    squeezenet.load_state_dict(load_file(weights))
    made = StyleTransfer(
        squeezenet,
        content_layers=["features.7"],
        style_layers=[f"features.{index}" for index in (1, 4, 7, 9, 12)],
        steps=15,
        max_side=96,
    )
    folder = shared_data / "paintings10"
    content, style = (
        decode_image(folder / name)[None]
        for name in ("alfred-sisley/002.jpg", "utagawa-kuniyoshi/005.jpg")
    )
    losses: list[float] = []
    got = made(content, style, callback=lambda number, loss: losses.append(loss))
    assert max(got.shape[-2:]) == 96
    assert losses[-1] < 0.4 * losses[0]
