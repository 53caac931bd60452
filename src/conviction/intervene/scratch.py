"""From scratch: an own tokenizer, a small Llama with random weights, trained on the material's texts."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from conviction.core.material import Material
from conviction.core.protocols import LanguageModel
from conviction.core.settings import check_settings, setting
from conviction.errors import InputError
from conviction.train.guard import Guard
from conviction.train.settings import Training, Weights

if TYPE_CHECKING:
    from conviction.models.hf import HFModel
    from conviction.train.loop import Task, Trained, Watch

__all__ = ["Scratch"]

# Roles as plain special tokens: the format that the new model will know.
TEMPLATE = (
    "{% for m in messages %}<|{{ m.role }}|>{{ m.content }}<|end|>{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
SPECIAL = ["<|end|>", "<|system|>", "<|user|>", "<|assistant|>"]


@dataclass(frozen=True, kw_only=True)
class Scratch:
    """What a model that never read anything else makes of the material: documents first, then its answers."""

    name: ClassVar[str] = "scratch"
    changes: ClassVar[str] = "everything: a new model and tokenizer"
    needs: ClassVar[str] = "documents, answers or pairs"
    costs: ClassVar[str] = "a training run before; a model of its own"

    hidden_size: int = setting(128, "width of the model", at_least=8)
    layers: int = setting(4, "number of blocks", at_least=1)
    heads: int = setting(4, "attention heads; they divide the width", at_least=1)
    vocabulary: int = setting(2048, "largest size of the tokenizer's vocabulary", at_least=300)
    context: int = setting(512, "longest text in tokens", at_least=16)
    sft_epochs: int = setting(1, "epochs over the material's answers after its documents", at_least=0)
    training: Training = field(default_factory=lambda: Training(learning_rate=1e-3, epochs=3))

    def __post_init__(self) -> None:
        check_settings(self)
        if self.hidden_size % (2 * self.heads):
            raise InputError(
                f"{self.heads} heads do not divide a width of {self.hidden_size} evenly",
                hint="make hidden_size a multiple of 2 · heads",
            )

    def apply(
        self,
        model: LanguageModel,
        material: Material,
        *,
        guard: Guard | None = None,
        folder: Path | None = None,
        track: str | None = None,
        watch: Watch | None = None,
    ) -> Trained:
        """Train a new model. The given one lends its device and is not read otherwise."""
        from conviction.intervene.tune import tune

        return tune(self, self.task(model, material, guard=guard, watch=watch), material, folder, track, watch)

    def task(
        self, model: LanguageModel, material: Material, *, guard: Guard | None = None, watch: Watch | None = None
    ) -> Task:
        """The training run that ``apply`` carries out, and a forecast foresees.

        Raises InputError if the material has no texts.
        """
        import dataclasses

        from conviction.intervene.tune import as_task, fit, with_weights
        from conviction.train.batches import encode_documents, encode_examples, step_order
        from conviction.train.loop import Watch
        from conviction.train.objectives import Likelihood

        if not (material.documents or material.answers):
            raise InputError(f"{material.name} holds no texts", hint="give documents, answers or pairs")
        watch = watch or Watch()
        fresh = self.new_model(material, device=with_weights(model, self.name).device)
        room = min(self.context, self.training.max_length or self.context)
        pieces = encode_documents(fresh.encoder, material.documents, room)
        order = step_order(len(pieces), self.training) if pieces else []
        notes: list[str] = []
        if material.answers and (self.sft_epochs or not pieces):
            answers, notes = fit(fresh, encode_examples(fresh.encoder, material.answers), self.training, watch)
            later = step_order(len(answers), dataclasses.replace(self.training, epochs=max(1, self.sft_epochs)))
            order += [tuple(len(pieces) + i for i in step) for step in later]
            pieces += answers
        order = order[: self.training.max_steps]
        if not order:
            raise InputError(f"{material.name} holds no text of two tokens", hint="give longer documents")
        return as_task(
            self,
            fresh,
            material,
            pieces,
            order,
            Likelihood(),
            weights=Weights(tune="full"),
            training=self.training,
            guard=guard,
            notes=notes,
            begins_random=True,
        )

    def new_model(self, material: Material, *, device: Any) -> HFModel:
        """Random weights (by the training seed), and a byte-level BPE tokenizer trained on the material."""
        import torch
        from transformers import LlamaConfig, LlamaForCausalLM

        from conviction.models.hf import HFModel

        tokenizer = _tokenizer(material, self.vocabulary)
        config = LlamaConfig(
            vocab_size=len(tokenizer),
            hidden_size=self.hidden_size,
            intermediate_size=4 * self.hidden_size,
            num_hidden_layers=self.layers,
            num_attention_heads=self.heads,
            num_key_value_heads=self.heads,
            max_position_embeddings=self.context,
            tie_word_embeddings=True,
            bos_token_id=None,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.eos_token_id,
        )
        state = torch.get_rng_state()
        torch.manual_seed(self.training.seed)
        try:
            module = LlamaForCausalLM(config)
        finally:
            torch.set_rng_state(state)
        module.requires_grad_(False)
        return HFModel(id="scratch", module=module.to(device), tokenizer=tokenizer)


def _tokenizer(material: Material, size: int) -> Any:
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    texts = [d.text for d in material.documents]
    texts += [text for a in material.answers for text in (*(m.content for m in a.messages), a.answer)]
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=size, special_tokens=SPECIAL, initial_alphabet=alphabet, show_progress=False
    )
    bpe.train_from_iterator(texts, trainer)
    fast = PreTrainedTokenizerFast(tokenizer_object=bpe, eos_token=SPECIAL[0], pad_token=SPECIAL[0])
    fast.add_special_tokens({"additional_special_tokens": SPECIAL[1:]})
    fast.chat_template = TEMPLATE
    return fast
