import copy
import pickle
from collections import Counter

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch.utils.data import DataLoader, Dataset

from lowres_vision._batch import Batch, Pair, PairBatch, Sample
from lowres_vision.mixing import (
    CutMixCollator,
    MixCollator,
    MixupCollator,
    cutmix,
    mixup,
    scale_mix,
)
from lowres_vision.mixing._collators import _generator
from lowres_vision.mixing._samples import read_samples
from lowres_vision.ops import resize

K = 5
both = pytest.mark.parametrize("collator_of", [CutMixCollator, MixupCollator])


def image_of(seed: int, size: tuple[int, int] = (8, 6)) -> torch.Tensor:
    return torch.randint(
        256, (3, *size), dtype=torch.uint8, generator=torch.Generator().manual_seed(seed)
    )


def samples_of(batch: int, size: tuple[int, int] = (8, 6), first: int = 0) -> list[Sample]:
    return [Sample(image_of(row, size), row % K, row) for row in range(first, first + batch)]


def pairs_of(batch: int, low: tuple[int, int], high: tuple[int, int]) -> list[Pair]:
    rows = range(batch)
    return [Pair(image_of(row, low), image_of(row + 99, high), row % K, row) for row in rows]


def apply(images, targets, mix):
    return (mixup if mix.box is None else cutmix)(images, targets, mix, num_classes=K)


def equal(first: object, second: object) -> bool:
    """Whether two nests of tuples, lists and tensors are equal to the bit."""
    if isinstance(first, torch.Tensor) and isinstance(second, torch.Tensor):
        return first.dtype == second.dtype and torch.equal(first, second)
    if isinstance(first, tuple | list) and type(first) is type(second):
        return len(first) == len(second) and all(map(equal, first, second))
    return first is second


class Birds(Dataset):
    def __len__(self) -> int:
        return 22

    def __getitem__(self, row: int) -> Sample:
        return samples_of(1, first=row)[0]


class PlainBirds(Birds):
    def __getitem__(self, row: int):
        return image_of(row), row % K


# What goes in and what comes out


@both
def test_unmixed_batches_look_like_mixed_ones(collator_of):
    samples, pairs = samples_of(3), pairs_of(3, (16, 9), (32, 18))
    plain = [(sample.image, sample.target) for sample in samples]
    one_hot = F.one_hot(torch.tensor([0, 1, 2]), K).float()
    for p in (0.0, 1.0):
        collator = collator_of(K, p=p, per_sample=True)
        batch, pair_batch, (images, targets) = map(collator, (samples, pairs, plain))
        assert isinstance(batch, Batch)
        assert isinstance(pair_batch, PairBatch)
        assert batch.rows.tolist() == pair_batch.rows.tolist() == [0, 1, 2]
        assert batch.mix is None is pair_batch.mix
        assert batch.images.shape == images.shape == (3, 3, 8, 6)
        assert pair_batch.low.shape == (3, 3, 16, 9)
        assert pair_batch.high.shape == (3, 3, 32, 18)
        for result in (batch.targets, pair_batch.targets, targets):
            assert (result.shape, result.dtype) == ((3, K), torch.float32)
            assert torch.equal(result, one_hot) == (p == 0)
        mixed = not torch.equal(images, torch.stack([sample.image for sample in samples]))
        assert mixed == (p == 1)


@both
@given(batch=st.integers(1, 9), seed=st.integers(0, 999), per_sample=st.booleans())
def test_mixing_is_drawing_and_then_applying(collator_of, batch, seed, per_sample):
    samples = samples_of(batch, (8, 6))
    options = {"p": 0.7, "per_sample": per_sample, "seed": seed}
    drawn = collator_of(K, size=(8, 6), **options)(samples)
    mixed = collator_of(K, **options)(samples)
    images, targets = torch.stack([sample.image for sample in samples]), torch.arange(batch) % K
    assert torch.equal(drawn.images, images)
    expected = (images, F.one_hot(targets, K).float())
    if drawn.mix is not None:
        expected = apply(images, targets, drawn.mix)
    assert torch.equal(mixed.images, expected[0])
    assert torch.equal(mixed.targets, expected[1])
    assert torch.equal(drawn.targets, expected[1])


@both
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32, torch.float64])
def test_float_images_keep_their_dtype(collator_of, dtype):
    data = [(image_of(row).to(dtype) / 255, row) for row in range(4)]
    images, targets = collator_of(K, p=1.0)(data)
    assert (images.dtype, targets.dtype) == (dtype, torch.float32)


@both
def test_hard_and_soft_targets_may_meet(collator_of):
    hard = samples_of(4)
    kinds = [lambda y: y, torch.tensor, lambda y: torch.eye(K)[y], lambda y: torch.eye(K).half()[y]]
    mixed = [
        sample._replace(target=kind(sample.target))
        for sample, kind in zip(hard, kinds, strict=True)
    ]
    collator = collator_of(K, p=1.0)
    assert equal(collator(mixed), collator(hard))


@both
def test_soft_targets_mix_linearly(collator_of):
    soft = torch.rand(6, K).softmax(1)
    samples = [s._replace(target=t) for s, t in zip(samples_of(6), soft, strict=True)]
    batch = collator_of(K, p=1.0, size=8)(samples)
    lam = batch.mix.lam[:, None]
    expected = lam * soft + (1 - lam) * soft[batch.mix.partner]
    # Three roundings of numbers below 1, on both sides.
    torch.testing.assert_close(batch.targets, expected, rtol=0, atol=6 * 2**-24)


@both
def test_a_batch_of_one_stays_as_it_is(collator_of):
    (sample,) = samples_of(1, first=7)
    batch = collator_of(K, p=1.0)([sample])
    assert torch.equal(batch.images[0], sample.image)
    assert batch.targets.tolist() == [[0, 0, 1, 0, 0]]


@both
def test_samples_are_not_written_into(collator_of):
    samples, pairs = samples_of(4), pairs_of(4, (4, 4), (8, 8))
    plain = [(torch.rand(3, 4, 4), torch.rand(K)) for _ in range(4)]
    for data in (samples, pairs, plain):
        before = copy.deepcopy(data)
        result = collator_of(K, p=1.0)(data)
        for value in result:
            if value is not None:
                value.zero_()
        assert equal(data, before)


# Pairs


@given(
    low=st.tuples(st.integers(1, 16), st.integers(1, 16)),
    scale=st.tuples(st.integers(1, 4), st.integers(1, 4)),
    seed=st.integers(0, 999),
)
def test_label_share_of_pairs_is_the_share_of_pixels_in_both(low, scale, seed):
    high = (low[0] * scale[0], low[1] * scale[1])
    pairs = [
        Pair(torch.full((1, *low), float(b)), torch.full((1, *high), float(b)), b, b)
        for b in range(K)
    ]
    batch = CutMixCollator(K, p=1.0, per_sample=True, seed=seed)(pairs)
    for b in range(K):
        share = (batch.low[b] == b).double().mean()
        assert (batch.high[b] == b).double().mean() == share
        assert batch.targets[b, b] == share.float()
        classes = batch.targets[b].nonzero().flatten().tolist()
        assert batch.low[b].unique().tolist() == classes
        assert batch.high[b].unique().tolist() == classes


@both
@pytest.mark.parametrize("high", [(12, 9), (25, 17), (5, 4), (8, 6)])
def test_pairs_of_any_ratio_share_one_draw(collator_of, high):
    low, pairs = (8, 6), pairs_of(6, (8, 6), high)
    batch = collator_of(K, p=1.0, per_sample=True)(pairs)
    mix = collator_of(K, p=1.0, per_sample=True, size=low)(pairs).mix
    lows, highs = (torch.stack([pair[i] for pair in pairs]) for i in (0, 1))
    targets = torch.arange(6) % K
    expected_low, expected_targets = apply(lows, targets, mix)
    expected_high, _ = apply(highs, targets, scale_mix(mix, low, high))
    assert torch.equal(batch.low, expected_low)
    assert torch.equal(batch.high, expected_high)
    assert torch.equal(batch.targets, expected_targets)


# Drawing only


@both
@pytest.mark.parametrize("per_sample", [False, True])
def test_draws_for_ragged_images_are_applied_by_the_resize(collator_of, per_sample):
    samples = [Sample(image_of(row, (6 + row, 13 - row)), row, row) for row in range(K)]
    size, flip = (16, 24), torch.tensor([True, False, True, True, False])
    boxes = torch.tensor([[1.0, 0.5, 4.0 + row, 6.0] for row in range(K)])
    batch = collator_of(K, p=1.0, size=size, per_sample=per_sample)(samples)
    assert isinstance(batch.images, list)
    assert all(image is sample.image for image, sample in zip(batch.images, samples, strict=True))
    resized = resize(batch.images, size, boxes=boxes, flip=flip)
    expected, targets = apply(resized, torch.arange(K), batch.mix)
    actual = resize(batch.images, size, boxes=boxes, flip=flip, mix=batch.mix)
    # MixUp may be written as a weighted sum or as a lerp: roundings of numbers below 1.
    torch.testing.assert_close(actual, expected, rtol=0, atol=8 * 2**-24)
    assert torch.equal(batch.targets, targets)


def test_label_share_of_a_draw_counts_output_pixels():
    samples = [Sample(torch.full((1, 4, 5 + b), b * 40), b, b) for b in range(K)]
    samples = [sample._replace(image=sample.image.to(torch.uint8)) for sample in samples]
    batch = CutMixCollator(K, p=0.5, size=(30, 21), per_sample=True)(samples)
    assert 0 < int((batch.mix.lam == 1).sum()) < K
    pixels = resize(batch.images, (30, 21), mix=batch.mix) * 255 / 40
    for b in range(K):
        own = ((pixels[b] - b).abs() < 0.1).double().mean()
        assert batch.targets[b, b] == own.float()


@both
def test_pairs_may_be_drawn_only(collator_of):
    pairs = [
        Pair(image_of(row, (4, 4 + row)), image_of(row, (9, 9 + row)), row, row) for row in range(K)
    ]
    batch = collator_of(K, p=1.0, size=12)(pairs)
    assert isinstance(batch.low, list)
    assert isinstance(batch.high, list)
    assert batch.mix.partner.shape == (K,)
    assert collator_of(K, p=0.0, size=12)(pairs).mix is None


# Randomness


@pytest.mark.filterwarnings("ignore:This DataLoader will create")
@pytest.mark.parametrize("dataset", [Birds(), PlainBirds()], ids=["rows", "plain"])
def test_workers_and_restarts_change_nothing(dataset):
    def batches(workers: int) -> list[object]:
        collators = [CutMixCollator(K, p=0.8), MixupCollator(K, p=0.8, per_sample=True)]
        return list(
            DataLoader(
                dataset,
                4,
                shuffle=True,
                generator=torch.Generator().manual_seed(0),
                num_workers=workers,
                collate_fn=MixCollator(collators),
            )
        )

    alone = batches(0)
    assert len(alone) == 6
    assert equal(alone, batches(0))
    assert equal(alone, batches(1))
    assert equal(alone, batches(2))


@both
def test_draws_depend_on_the_seed_and_on_the_rows_in_order(collator_of):
    samples = samples_of(5)

    def lam(samples, **options) -> float:
        return float(collator_of(K, p=1.0, size=999, **options)(samples).mix.lam[0])

    first = lam(samples)
    assert first == lam(samples)
    others = [image_of(40 + row) for row in range(5)]
    assert first == lam([s._replace(image=i) for s, i in zip(samples, others, strict=True)])
    assert len({first, lam(samples, seed=1), lam(samples[::-1]), lam(samples[:4])}) == 4


@both
def test_draws_of_tuples_depend_on_labels_and_the_first_image(collator_of):
    data = [(image_of(row, (40, 40)).float(), row) for row in range(4)]
    collator = collator_of(K, p=1.0)

    def lam(data) -> float:
        return float(collator(data)[1].amax())

    changed_label = [*data[:3], (data[3][0], 4)]
    changed_image = [(data[0][0] + 1, 0), *data[1:]]
    assert equal(collator(data), collator(list(data)))
    assert len({lam(data), lam(changed_label), lam(changed_image)}) == 3


@both
def test_the_state_of_torch_is_neither_read_nor_moved(collator_of):
    torch.manual_seed(0)
    state = torch.get_rng_state()
    first = collator_of(K)(samples_of(4))
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(1)
    assert equal(collator_of(K)(samples_of(4)), first)


@both
def test_survives_pickling(collator_of):
    collator = MixCollator([collator_of(K, p=1.0, alpha=0.3, seed=4)], seed=3)
    again = pickle.loads(pickle.dumps(collator))
    assert equal(again(samples_of(4)), collator(samples_of(4)))


def share_within(count: int, total: int, p: float) -> bool:
    return abs(count / total - p) < 5 * (p * (1 - p) / total) ** 0.5


@both
@pytest.mark.parametrize("per_sample", [False, True])
def test_p_is_the_share_of_images_mixed(collator_of, per_sample):
    collator = collator_of(K, p=0.3, size=999, per_sample=per_sample)
    mixes = [collator(samples_of(4, (2, 2), first)).mix for first in range(600)]
    if not per_sample:
        assert share_within(sum(mix is not None for mix in mixes), 600, 0.3)
        return
    # A lam of exactly 1 is too rare at 999 x 999 to be met here by chance.
    counts = [0 if mix is None else int((mix.lam < 1).sum()) for mix in mixes]
    assert share_within(sum(counts), 2400, 0.3)
    assert len(set(counts)) == 5


# Choosing


def choices_of(collator, batches: int = 600) -> Counter:
    kinds: Counter[str] = Counter()
    for first in range(batches):
        mix = collator(samples_of(2, (1, 1), first)).mix
        kinds["none" if mix is None else "mixup" if mix.box is None else "cutmix"] += 1
    return kinds


@pytest.mark.parametrize(("weights", "share"), [(None, 0.5), ((3, 1), 0.75), ((0, 0.1), 0.0)])
def test_collators_are_chosen_by_their_weights(weights, share):
    collators = [CutMixCollator(K, p=1.0, size=9), MixupCollator(K, p=1.0, size=9)]
    kinds = choices_of(MixCollator(collators, weights=weights))
    if share == 0:
        assert kinds == {"mixup": 600}
    else:
        assert share_within(kinds["cutmix"], 600, share)
        assert kinds["none"] == 0


def test_the_choice_and_the_draws_of_the_chosen_one_have_streams_of_their_own():
    fields = read_samples(samples_of(4))
    names = ("MixCollator", "CutMixCollator", "MixupCollator")
    assert len({_generator(0, name, fields).initial_seed() for name in names}) == 3


def test_the_choice_and_the_chosen_ones_p_are_independent():
    collators = [CutMixCollator(K, p=0.5, size=9), MixupCollator(K, p=0.5, size=9)]
    kinds = choices_of(MixCollator(collators))
    assert share_within(kinds["none"], 600, 0.5)
    assert share_within(kinds["cutmix"], 600, 0.25)
    assert share_within(kinds["mixup"], 600, 0.25)


def test_the_chosen_one_makes_the_batch():
    cut, mix = CutMixCollator(K, p=1.0), MixupCollator(K, p=1.0)
    for data in (samples_of(4), pairs_of(4, (4, 4), (8, 8)), [(torch.rand(3, 4, 4), 1)] * 4):
        assert equal(MixCollator([cut, mix], weights=[1, 0])(data), cut(data))
        assert equal(MixCollator([cut, mix], weights=[0, 1])(data), mix(data))


# Refusals


@both
@pytest.mark.parametrize(
    ("target", "error", "message"),
    [
        (-1, ValueError, "the target of row 7 is -1, unlabelled: mixing needs every label"),
        (K, ValueError, r"target of row 7 must be in 0\.\.4 for `num_classes`=5, got 5"),
        (-2, ValueError, r"target of row 7 must be in 0\.\.4 for `num_classes`=5, got -2"),
        (torch.tensor(-1), ValueError, "the target of row 7 is -1, unlabelled"),
        (2.0, TypeError, r"target of row 7 must be a class index or a \(5,\) float tensor, got 2"),
        (torch.eye(K).long()[0], TypeError, "target of row 7 must be a class index or a"),
        (torch.tensor(2.0), ValueError, r"row 7 must .* have shape \(5,\) .* got shape \(\)"),
        (torch.ones(4), ValueError, r"row 7 must .* have shape \(5,\) .* got shape \(4,\)"),
        ("hawk", TypeError, "target of row 7 must be .*, got 'hawk'"),
    ],
)
def test_wrong_targets_are_named(collator_of, target, error, message):
    samples = [*samples_of(2), Sample(image_of(0), target, 7)]
    with pytest.raises(error, match=message):
        collator_of(K)(samples)
    plain = [(sample.image, sample.target) for sample in samples]
    with pytest.raises(error, match=message.replace("row 7", "item 2 of the batch")):
        collator_of(K)(plain)


@both
@pytest.mark.parametrize("p", [0.0, 1.0])
def test_images_of_several_sizes_need_a_size(collator_of, p):
    message = r"must have one shape to be mixed here, got \(3, 8, 6\) and \(3, 9, 6\); .*`size`"
    with pytest.raises(ValueError, match=message):
        collator_of(K, p=p)([*samples_of(2), *samples_of(1, (9, 6))])
    pairs = [*pairs_of(2, (4, 4), (8, 6)), *pairs_of(1, (4, 4), (9, 6))]
    with pytest.raises(ValueError, match=message):
        collator_of(K, p=p)(pairs)


@both
@pytest.mark.parametrize(
    ("samples", "error", "message"),
    [
        ([], ValueError, "`samples` must hold at least one sample, got none"),
        ([*samples_of(1), *pairs_of(1, (4, 4), (8, 8))], TypeError, r"got Pair, Sample"),
        ([(image_of(0), 1, 2)], TypeError, r"all \(image, target\), got tuple"),
        ([image_of(0)], TypeError, r"all \(image, target\), got Tensor"),
        ([(image_of(0).numpy(), 1)], TypeError, r"an image must be a \(C, H, W\) tensor, got nd"),
        ([(image_of(0).int(), 1)], TypeError, r"must be uint8 or float, got torch.int32"),
        ([(image_of(0)[0], 1)], ValueError, r"must be \(C, H, W\), got shape \(8, 6\)"),
        ([(image_of(0), 1), (image_of(0) / 255, 1)], TypeError, r"must share a dtype, got .*uint8"),
    ],
)
def test_wrong_samples_are_refused(collator_of, samples, error, message):
    with pytest.raises(error, match=message):
        collator_of(K)(samples)
    with pytest.raises(error, match=message):
        MixCollator([collator_of(K)])(samples)


@both
def test_wrong_arguments_are_refused(collator_of):
    for options, message in [
        ({"num_classes": 0}, "`num_classes` must be >= 1, got 0"),
        ({"alpha": -1.0}, "`alpha` must be >= 0.0, got -1.0"),
        ({"p": 1.5}, "`p` must be >= 0.0 and <= 1.0, got 1.5"),
        ({"seed": -1}, "`seed` must be >= 0, got -1"),
        ({"size": (0, 4)}, r"`size` must be \(height, width\) with both > 0"),
    ]:
        with pytest.raises(ValueError, match=message):
            collator_of(**{"num_classes": K, **options})
    with pytest.raises(TypeError, match="`size` needs samples of type Sample or Pair"):
        collator_of(K, size=8)([(image_of(0), 1)])


def test_collators_that_do_not_fit_together_are_refused():
    cut, mix = CutMixCollator(K), MixupCollator(K)
    for collators, weights, message in [
        ([], None, "`collators` must hold at least one"),
        ([cut, MixupCollator(K + 1)], None, r"must share one `num_classes`, got \[5, 6\]"),
        ([cut, MixupCollator(K, size=8)], None, r"must share one `size`, got \[None, \(8, 8\)\]"),
        ([cut, mix], [1], r"`weights` must be one for each of 2 collators, got \[1\]"),
        ([cut, mix], [1, -1], r"`weights\[1\]` must be >= 0.0, got -1"),
        ([cut, mix], [0, 0], r"`weights` must have a finite sum > 0, got \[0, 0\]"),
    ]:
        with pytest.raises(ValueError, match=message):
            MixCollator(collators, weights=weights)
    with pytest.raises(
        TypeError, match="must be CutMixCollators and MixupCollators, got <function"
    ):
        MixCollator([cut, lambda samples: samples])
