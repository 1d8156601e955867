"""The page in a real browser, on real images: what it shows is what Python says.

Pixels of PNG files are the same in Chromium and Pillow. JPEG decoders may differ by a level or two,
so there the page is held to ONNX Runtime's answer on the page's own pixels, and to Python's class.
"""

import base64
import sys
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import onnxruntime
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from torch import Tensor, nn

from lowres_vision.data import decode_image
from lowres_vision.export import Predictor, TrainedModel, export_onnx
from lowres_vision.losses import CrossEntropyLoss
from lowres_vision.models import LowResClassifier
from lowres_vision.ops import resize
from lowres_vision.resizer import Resize

pytestmark = pytest.mark.slow
EXAMPLES = Path(__file__).parents[2] / "examples"


class Shown(NamedTuple):
    """What the page shows of one picture."""

    pixels: Tensor  # (3, H, W) uint8
    view: Tensor  # (3, h, w) uint8
    best: dict[str, float]  # five names and their confidences, best first
    notes: str


def pixels_of(browser: Any, canvas: str) -> Tensor:
    width, height, data = browser.evaluate(
        f"""(() => {{
            const canvas = document.getElementById("{canvas}");
            const context = canvas.getContext("2d");
            const {{data}} = context.getImageData(0, 0, canvas.width, canvas.height);
            let text = "";
            for (let at = 0; at < data.length; at += 32768)
                text += String.fromCharCode(...data.subarray(at, at + 32768));
            return [canvas.width, canvas.height, btoa(text)];
        }})()"""
    )
    values = np.frombuffer(base64.b64decode(data), np.uint8).reshape(height, width, 4)
    assert (values[..., 3] == 255).all()
    return torch.from_numpy(values[..., :3].copy()).permute(2, 0, 1)


def answer(browser: Any) -> str:
    """Wait until the page has answered, and return its complaint, empty if it has a result."""
    browser.wait(
        "!document.getElementById('result').hidden || document.getElementById('error').innerText"
    )
    return browser.text("#error")


def classify(browser: Any, file: Path) -> Shown:
    browser.evaluate("void (document.getElementById('result').hidden = true)")
    browser.choose("#file", file)
    assert answer(browser) == ""
    best = browser.evaluate(
        "[...document.querySelectorAll('#best li')].map("
        "(line) => [line.querySelector('.name').innerText, line.querySelector('meter').value])"
    )
    view = (
        pixels_of(browser, "view")
        if browser.evaluate("!document.getElementById('view').hidden")
        else torch.empty(0)
    )
    return Shown(pixels_of(browser, "picture"), view, dict(best), browser.text("#result"))


@pytest.fixture
def served(site: tuple[Path, str], runtime: Path) -> str:
    """The address of the page with its runtime."""
    folder, address = site
    (folder / "ort").symlink_to(runtime)
    return address


@pytest.fixture(scope="module")
def photos(shared_data: Path) -> list[Path]:
    """Eight PNG of 64 px, four JPEG of 256 px, and JPEG photos of 256, 224 and 386 x 512 px."""
    birds = shared_data / "birds25"
    files = [
        *sorted(birds.rglob("*.png"))[::70][:8],
        *sorted(birds.rglob("*.jpg"))[35::150][:4],
        *sorted((shared_data / "imagenet_probe100").rglob("*.jpg"))[::25],
        *sorted((shared_data / "paintings10").rglob("*.jpg"))[::500],
        *sorted((shared_data / "campus6").rglob("*.jpg"))[::120],
    ]
    assert len(files) == 20
    return files


@pytest.fixture(scope="module")
def mobilenet(shared_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A real network with its real weights, 1,000 classes at 128 px."""
    sys.path.insert(0, str(EXAMPLES))
    try:
        import small_backbones  # noqa: F401
    finally:
        sys.path.remove(str(EXAMPLES))
    file = shared_data / "weights/mobilenetv1_025.in1k_128.safetensors"
    model = LowResClassifier(
        "mobilenetv1_025", 1000, image_size=128, checkpoint_path=file, pad_type="same"
    )
    weights = load_file(file)
    model.head.load_state_dict({name: weights[f"classifier.{name}"] for name in ("weight", "bias")})
    read = Resize(128, mean=model.mean, std=model.std)
    names = [f"class {number}" for number in range(1000)]
    predictor = Predictor([TrainedModel(model, CrossEntropyLoss(), read)], classes=names)
    file = tmp_path_factory.mktemp("mobilenet") / "mobilenet.onnx"
    photos = sorted((shared_data / "imagenet_probe100").rglob("*.jpg"))[:4]
    images = (255 * resize([decode_image(photo) for photo in photos], 160)).to(torch.uint8)
    export_onnx(predictor, file, images, dynamic_size=True, view=Resize(128))
    return file


def probabilities(session: onnxruntime.InferenceSession, pixels: Tensor) -> np.ndarray:
    return session.run(["outputs"], {"images": pixels[None].numpy()})[0][0]


@pytest.mark.parametrize("name", ["toy", "mobilenet"])
def test_twenty_real_images(
    name: str,
    browser: Any,
    served: str,
    photos: list[Path],
    page: Path,
    request: pytest.FixtureRequest,
) -> None:
    file = page / "model.onnx" if name == "toy" else request.getfixturevalue("mobilenet")
    session = onnxruntime.InferenceSession(file)
    metadata = session.get_modelmeta().custom_metadata_map
    classes = metadata["classes"].split("\n")
    size = session.get_outputs()[1].shape[2]
    browser.open(served)
    if name != "toy":
        browser.choose("#model", file)
        browser.wait("!document.getElementById('own').hidden")
    levels, off, off_here, off_view, same = 0, 0.0, 0.0, 0.0, 0
    for photo in photos:
        shown = classify(browser, photo)
        decoded = decode_image(photo)
        assert shown.pixels.shape == decoded.shape
        level = int((shown.pixels.int() - decoded.int()).abs().max())
        assert level == 0 or photo.suffix == ".jpg"
        levels = max(levels, level)
        python = probabilities(session, decoded)
        here = probabilities(session, shown.pixels)
        same += classes[python.argmax()] == next(iter(shown.best))
        for label, share in shown.best.items():
            off = max(off, abs(share - python[classes.index(label)]))
            off_here = max(off_here, abs(share - here[classes.index(label)]))
        view = resize(shown.pixels[None], size)[0] * 255
        off_view = max(off_view, float((shown.view - view).abs().max()))
    print(
        f"\n{name}: {same} of {len(photos)} the same class; confidences differ by up to "
        f"{off_here:.1e} on the same pixels, {off:.1e} on Pillow's; JPEG pixels by up to {levels} "
        f"levels; views by {off_view:.2f} levels"
    )
    assert same == len(photos) == 20
    assert off_here < 1e-5
    assert off_view <= 0.5 + 1e-3  # rounded to a level


def test_turned_and_transparent_pictures_are_as_python_reads_them(
    browser: Any, served: str, tmp_path: Path
) -> None:
    random = np.random.default_rng(0)
    noise = random.integers(0, 256, (40, 60, 4), dtype=np.uint8)
    turned = Image.Exif()
    turned[0x0112] = 6
    Image.fromarray(noise[..., :3]).save(tmp_path / "turned.png", exif=turned)
    Image.fromarray(noise).save(tmp_path / "glass.png")
    Image.fromarray(noise[..., :3]).quantize(16).save(tmp_path / "palette.png")
    Image.fromarray(noise[..., 0]).save(tmp_path / "grey.webp", lossless=True)
    browser.open(served)
    for file in sorted(tmp_path.glob("*.*")):
        shown, decoded = classify(browser, file).pixels, decode_image(file)
        assert shown.shape == decoded.shape, file.name
        off = int((shown.int() - decoded.int()).abs().max())
        assert off <= (file.name == "glass.png"), file.name  # where a blend is rounded


def test_a_picture_longer_than_the_limit_is_shrunk_and_said_to_be(
    browser: Any, served: str, tmp_path: Path
) -> None:
    Image.new("RGB", (5000, 100), (255, 0, 0)).save(tmp_path / "long.png")
    browser.open(served)
    shown = classify(browser, tmp_path / "long.png")
    assert shown.pixels.shape == (3, 82, 4096)
    assert "5000 x 100 pixels, resized by the browser to 4096 x 82" in shown.notes


def complaint(browser: Any, selector: str, *files: Path) -> str:
    browser.evaluate("void (document.getElementById('error').textContent = '')")
    browser.choose(selector, *files)
    return browser.wait("document.getElementById('error').innerText")


def test_a_file_that_is_no_picture_is_named_and_leaves_no_result(
    browser: Any, served: str, page: Path, tmp_path: Path
) -> None:
    browser.open(served)
    assert len(classify(browser, next((page / "samples").iterdir())).best) == 5
    (tmp_path / "notes.png").write_text("not a picture")
    (tmp_path / "empty.jpg").touch()
    whole = next((page / "samples").iterdir()).read_bytes()
    (tmp_path / "cut.png").write_bytes(whole[:40])
    for name, what in [("notes.png", "no picture"), ("empty.jpg", "empty"), ("cut.png", "no pict")]:
        said = complaint(browser, "#file", tmp_path / name)
        assert said.startswith(f"“{name}” is {what}")
        assert said.endswith("Choose a PNG, JPEG or WebP file.")
        assert browser.evaluate("document.getElementById('result').hidden")
    assert len(classify(browser, next((page / "samples").iterdir())).best) == 5


def test_a_missing_runtime_is_said_and_can_be_put_there(
    browser: Any, site: tuple[Path, str], runtime: Path, page: Path
) -> None:
    folder, address = site
    sample = next((page / "samples").iterdir())
    browser.send("Network.enable")
    browser.send("Network.setBlockedURLs", urls=["*cdn.jsdelivr.net*"])
    try:
        browser.open(address)
        said = complaint(browser, "#file", sample)
    finally:
        browser.send("Network.disable")
    assert "“ort” is not beside this page, and cdn.jsdelivr.net does not answer" in said
    (folder / "ort").symlink_to(runtime)
    assert len(classify(browser, sample).best) == 5


def test_a_missing_model_is_said(
    browser: Any, site: tuple[Path, str], served: str, page: Path
) -> None:
    (site[0] / "model.onnx").unlink()
    browser.open(served)
    said = complaint(browser, "#file", next((page / "samples").iterdir()))
    assert "model.onnx could not be fetched (HTTP status 404)" in said


def test_models_that_do_not_fit_are_refused_by_name(
    browser: Any, served: str, page: Path, tmp_path: Path
) -> None:
    browser.open(served)
    (tmp_path / "text.onnx").write_text("no model")
    said = complaint(browser, "#model", tmp_path / "text.onnx")
    assert "“text.onnx” is no model that ONNX Runtime can run" in said
    (tmp_path / "names.txt").write_text("heron\nowl\n")
    (tmp_path / "list.txt").write_text('["heron", ')
    said = complaint(browser, "#model", page / "model.onnx", tmp_path / "list.txt")
    assert said.startswith("The list of names is no JSON")
    said = complaint(browser, "#model", tmp_path / "names.txt")
    assert said.startswith("No .onnx file was chosen.")
    said = complaint(browser, "#model", page / "model.onnx", tmp_path / "names.txt")
    assert "has 10 classes, and 2 names were given" in said
    grey = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(1, 2))
    export_onnx(grey, tmp_path / "grey.onnx", torch.rand(2, 1, 8, 8))
    said = complaint(browser, "#model", tmp_path / "grey.onnx")
    assert "“grey.onnx” does not go from one batch of images, (B, 3, H, W)" in said
    assert len(classify(browser, next((page / "samples").iterdir())).best) == 5  # the toy goes on


def test_another_s_model_of_one_size_with_logits_and_names_in_a_text_file(
    browser: Any, served: str, page: Path, tmp_path: Path
) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(12, 3))
    export_onnx(model, tmp_path / "own.onnx", torch.rand(2, 3, 48, 32))
    (tmp_path / "names.txt").write_text("heron\nowl\nrail\n")
    browser.open(served)
    browser.choose("#model", tmp_path / "own.onnx", tmp_path / "names.txt")
    browser.wait("!document.getElementById('own').hidden")
    assert browser.text("#own") == "own.onnx: 3 classes, takes pictures of 32 x 48 pixels only."
    shown = classify(browser, next((page / "samples").iterdir()))
    with torch.no_grad():
        expected = model(shown.pixels[None] / 255).softmax(1)[0]
    assert set(shown.best) == {"heron", "owl", "rail"}
    for index, name in enumerate(("heron", "owl", "rail")):
        assert shown.best[name] == pytest.approx(float(expected[index]), abs=1e-6)
    assert "resized by the browser to 32 x 48, the only size this model takes" in shown.notes
    assert "softmax of its outputs" in shown.notes
    assert "not shown: the file has no output “views”" in shown.notes


def test_a_model_that_gives_nan_is_said_to_and_shows_no_class(
    browser: Any, served: str, page: Path, tmp_path: Path
) -> None:
    class Broken(nn.Module):
        """0 / 0 for pictures without a black pixel, as those of the test are not."""

        def forward(self, x: Tensor) -> Tensor:
            dark = (x.amin((1, 2, 3)) < 0.5).float()[:, None]
            return x.mean((2, 3)) * dark / dark

    export_onnx(Broken(), tmp_path / "nan.onnx", torch.rand(2, 3, 48, 32))
    Image.new("RGB", (32, 48), (255, 255, 255)).save(tmp_path / "white.png")
    Image.new("RGB", (32, 48)).save(tmp_path / "black.png")
    browser.open(served)
    browser.choose("#model", tmp_path / "nan.onnx")
    browser.wait("!document.getElementById('own').hidden")
    said = complaint(browser, "#file", tmp_path / "white.png")
    assert said.startswith("“nan.onnx” gives NaN or infinity for this picture, and so no class.")
    assert browser.evaluate("document.getElementById('result').hidden")
    assert len(classify(browser, tmp_path / "black.png").best) == 3


def test_the_camera(browser: Any, served: str) -> None:
    def allow(setting: str) -> None:
        browser.send(
            "Browser.setPermission", permission={"name": "camera"}, setting=setting, origin=served
        )

    browser.open(served)
    allow("denied")
    browser.click("#camera")
    assert browser.wait("document.getElementById('error').innerText").startswith(
        "The camera was not allowed. Allow it"
    )
    allow("granted")
    # A camera that is on and has sent nothing yet.
    real = "navigator.mediaDevices.getUserMedia"
    browser.evaluate(f"void ([window.real, {real}] = [{real}, async () => new MediaStream()])")
    browser.click("#camera")
    browser.wait("!document.getElementById('live').hidden")
    browser.click("#shoot")
    assert browser.wait("document.getElementById('error').innerText").startswith(
        "The camera shows no picture yet. Wait until it does"
    )
    assert not browser.evaluate("document.getElementById('live').hidden")
    browser.click("#stop")
    assert "error of its own" not in browser.text("#error")
    browser.evaluate(f"void ({real} = window.real.bind(navigator.mediaDevices))")
    browser.click("#camera")
    assert browser.text("#error") == ""
    browser.wait(
        "!document.getElementById('live').hidden && document.getElementById('video').videoWidth"
    )
    browser.click("#shoot")
    assert answer(browser) == ""
    browser.wait("document.getElementById('live').hidden")
    assert float(pixels_of(browser, "picture").float().std()) > 10  # Chromium's moving test card


def test_opened_from_disk_it_says_that_it_needs_a_server(browser: Any, page: Path) -> None:
    browser.open((page / "index.html").as_uri())
    browser.wait("getComputedStyle(document.getElementById('unstarted')).visibility === 'visible'")
    assert "It needs JavaScript and a web server" in browser.text("#unstarted")


def test_it_fits_narrow_windows_and_every_control_has_a_name(
    browser: Any, served: str, page: Path
) -> None:
    browser.open(served)
    classify(browser, next((page / "samples").iterdir()))
    for width in (320, 375, 1280):
        browser.picture(width, 800, dark=False)
        assert browser.evaluate("document.documentElement.scrollWidth") <= width
    nodes = browser.send("Accessibility.getFullAXTree")["nodes"]
    controls = [node for node in nodes if node["role"]["value"] in ("button", "link", "image")]
    assert len(controls) >= 14
    assert not [node for node in controls if not node["name"]["value"]]


def test_it_is_light_or_dark_as_the_site_is(browser: Any, served: str) -> None:
    for theme, ground in (("dark", "rgb(19, 20, 22)"), ("light", "rgb(255, 255, 255)")):
        browser.open(served)
        browser.evaluate(f"localStorage.setItem('theme', '{theme}')")
        browser.open(served)
        browser.wait("!document.getElementById('unstarted')")
        assert browser.evaluate("getComputedStyle(document.body).backgroundColor") == ground
