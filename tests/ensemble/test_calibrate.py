import numpy as np
import pytest
import torch
import torch.nn.functional as F
from scipy.optimize import minimize_scalar

from lowres_vision.ensemble import (
    Temperature,
    assess_temperature,
    expected_calibration_error,
    log_loss,
)


def draw(rows: int = 800, sure: float = 3.0) -> tuple[torch.Tensor, np.ndarray]:
    """Return logits that are ``sure`` times too large, and labels drawn from the right ones."""
    random = np.random.default_rng(0)
    logits = 2 * random.normal(size=(rows, 5))
    labels = (logits + random.gumbel(size=logits.shape)).argmax(axis=1)
    return torch.from_numpy(sure * logits), labels


@pytest.mark.parametrize("sure", [0.3, 1.0, 3.0])
def test_the_temperature_has_the_lowest_log_loss_and_undoes_the_scale(sure: float) -> None:
    logits, labels = draw(sure=sure)
    target = torch.from_numpy(labels)
    fitted = float(Temperature.fit(logits, labels).temperature)
    found = minimize_scalar(
        lambda log: float(F.cross_entropy(logits / np.exp(log), target)), tol=1e-10
    )
    # The loss is flat at its minimum, so scipy knows the place to sqrt(eps) only.
    assert fitted == pytest.approx(np.exp(found.x), rel=1e-6)
    assert fitted == pytest.approx(sure, rel=0.15)


def test_probabilities_calibrate_as_their_logits() -> None:
    logits, labels = draw()
    probabilities = logits.softmax(1)
    of_logits = Temperature.fit(logits, labels)
    of_probabilities = Temperature.fit(probabilities, labels, reads="probabilities")
    torch.testing.assert_close(of_probabilities.temperature, of_logits.temperature)
    torch.testing.assert_close(of_probabilities(probabilities), of_logits(logits))


def test_the_report_is_that_of_temperatures_fitted_without_each_fold() -> None:
    logits, labels = draw()
    fold_of = np.arange(800) % 4
    report = assess_temperature(logits, labels, folds=fold_of)
    before, after = logits.softmax(1).numpy(), np.empty((800, 5))
    for fold in range(4):
        held, rest = fold_of == fold, fold_of != fold
        fitted = Temperature.fit(logits[rest], labels[rest]).double()
        after[held] = fitted(logits[held]).numpy()
    # The Module keeps its temperature in float32.
    assert report.log_loss_after == pytest.approx(log_loss(after, labels), rel=1e-6)
    assert report.error_after == pytest.approx(expected_calibration_error(after, labels), rel=1e-4)
    assert report.log_loss_before == pytest.approx(log_loss(before, labels), rel=1e-12)
    assert report.error_before == expected_calibration_error(before, labels)
    assert report.error_after < report.error_before / 2
    assert report.log_loss_after < report.log_loss_before


def test_what_is_all_right_or_all_wrong_stays_finite() -> None:
    logits = 5 * torch.eye(3)
    sure = Temperature.fit(logits, [0, 1, 2])
    assert log_loss(sure(logits.double()).numpy(), [0, 1, 2]) < 1e-15
    assert float(Temperature.fit(logits, [1, 2, 0]).temperature) == pytest.approx(1e3)
    for temperature in (1e-3, 1e3):
        assert Temperature(temperature)(logits).isfinite().all()


@pytest.mark.parametrize("reads", ["logits", "probabilities"])
def test_it_compiles_exports_and_keeps_the_dtype(reads: str) -> None:
    calibrate = Temperature(2.0, reads=reads)  # type: ignore[arg-type]
    outputs = torch.rand(5, 3).softmax(1)
    expected = calibrate(outputs)
    compiled = torch.compile(calibrate, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(outputs), expected)
    batch = torch.export.Dim("batch", min=2)
    program = torch.export.export(calibrate, (outputs,), dynamic_shapes=({0: batch},))
    torch.testing.assert_close(program.module()(outputs[:3]), expected[:3])
    assert calibrate(outputs.double()).dtype == torch.float64
    assert calibrate(outputs.bfloat16()).dtype == torch.float32


def test_arguments_that_do_not_fit_are_refused() -> None:
    with pytest.raises(ValueError, match=r"`temperature` must be >= 0\.001"):
        Temperature(0.0)
    with pytest.raises(ValueError, match="`reads` must be one of"):
        Temperature.fit([[0.0, 1.0]], [0], reads="cosines")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="`outputs` must be finite"):
        Temperature.fit([[np.nan, 1.0]], [0])
    with pytest.raises(ValueError, match="are these logits"):
        Temperature.fit([[3.0, 1.0]], [0], reads="probabilities")
