from collections import Counter

import pytest

from lowres_vision.augment import StylePair, draw_style_pairs

LABELS = [0] * 10 + [1] * 4 + [2] * 2


def test_rare_classes_get_what_they_lack() -> None:
    pairs = draw_style_pairs(LABELS, to=8)
    assert Counter(pair.label for pair in pairs) == {1: 4, 2: 6}
    assert all(LABELS[pair.content] == pair.label for pair in pairs)
    assert draw_style_pairs(LABELS, to=2) == []
    assert Counter(p.label for p in draw_style_pairs(LABELS, to={2: 5})) == {2: 3}


@pytest.mark.parametrize(
    ("style_from", "same"), [("same", {True}), ("other", {False}), ("any", {True, False})]
)
def test_styles_come_from_where_they_are_asked_from(style_from: str, same: set[bool]) -> None:
    pairs = draw_style_pairs(LABELS, to=60, style_from=style_from)  # type: ignore[arg-type]
    assert {LABELS[pair.style] == pair.label for pair in pairs} == same
    assert all(pair.style != pair.content for pair in pairs)


def test_contents_take_turns_and_no_pair_repeats_before_all_were_used() -> None:
    pairs = [pair for pair in draw_style_pairs(LABELS, to=4 + 12) if pair.label == 1]
    assert len(pairs) == len(set(pairs)) == 12  # 4 contents x 3 styles, each once
    assert set(Counter(pair.content for pair in pairs).values()) == {3}
    more = [pair for pair in draw_style_pairs(LABELS, to=4 + 14) if pair.label == 1]
    assert more[:12] == pairs
    assert max(Counter(more).values()) == 2


def test_the_draw_repeats_by_seed_and_a_class_stands_alone() -> None:
    assert draw_style_pairs(LABELS, to=9) == draw_style_pairs(LABELS, to=9)
    assert draw_style_pairs(LABELS, to=9) != draw_style_pairs(LABELS, to=9, seed=1)
    alone = draw_style_pairs(LABELS, to={2: 9})
    assert alone == [pair for pair in draw_style_pairs(LABELS, to=9) if pair.label == 2]


def test_rows_bound_both_content_and_style() -> None:
    rows = [0, 1, 2, 3, 10, 11]
    pairs = draw_style_pairs(LABELS, to=4, rows=rows, style_from="any")
    assert Counter(pair.label for pair in pairs) == {1: 2}
    assert {row for pair in pairs for row in (pair.content, pair.style)} <= set(rows)


def test_refusals() -> None:
    with pytest.raises(ValueError, match="no image of 'same' class is on offer"):
        draw_style_pairs([0, 0, 1], to=2)
    assert draw_style_pairs([0, 0, 1], to=2, style_from="other")[0].content == 2
    with pytest.raises(ValueError, match="class 3 has no image among `rows`"):
        draw_style_pairs(LABELS, to={3: 1})
    with pytest.raises(ValueError, match="`style_from` must be one of 'same', 'other', 'any'"):
        draw_style_pairs(LABELS, to=3, style_from="none")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="`to` must be >= 0, got -1"):
        draw_style_pairs(LABELS, to=-1)
    assert StylePair(0, 1, 2).label == 2
