import numpy as np
import pytest
import torch

from lowres_vision.ensemble import SimilarityFilter


def images(seed: int, rows: int, *, strangers: bool = False) -> tuple[torch.Tensor, torch.Tensor]:
    """Return embeddings ``(N, 32)`` around five class means, or around five others."""
    means = torch.from_numpy(np.random.default_rng(5).normal(size=(10, 32)))
    random = np.random.default_rng(seed)
    labels = torch.from_numpy(random.integers(0, 5, rows))
    noise = torch.from_numpy(random.normal(size=(rows, 32)))
    return means[labels + 5 * strangers] + noise, labels


@pytest.mark.parametrize("false_drop", [0.01, 0.1])
def test_new_images_of_the_classes_are_dropped_at_the_rate_asked_for(false_drop: float) -> None:
    rates, caught = [], []
    for seed in range(20):
        seen, labels = images(seed, 300)
        keep = SimilarityFilter.fit(seen, labels, false_drop=false_drop)
        fresh, _ = images(100 + seed, 2000)
        rates.append(keep.apply_to(fresh).dropped / 2000)
        caught.append(keep.apply_to(images(200 + seed, 500, strangers=True)[0]).dropped / 500)
    # The rate of one fit has a standard deviation of sqrt(rate / 300), the mean's is a twentieth
    # root of that; three of them.
    assert np.mean(rates) == pytest.approx(false_drop, abs=3 * np.sqrt(false_drop / 300 / 20))
    assert np.mean(caught) > 0.8


def test_the_threshold_is_the_quantile_of_a_loop_that_leaves_each_image_out() -> None:
    rows, labels = images(0, 60)
    unit = rows / rows.norm(dim=1, keepdim=True)
    similarities = []
    for n in range(60):
        rest = torch.arange(60) != n
        means = torch.stack([unit[rest & (labels == k)].mean(0) for k in range(5)])
        similarities.append(float(torch.cosine_similarity(means, unit[n], dim=1).max()))
    expected = sorted(similarities)
    for false_drop, rank in ((0.05, 3), (0.2, 12), (1.0, 60)):
        keep = SimilarityFilter.fit(rows, labels, false_drop=false_drop)
        assert float(keep.threshold) == pytest.approx(expected[rank - 1], abs=1e-6)


def test_it_tells_what_was_dropped() -> None:
    keep = SimilarityFilter(torch.eye(2, 3), threshold=0.5)
    rows = torch.tensor([[3.0, 0.1, 0.0], [0.0, 0.1, 3.0], [0.0, 2.0, 0.0]])
    result = keep.apply_to(rows)
    assert result.keep.tolist() == [True, False, True]
    assert result.dropped == 1
    torch.testing.assert_close(result.similarity, keep(rows))


def test_nothing_is_dropped_where_too_few_images_could_tell() -> None:
    rows, labels = images(0, 60)
    keep = SimilarityFilter.fit(rows, labels, false_drop=0.01)
    assert float(keep.threshold) == -1
    assert keep.apply_to(-rows).dropped == 0


def test_arguments_that_do_not_fit_are_refused() -> None:
    rows, labels = images(0, 60)
    with pytest.raises(ValueError, match=r"`false_drop` must be >= 0 and <= 1"):
        SimilarityFilter.fit(rows, labels, false_drop=1.5)
    labels[:] = 0
    labels[0] = 1
    with pytest.raises(ValueError, match=r"two rows of each class, one of \[1\]"):
        SimilarityFilter.fit(rows, labels)
    with pytest.raises(ValueError, match="`threshold` must be >= -1"):
        SimilarityFilter(torch.eye(2), threshold=-2)
