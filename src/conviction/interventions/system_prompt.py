"""A system prompt: the strongest change that leaves the weights alone, and the weakest that lasts."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from conviction.core.context import RunContext
from conviction.core.options import fill_fields, flat_fields, setting
from conviction.core.protocols import LanguageModel, Query, chat
from conviction.data.training_data import TrainingData
from conviction.errors import InputError
from conviction.interventions.context_text import check_one_source, context_text
from conviction.interventions.records import Outcome, PlaceboKind, SearchSpace

__all__ = ["SystemPrompt"]


@flat_fields
@dataclass(frozen=True, kw_only=True)
class SystemPrompt:
    """The target pole's context, or a text of the user's, before every conversation."""

    name: ClassVar[str] = "system_prompt"
    changes: ClassVar[str] = "the prompt; weights stay"
    needs: ClassVar[str] = "a context (a topic's target has one), or text or file"
    costs: ClassVar[str] = "nothing before; the text's tokens with every conversation"
    trains: ClassVar[bool] = False
    forecastable: ClassVar[bool] = False
    cost_rank: ClassVar[int] = 10
    placebo: ClassVar[PlaceboKind | None] = None
    search: ClassVar[SearchSpace] = {}

    text: str | None = setting(None, "the system turn; none: the target pole's context")
    file: str | None = setting(None, "a file with the system turn")

    def __init__(self, **fields: Any) -> None:
        fill_fields(self, fields)
        check_one_source(self.text, self.file)

    def apply(self, model: LanguageModel, data: TrainingData, ctx: RunContext | None = None) -> Outcome:
        """Put the text before every conversation; the given model stays as it is.

        Raises InputError if there is no text, or it leaves no room for a question.
        """
        from conviction.models.prompted import PromptedModel, SystemTurn, system_notes

        ctx = ctx or RunContext()
        text = context_text(data, text=self.text, file=self.file)
        moved = PromptedModel(f"{model.id}+{self.name}", model, SystemTurn(text))
        if not moved.fits(Query(chat("?"), ()), room=1):
            raise InputError(f"the system prompt does not fit {model.id}'s context", hint="shorten it")
        if ctx.model_path is not None:
            moved = moved.saved_in(ctx.model_path)
        return Outcome.of(
            self,
            model,
            data,
            settings={"system": text},
            verdict="in place",
            report=(("system prompt", f"{len(text.split())} words"),),
            notes=system_notes(model),
            model=moved,
        )
