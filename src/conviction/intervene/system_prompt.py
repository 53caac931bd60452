"""A system prompt: the strongest change that leaves the weights alone, and the weakest that lasts."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from conviction.core.applied import Applied, record_applied, untracked
from conviction.core.material import Material
from conviction.core.protocols import LanguageModel, Query, chat
from conviction.core.settings import check_settings, setting
from conviction.core.storage import storage_errors, user_path
from conviction.errors import InputError
from conviction.train.guard import Guard

if TYPE_CHECKING:
    from conviction.train.loop import Watch

__all__ = ["SystemPrompt"]


@dataclass(frozen=True, kw_only=True)
class SystemPrompt:
    """The target pole's context, or a text of the user's, before every conversation."""

    name: ClassVar[str] = "system_prompt"
    changes: ClassVar[str] = "the prompt; weights stay"
    needs: ClassVar[str] = "a context (a topic's target has one), or text or file"
    costs: ClassVar[str] = "nothing before; the text's tokens with every conversation"

    text: str | None = setting(None, "the system turn; none: the target pole's context")
    file: str | None = setting(None, "a file with the system turn")

    def __post_init__(self) -> None:
        check_settings(self)
        if self.text is not None and self.file is not None:
            raise InputError("there is both a text and a file", hint="give one of them")

    def apply(
        self,
        model: LanguageModel,
        material: Material,
        *,
        guard: Guard | None = None,
        folder: Path | None = None,
        track: str | None = None,
        watch: Watch | None = None,
    ) -> Applied:
        """Put the text before every conversation; the given model stays as it is.

        Raises InputError if there is no text, or it leaves no room for a question.
        """
        from conviction.models.prompted import Prompted, System

        del guard, watch  # neither weights nor answers are at risk
        untracked(self.name, track)
        text = self._read(material)
        moved = Prompted(f"{model.id}+{self.name}", model, System(text))
        if not moved.fits(Query(chat("?"), ()), room=1):
            raise InputError(f"the system prompt does not fit {model.id}'s context", hint="shorten it")
        moved = moved.kept(folder and folder / "model")
        words = len(text.split())
        applied = Applied(
            model=moved, settings={"system": text}, verdict="in place", report=(("system prompt", f"{words} words"),)
        )
        return record_applied(self, applied, model, material, folder)

    def _read(self, material: Material) -> str:
        text = self.text
        if self.file is not None:
            with storage_errors(f"reading {self.file}"):
                text = user_path(self.file).read_text(encoding="utf-8")
        text = (material.context if text is None else text).strip()
        if not text:
            raise InputError(
                f"there is no text to put before conversations: {material.name} holds no context",
                hint="give -o text=… or -o file=…, or a topic whose target has a context",
            )
        return text
