"""What the model says when it answers freely: greedy answers to a few questions."""

from __future__ import annotations

from collections.abc import Sequence

from conviction.core.protocols import Generation, LanguageModel, Progress, chat, sources_of
from conviction.data.topic import Item
from conviction.probing.records import Sample

MAX_NEW_TOKENS = 96


def sample_answers(
    model: LanguageModel,
    items: Sequence[Item],
    *,
    max_new_tokens: int = MAX_NEW_TOKENS,
    progress: Progress | None = None,
) -> list[tuple[Sample, Generation]]:
    """One greedy answer per item, as evidence and as the model gave it."""
    answers = model.generate([chat(item.question) for item in items], max_new_tokens=max_new_tokens, progress=progress)
    return [
        (
            Sample(
                id=f"sampled/{item.id}",
                kind="generation",
                condition="plain",
                item=item.id,
                text=answer.text,
                token_ids=answer.token_ids,
                sources=sources_of(model, chat(item.question)),
            ),
            answer,
        )
        for item, answer in zip(items, answers, strict=True)
    ]
