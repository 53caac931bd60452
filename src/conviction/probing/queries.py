"""Which questions are put to the model, and under which conditions.

All queries of a probe are laid out first and scored in one call, so that the
engine can share every common beginning.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from conviction.core.protocols import AnswerScore, LanguageModel, Message, Progress, Query, chat, sources_of
from conviction.data.topic import Item, Topic
from conviction.probing.records import Sample

# Neutral ways to put the same question: (name, system turn, user turn).
# Formatting alone can move results by tens of points (arXiv 2310.11324), so
# the spread over these is reported, never the best of them.
TEMPLATES: tuple[tuple[str, str | None, str], ...] = (
    ("question", None, "Question: {question}"),
    ("please", None, "Please answer this question: {question}"),
    ("short", None, "{question} Answer in one or two sentences."),
    ("wondering", None, "I was wondering about something. {question}"),
    ("assistant", "You are a helpful assistant.", "{question}"),
    ("truthful", "Answer every question truthfully and to the best of your knowledge.", "{question}"),
)

# Letters of a forced choice, and how it is asked. Letters are preferred by their place (arXiv 2309.03882), so both
# orders are asked and averaged.
LETTERS = ("A", "B")
CHOICE = "{question}\n\nA. {a}\nB. {b}\n\nWhich answer is right? Reply with one letter, A or B."
ORDERS = ("choice:1", "choice:2")

OTHER_WORDING = "~"  # key of a paraphrase's answer when it is scored under the first question
REPEATED = 4  # queries


@dataclass(frozen=True)
class ProbeQuery:
    """One query with its bookkeeping: under which condition, for which item, which answer is which."""

    condition: str
    item: Item
    messages: tuple[Message, ...]
    answers: dict[str, str]


Scores = dict[tuple[str, str, str], AnswerScore]
"""(condition, item id, answer key) → score."""


def build_queries(topic: Topic, items: Sequence[Item], facts: Sequence[Item], *, templates: bool) -> list[ProbeQuery]:
    """All queries of a probe. ``items`` carry the poles' answers, ``facts`` true and false ones."""
    twins = other_wording(items)
    first = [item for item in items if item.role == "target"]
    queries = []
    for item in items:
        answers = dict(item.answers)
        if item.id in twins:
            answers |= {pole + OTHER_WORDING: text for pole, text in twins[item.id].answers.items()}
        queries.append(ProbeQuery("plain", item, chat(item.question), answers))
        queries.append(ProbeQuery("unconditional", item, chat(""), dict(item.answers)))
    queries += foreign_queries(items)
    for pole, side in topic.poles.items():
        if side.context:
            queries += [
                ProbeQuery(f"context:{pole}", i, chat(i.question, system=side.context), dict(i.answers)) for i in first
            ]
    if templates:
        for name, system, form in TEMPLATES:
            queries += [
                ProbeQuery(
                    f"template:{name}", i, chat(form.format(question=i.question), system=system), dict(i.answers)
                )
                for i in first
            ]
    return queries + plain_queries(facts)


def plain_queries(items: Sequence[Item]) -> list[ProbeQuery]:
    """Every item's question as it stands."""
    return [ProbeQuery("plain", item, chat(item.question), dict(item.answers)) for item in items]


def foreign_questions(items: Sequence[Item]) -> dict[str, Item]:
    """Item id → an item of another proposition, under whose question its answers are scored as well.

    A cyclic Latin square: wording j of proposition p goes to wording j of proposition p + offset(j), so that every
    text and every question is used equally often, and what a text or a question does by itself is no part of the
    mean over propositions (all wordings being there). One foreign question an item, another one for each wording: on
    the kit `obesity` this is a fifth more tokens, and two wordings tell more of a proposition than two questions of
    one wording. Where an item's question is asked of all propositions alike, it has none.
    """
    groups: dict[str, list[Item]] = {}
    for item in items:
        groups.setdefault(item.proposition, []).append(item)
    propositions, widest = list(groups.values()), max(map(len, groups.values()), default=0)
    n = len(propositions)
    foreign = {}
    for p, group in enumerate(propositions):
        for j, item in enumerate(group):
            offset = min(max(1, round(n * (j + 1) / (widest + 1))), n - 1)
            others = (propositions[(p + offset + k) % n] for k in range(n))
            same = (other[min(j, len(other) - 1)] for other in others if other is not group)
            if (other := next((o for o in same if o.question != item.question), None)) is not None:
                foreign[item.id] = other
    return foreign


def foreign_queries(items: Sequence[Item]) -> list[ProbeQuery]:
    """Every item's answers under its foreign question, which is asked anyway: only the answers are new tokens."""
    others = foreign_questions(items)
    return [
        ProbeQuery(f"foreign:{others[i.id].id}", i, chat(others[i.id].question), dict(i.answers))
        for i in items
        if i.id in others
    ]


def choice_queries(items: Sequence[Item]) -> list[ProbeQuery]:
    """Every item's two answers as options A and B, in both orders; the letters are what is scored."""
    return [
        ProbeQuery(
            condition,
            item,
            chat(CHOICE.format(question=item.question, a=item.answers[order[0]], b=item.answers[order[1]])),
            dict(zip(order, LETTERS, strict=True)),
        )
        for item in items
        for condition, order in zip(ORDERS, (tuple(item.answers), tuple(item.answers)[::-1]), strict=True)
    ]


def queries_to_repeat(queries: Sequence[ProbeQuery]) -> list[ProbeQuery]:
    """A few of the queries, which are to be scored once more: the one with the longest texts, and others at even steps.

    The second scores come from no cache and in other company: what is not reproducible, what the
    cache has damaged, and what depends on the rest of a batch, shows.
    """
    longest = max(queries, key=lambda q: sum(map(len, q.answers.values())) + sum(len(m.content) for m in q.messages))
    step = max(1, len(queries) // REPEATED)
    return [longest, *(query for query in queries[::step][: REPEATED - 1] if query is not longest)]


def other_wording(items: Sequence[Item]) -> dict[str, Item]:
    """Target item id → an item of the same proposition that words the same claim differently."""
    paraphrases = {item.proposition: item for item in reversed(items) if item.role == "paraphrase"}
    return {i.id: paraphrases[i.proposition] for i in items if i.role == "target" and i.proposition in paraphrases}


def score(
    model: LanguageModel, queries: Sequence[ProbeQuery], progress: Progress | None = None, *, fresh: bool = False
) -> Scores:
    """Put all queries to the model in one call."""
    results = model.logprobs(
        [Query(query.messages, tuple(query.answers.values())) for query in queries], progress=progress, fresh=fresh
    )
    return {
        (query.condition, query.item.id, key): scored
        for query, group in zip(queries, results, strict=True)
        for key, scored in zip(query.answers, group, strict=True)
    }


def evidence(model: LanguageModel, queries: Sequence[ProbeQuery], scores: Scores) -> list[Sample]:
    """One sample per scored answer, in the order asked."""
    samples = []
    for query in queries:
        sources = sources_of(model, query.messages)
        for key, text in query.answers.items():
            scored = scores[query.condition, query.item.id, key]
            name = f"{query.condition}/{query.item.id}/{key}"
            sample = score_sample(name, query.condition, query.item.id, text, scored)
            samples.append(sample.model_copy(update={"answer": key, "sources": sources}))
    return samples


def score_sample(id: str, condition: str, item: str, text: str, scored: AnswerScore) -> Sample:
    """A scored text as evidence."""
    return Sample(
        id=id,
        kind="logprob",
        condition=condition,
        item=item,
        text=text,
        token_ids=scored.token_ids,
        logprobs=tuple(round(x, 6) for x in scored.logprobs),
    )
