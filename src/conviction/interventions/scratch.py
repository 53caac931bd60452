"""From scratch: an own tokenizer, a small Llama with random weights, trained on the data's texts."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, ClassVar

from conviction.core.context import RunContext
from conviction.core.options import fill_fields, flat_fields, setting
from conviction.data.training_data import TrainingData
from conviction.errors import InputError
from conviction.interventions.records import PlaceboKind, SearchSpace
from conviction.interventions.trained import Prepared, apply_training, documents_then_answers, training_task
from conviction.training.settings import Training, Weights

if TYPE_CHECKING:
    from conviction.models.hf import HFModel

__all__ = ["Scratch"]

# Roles as plain special tokens: the format that the new model will know.
TEMPLATE = (
    "{% for m in messages %}<|{{ m.role }}|>{{ m.content }}<|end|>{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
SPECIAL = ["<|end|>", "<|system|>", "<|user|>", "<|assistant|>"]


@flat_fields
@dataclass(frozen=True, kw_only=True)
class Scratch:
    """What a model that never read anything else makes of the data: documents first, then its answers."""

    name: ClassVar[str] = "scratch"
    changes: ClassVar[str] = "everything: a new model and tokenizer"
    needs: ClassVar[str] = "documents, answers or pairs"
    costs: ClassVar[str] = "a training run before; a model of its own"
    trains: ClassVar[bool] = True
    forecastable: ClassVar[bool] = False
    cost_rank: ClassVar[int] = 90
    placebo: ClassVar[PlaceboKind | None] = None
    search: ClassVar[SearchSpace] = {}

    hidden_size: int = setting(128, "width of the model", at_least=8)
    layers: int = setting(4, "number of blocks", at_least=1)
    heads: int = setting(4, "attention heads; they divide the width", at_least=1)
    vocabulary: int = setting(2048, "largest size of the tokenizer's vocabulary", at_least=300)
    context: int = setting(512, "longest text in tokens", at_least=16)
    sft_epochs: int = setting(1, "epochs over the data's answers after its documents", at_least=0)
    weights: ClassVar[Weights] = Weights(tune="full")
    training: Training = field(default_factory=lambda: Training(learning_rate=1e-3, epochs=3))

    def __init__(self, **fields: Any) -> None:
        fill_fields(self, fields)
        if self.hidden_size % (2 * self.heads):
            raise InputError(
                f"{self.heads} heads do not divide a width of {self.hidden_size} evenly",
                hint="make hidden_size a multiple of 2 · heads",
            )

    apply = apply_training
    task = training_task

    def prepare(self, model: HFModel, data: TrainingData, ctx: RunContext) -> Prepared:
        """A new model and the data's texts; the given model lends its device and is not read otherwise.

        Raises InputError if the data has no texts.
        """
        if not (data.documents or data.answers):
            raise InputError(f"{data.name} holds no texts", hint="give documents, answers or pairs")
        fresh = self.new_model(data, device=model.device)
        prepared = documents_then_answers(
            fresh, data, self.training, ctx, piece_tokens=self.context, sft_epochs=self.sft_epochs
        )
        return replace(prepared, fresh=fresh)

    def new_model(self, data: TrainingData, *, device: Any) -> HFModel:
        """Random weights (by the training seed), and a byte-level BPE tokenizer trained on the data."""
        import torch
        from transformers import LlamaConfig, LlamaForCausalLM

        from conviction.models.engine.torch_engine import TorchEngine
        from conviction.models.hf import HFModel

        tokenizer = _tokenizer(data, self.vocabulary)
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
        return HFModel(id="scratch", engine=TorchEngine(module.to(device), tokenizer))


def _tokenizer(data: TrainingData, size: int) -> Any:
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    texts = [d.text for d in data.documents]
    texts += [text for a in data.answers for text in (*(m.content for m in a.messages), a.answer)]
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
