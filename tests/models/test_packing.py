"""The planner: nothing lost, nothing computed twice, no matter the order."""

from __future__ import annotations

import random

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from conviction.models.engine.packing import plan

ids = st.lists(st.integers(0, 3), min_size=1, max_size=12).map(tuple)
requests = st.lists(st.tuples(ids, st.lists(ids, min_size=1, max_size=4)), min_size=1, max_size=12)


def laid_out(blocks):
    """Every (prompt, answer) with the token sequence its predictions really run along."""
    result = {}
    for block in blocks:
        for pack in block.packs:
            for tree in pack.trees:
                for row, pairs in tree.answers.items():
                    path, node = [], pairs[-1][0]
                    while node >= 0:
                        path.append(tree.tokens[node])
                        node = tree.parents[node]
                    context = block.prefix + tuple(reversed(path))
                    result[row] = (context, tuple(t for _, t in pairs))
    return result


def positions(blocks):
    """Token positions that go through the model: every prefix once, and what its packs hold."""
    return sum(len(block.prefix) + sum(len(pack.tokens) for pack in block.packs) for block in blocks)


@given(requests, st.integers(1, 40), st.sampled_from([1, 64]))
def test_every_answer_is_predicted_along_its_own_text(work, budget, hidden):
    result = laid_out(plan(work, token_budget=budget, hidden_size=hidden))
    expected = {(p, a) for p, answers in work for a in answers}
    assert set(result) == expected
    for (prompt, answer), (context, targets) in result.items():
        assert context == prompt + answer[:-1]
        assert targets == answer


@pytest.mark.long
@given(requests, st.randoms(use_true_random=False))
def test_order_of_requests_and_answers_does_not_matter(work, rng: random.Random):
    shuffled = [(p, rng.sample(a, len(a))) for p, a in work]
    rng.shuffle(shuffled)
    assert plan(work, token_budget=32, hidden_size=8) == plan(shuffled, token_budget=32, hidden_size=8)


@given(requests)
def test_never_more_tokens_than_separate_rows(work):
    naive = sum(len(p) + len(a) - 1 for p, a in {(p, a) for p, answers in work for a in answers})
    # at so wide a model, what is computed again is the beginning of a prompt that stands alone
    assert positions(plan(work, token_budget=64, hidden_size=4096)) <= naive


@given(requests, st.integers(1, 40))
def test_budget_is_kept_except_by_single_trees(work, budget):
    for block in plan(work, token_budget=budget, hidden_size=64):
        for pack in block.packs:
            assert len(pack.trees) == 1 or len(pack.tokens) <= budget
            assert len(pack.tokens) == len(pack.depths)


def test_shared_context_is_computed_once():
    context = tuple(range(400))
    work = [((*context, 500 + i), [(1, 2), (3, 4)]) for i in range(20)]
    (block,) = plan(work, token_budget=1024, hidden_size=576)
    assert block.prefix == context
    assert positions([block]) == 400 + 20 * 3  # the question's token and one node per answer


def test_prompts_that_go_on_alike_share_a_tree():
    question = tuple(range(40))
    work = [((*question, 50 + i, *range(60, 70)), [(1,), (2,)]) for i in range(4)]
    work += [((100 + i, *range(200, 230)), [(1,), (2,)]) for i in range(8)]  # of these, nothing
    (block,) = plan(work, token_budget=1024, hidden_size=576)
    sizes = sorted(len(tree.tokens) for pack in block.packs for tree in pack.trees)
    assert sizes == [31] * 8 + [40 + 4 * 11]


def test_prompts_that_each_begin_another_do_not_nest_without_end():
    work = [(tuple(range(n)), [(1, 2)]) for n in range(1, 1500)]
    blocks = plan(work, token_budget=1024, hidden_size=576)
    assert len(laid_out(blocks)) == len(work)


def test_two_contexts_give_two_blocks():
    work = [((c, *range(600), 900 + i), [(1,), (2,)]) for c in (7, 8) for i in range(10)]
    assert sorted(len(b.prefix) for b in plan(work, token_budget=1024, hidden_size=576)) == [601, 601]


def test_common_beginning_of_answers_is_shared():
    (block,) = plan([((1, 2), [(5, 6, 7), (5, 6, 8), (5, 6, 8, 9)])], token_budget=64, hidden_size=64)
    (tree,) = block.packs[0].trees
    assert tree.tokens == [1, 2, 5, 6, 8]


def test_ancestors_are_the_path_to_the_root():
    (block,) = plan([((1,), [(5, 6), (7, 8)])], token_budget=64, hidden_size=64)
    (tree,) = block.packs[0].trees
    assert tree.tokens == [1, 5, 7]
    assert (tree.ancestors() == np.array([[1, 0, 0], [1, 1, 0], [1, 0, 1]], dtype=bool)).all()


def test_many_answers_to_one_prompt_are_cut_into_trees_of_bounded_width():
    answers = [tuple(range(10 * i, 10 * i + 10)) for i in range(100)]
    trees = [t for b in plan([((1,), answers)], token_budget=4096, hidden_size=64) for p in b.packs for t in p.trees]
    assert max(len(t.tokens) for t in trees) <= 70
    assert sum(len(t.answers) for t in trees) == 100


@pytest.mark.parametrize("work", [[((), [(1,)])], [((1,), [()])]])
def test_empty_sequences_are_refused(work):
    with pytest.raises(ValueError, match="at least one token"):
        plan(work, token_budget=8, hidden_size=8)
