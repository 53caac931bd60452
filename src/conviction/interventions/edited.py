"""What ROME and MEMIT have in common: from facts, through what each of them writes, to an outcome.

Such a class states ``text`` and ``edit``, and takes ``apply`` from here.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

from conviction.core.context import RunContext
from conviction.core.protocols import LanguageModel
from conviction.data.training_data import TrainingData
from conviction.interventions.records import Outcome

if TYPE_CHECKING:
    from conviction.editing.session import Edit, Session

__all__ = ["Edits", "apply_edit"]


class Edits(Protocol):
    """What an intervention that writes facts states besides its traits."""

    @property
    def name(self) -> str: ...
    @property
    def text(self) -> str | None: ...

    def edit(self, session: Session) -> Edit:
        """Write the session's facts, as far as the guard lets it; the session's model stays as it is."""
        ...


def apply_edit(self: Edits, model: LanguageModel, data: TrainingData, ctx: RunContext | None = None) -> Outcome:
    """Write the data's facts; the given model stays as it is.

    Raises InputError without facts, or for an architecture without the expected MLP.
    """
    from conviction.editing.session import begin, finish
    from conviction.interventions.training_run import with_weights

    loaded = with_weights(model, self.name)
    session = begin(loaded, data, text=self.text, ctx=ctx or RunContext())
    edit = self.edit(session)
    result = finish(session, edit, id=f"{loaded.id}+{self.name}")
    return Outcome.of(self, loaded, data, settings={**edit.settings, "where": edit.where}, **vars(result))
