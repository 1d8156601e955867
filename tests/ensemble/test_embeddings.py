import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression

from lowres_vision.ensemble import (
    LinearClassifier,
    NearestCentroid,
    Temperature,
    concat_embeddings,
    cross_fit,
    log_loss,
)


def clusters(
    seed: int, *, per_class: int = 40, classes: int = 4
) -> tuple[torch.Tensor, np.ndarray]:
    """Return embeddings ``(N, 10)`` around the same class means for every seed, and labels."""
    labels = np.arange(classes).repeat(per_class)
    means = np.random.default_rng(99).normal(size=(classes, 10))
    rows = means[labels] + np.random.default_rng(seed).normal(size=(len(labels), 10))
    return torch.from_numpy(rows), labels


def test_cosines_of_the_whole_are_the_mean_of_the_models_cosines() -> None:
    torch.manual_seed(0)
    embeddings = [torch.randn(6, 4).double(), 1000 * torch.randn(6, 9).double()]
    whole = concat_embeddings(embeddings)
    assert whole.shape == (6, 13)
    torch.testing.assert_close(whole.norm(dim=1), torch.full((6,), 2**0.5).double())
    cosine = torch.nn.functional.cosine_similarity
    expected = sum(cosine(each[:3], each[3:]) for each in embeddings) / 2
    torch.testing.assert_close(cosine(whole[:3], whole[3:]), expected)


def test_a_zero_embedding_and_half_precision_stay_finite() -> None:
    assert concat_embeddings([torch.zeros(2, 3, requires_grad=True)]).isfinite().all()
    assert concat_embeddings([torch.full((1, 512), 300.0).half()]).norm() == pytest.approx(1.0)


@pytest.mark.parametrize("embeddings", [[], [torch.ones(3)], [torch.ones(2, 3), torch.ones(3, 3)]])
def test_shapes_that_do_not_fit_are_refused(embeddings: list[torch.Tensor]) -> None:
    with pytest.raises(ValueError, match="must be tensors"):
        concat_embeddings(embeddings)


def test_the_nearest_centroid_is_that_of_a_loop() -> None:
    rows, labels = clusters(0)
    classify = NearestCentroid.fit(rows, labels).double()
    fresh, _ = clusters(1)
    got = classify(fresh).numpy()
    unit = rows.numpy() / np.linalg.norm(rows.numpy(), axis=1, keepdims=True)
    for k in range(4):
        centre = unit[labels == k].mean(axis=0)
        for n in range(0, len(fresh), 7):
            x = fresh[n].numpy()
            cosine = x @ centre / np.linalg.norm(x) / np.linalg.norm(centre)
            assert got[n, k] == pytest.approx(cosine, abs=1e-6)  # centroids are kept in float32


def test_lengths_of_embeddings_do_not_count() -> None:
    rows, labels = clusters(0)
    scale = torch.from_numpy(np.random.default_rng(0).uniform(0.1, 50, size=(len(rows), 1)))
    classify, scaled = (NearestCentroid.fit(x, labels) for x in (rows, scale * rows))
    torch.testing.assert_close(classify.centroids, scaled.centroids)
    torch.testing.assert_close(classify(rows), classify(scale * rows))


@pytest.mark.parametrize("l2", [1e-4, 1e-2, 1.0])
@pytest.mark.parametrize("scale", [1.0, 0.01])
def test_the_linear_classifier_is_scikit_learns(l2: float, scale: float) -> None:
    rows, labels = clusters(0)
    rows = scale * (rows + 3)  # not centred
    classify = LinearClassifier.fit(rows, labels, l2=l2)
    peer = LogisticRegression(C=1 / (len(rows) * l2), tol=1e-12, max_iter=20_000)
    peer.fit(rows.numpy(), labels)
    # Both stop where the gradient is about 1e-8; ours keeps its weights in float32.
    weight = classify.weight.double().numpy()
    np.testing.assert_allclose(weight, peer.coef_, atol=2e-5 * np.abs(peer.coef_).max())
    ours, theirs = classify(rows).softmax(1).numpy(), peer.predict_proba(rows.numpy())
    np.testing.assert_allclose(ours, theirs, atol=2e-5)


def test_cross_fitted_outputs_are_of_fits_without_the_fold() -> None:
    rows, labels = clusters(2)
    fold_of = np.random.default_rng(0).permutation(len(rows)) % 3
    for classifier in (NearestCentroid, LinearClassifier):
        outputs = cross_fit(classifier.fit, rows, labels, folds=fold_of)
        for fold in range(3):
            held = torch.from_numpy(fold_of == fold)
            alone = classifier.fit(rows[~held], labels[~held.numpy()])
            torch.testing.assert_close(outputs[held], alone(rows[held]))


def test_cosines_become_probabilities_with_a_temperature() -> None:
    rows, labels = clusters(3)
    cosines = cross_fit(NearestCentroid.fit, rows, labels)
    calibrate = Temperature.fit(cosines, labels)
    fresh, unseen = clusters(4)
    p = calibrate(NearestCentroid.fit(rows, labels)(fresh))
    assert log_loss(p.numpy(), unseen) < 0.7 * np.log(4)
    assert float(calibrate.temperature) < 0.5  # bare cosines are far too even


def test_they_are_modules_that_compile_and_keep_the_dtype() -> None:
    rows, labels = clusters(0)
    for classify in (NearestCentroid.fit(rows, labels), LinearClassifier.fit(rows, labels)):
        assert classify(rows).dtype == torch.float64
        assert classify(rows.bfloat16()).dtype == torch.float32
        assert not any(output.requires_grad for output in classify.state_dict().values())
        compiled = torch.compile(classify, fullgraph=True, backend="aot_eager")
        torch.testing.assert_close(compiled(rows), classify(rows))
        again = type(classify)(*classify.state_dict().values())
        torch.testing.assert_close(again(rows), classify(rows))


def test_rows_that_do_not_fit_are_refused() -> None:
    rows, labels = clusters(0)
    with pytest.raises(ValueError, match=r"a row of each class, none of \[4\]"):
        NearestCentroid.fit(rows, labels, num_classes=5)
    with pytest.raises(ValueError, match=r"none of \[0\]"):
        LinearClassifier.fit(rows, labels + 1)
    with pytest.raises(ValueError, match=r"must be class indices in 0..2, got 0..3"):
        NearestCentroid.fit(rows, labels, num_classes=3)
    with pytest.raises(ValueError, match=r"`labels` must be \(160,\)"):
        NearestCentroid.fit(rows, labels[:-1])
    with pytest.raises(ValueError, match="`embeddings` must be finite"):
        NearestCentroid.fit(rows * torch.inf, labels)
    with pytest.raises(ValueError, match=r"`embeddings` must be \(rows, features\)"):
        NearestCentroid.fit(rows[0], labels)
    with pytest.raises(ValueError, match="`l2` must be > 0"):
        LinearClassifier.fit(rows, labels, l2=0.0)
    with pytest.raises(ValueError, match=r"`bias` must be \(3,\)"):
        LinearClassifier(torch.ones(3, 2), torch.ones(2))
    with pytest.raises(ValueError, match="give it the number of classes"):
        cross_fit(LinearClassifier.fit, rows, labels, folds=(labels < 3) * (np.arange(160) % 2))
