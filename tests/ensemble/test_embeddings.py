import pytest
import torch

from lowres_vision.ensemble import concat_embeddings


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
