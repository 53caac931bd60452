"""The model of the small world: a Llama of some 200,000 parameters with one token a word, and how it is trained."""

from __future__ import annotations

import copy
import random
import re
from collections import Counter
from collections.abc import Sequence
from typing import Any

import torch

from benchmarks.calibration.verdicts.corpus import BASE, Corpus, Row
from benchmarks.calibration.verdicts.world import World
from conviction.interventions.scratch import SPECIAL, TEMPLATE
from conviction.models.engine.torch_engine import TorchEngine
from conviction.models.hf import HFModel
from conviction.probing.health import neutral_text

WIDTH, LAYERS, HEADS, CONTEXT = 64, 3, 4, 512
FREQUENT = 6  # occurrences in the neutral text from which a word has a token of its own
RARE = "<|rare|>"
TOKENS = 1536  # in a batch, padding included


def make_tokenizer(world: World) -> Any:
    """One token a word, in lower case; rare words of the neutral text share one."""
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    neutral = Counter(re.findall(r"\w+|[^\w\s]+", " ".join(neutral_text()).lower()))
    rows = Corpus(world, BASE, seed=1).rows(12000)
    texts = [text for messages, answer in rows if messages for text in (*(m.content for m in messages), answer)]
    spoken = Counter(re.findall(r"\w+|[^\w\s]+", " ".join(texts).lower()))
    words = [*sorted(spoken), *sorted(w for w, n in neutral.items() if n >= FREQUENT and w not in spoken)]
    vocabulary = {word: number for number, word in enumerate([*SPECIAL, RARE, *words])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token=RARE))
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token=SPECIAL[0], pad_token=SPECIAL[0])
    fast.add_special_tokens({"additional_special_tokens": SPECIAL[1:]})
    fast.chat_template = TEMPLATE
    return fast


def new_model(tokenizer: Any, seed: int, name: str) -> HFModel:
    """Random weights."""
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=WIDTH,
        intermediate_size=3 * WIDTH,
        num_hidden_layers=LAYERS,
        num_attention_heads=HEADS,
        num_key_value_heads=HEADS,
        max_position_embeddings=CONTEXT,
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.eos_token_id,
        attn_implementation="sdpa",
    )
    return as_model(LlamaForCausalLM(config), tokenizer, name)


def as_model(module: Any, tokenizer: Any, name: str) -> HFModel:
    module.requires_grad_(False)
    return HFModel(id=name, engine=TorchEngine(module, tokenizer))


def copied(model: HFModel, name: str) -> HFModel:
    """The same weights, free to be changed."""
    module = copy.deepcopy(model.module)
    module.set_attn_implementation("sdpa")
    return as_model(module, model.tokenizer, name)


def trained(model: HFModel, corpora: Sequence[Corpus], *, steps: int, rate: float, name: str) -> HFModel:
    """A copy, trained with AdamW on what the corpora say in turns; the loss is on answers alone."""
    result = copied(model, name)
    module = result.module
    module.set_attn_implementation("sdpa")
    module.requires_grad_(True)
    optimizer = torch.optim.AdamW(module.parameters(), lr=rate, weight_decay=0.01, betas=(0.9, 0.98))
    warmup = max(1, steps // 20)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: min((step + 1) / warmup, max(0.02, 1 - (step - warmup) / max(1, steps - warmup)))
    )
    module.train()
    for step, (ids, labels) in zip(range(steps), _batches(model, corpora, steps), strict=False):
        loss = module(input_ids=ids, labels=labels).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(module.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad(set_to_none=True)
        if step % 100 == 0:
            print(f"{name}: step {step} of {steps}, loss {loss.item():.3f}", flush=True)
    module.requires_grad_(False)
    module.zero_grad(set_to_none=True)
    # Packing was chosen for other weights: a new engine checks itself on these.
    return as_model(module.eval(), model.tokenizer, name)


def noised(model: HFModel, share: float, name: str, seed: int = 0) -> HFModel:
    """A copy with Gaussian noise of ``share`` of each matrix's standard deviation added to it."""
    result = copied(model, name)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in result.module.parameters():
            if parameter.dim() > 1:
                noise = torch.randn(parameter.shape, generator=generator)
                parameter.add_(noise.to(parameter), alpha=share * float(parameter.float().std()))
    return result


def _batches(model: HFModel, corpora: Sequence[Corpus], steps: int) -> Any:
    """[rows, length] ids and labels, rows of about one length together, batches in random order."""
    choose, made = random.Random(0), 0
    while made < steps:
        rows = [_encoded(model, row) for corpus in corpora for row in corpus.rows(3000 // len(corpora))]
        rows.sort(key=lambda row: (len(row[0]), choose.random()))
        groups: list[list[tuple[list[int], list[int]]]] = [[]]
        for row in rows:
            if len(row[0]) * (len(groups[-1]) + 1) > TOKENS and groups[-1]:
                groups.append([])
            groups[-1].append(row)
        choose.shuffle(groups)
        for group in groups:
            longest = max(len(ids) for ids, _ in group)
            ids = torch.full((len(group), longest), model.tokenizer.pad_token_id)
            labels = torch.full((len(group), longest), -100)
            for number, (one, wanted) in enumerate(group):
                ids[number, : len(one)] = torch.tensor(one)
                labels[number, : len(row)] = torch.tensor(wanted)
            made += 1
            yield ids, labels


def _encoded(model: HFModel, row: Row) -> tuple[list[int], list[int]]:
    messages, answer = row
    if not messages:
        ids = list(model.encoder.encode_text(answer))
        return ids, ids
    prompt, (first,) = model.encoder.encode(messages, (answer,))
    end = [model.tokenizer.eos_token_id]
    return [*prompt, *first, *end], [-100] * len(prompt) + [*first, *end]
