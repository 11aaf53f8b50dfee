# Copyright (c) 2026, The nemo_vtb authors. All rights reserved.
#
# Licensed under the Apache License, Version 2.0 (the "License");
# you may not use this file except in compliance with the License.
# You may obtain a copy of the License at
#
#     http://www.apache.org/licenses/LICENSE-2.0
#
# Unless required by applicable law or agreed to in writing, software
# distributed under the License is distributed on an "AS IS" BASIS,
# WITHOUT WARRANTIES OR CONDITIONS OF ANY KIND, either express or implied.
# See the License for the specific language governing permissions and
# limitations under the License.
"""Text-only conversations: a bank of prompts, and answers to them by the base language model."""

import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from itertools import chain
from pathlib import Path
from random import Random
from typing import Any

from nemo_vtb.errors import VtbModelError
from nemo_vtb.factory.text_generation import load_causal_lm
from nemo_vtb.io import read_yaml

_SPLIT_SHARES = (('train', 0.74), ('validation', 0.1), ('test', 0.16))
_FOLLOW_UP_SHARE = 0.3


@dataclass(frozen=True, slots=True)
class PromptChat:
    """A text-only conversation.

    Args:
        prompts: What the user types, turn by turn.
        answers: What is answered, turn by turn; empty until generated.
        complete: Whether every answer ended by itself rather than at the limit of tokens.
    """

    prompts: tuple[str, ...]
    answers: tuple[str, ...] = ()
    complete: bool = True


@cache
def _bank() -> dict[str, Any]:
    return read_yaml(Path(__file__).with_suffix('.yaml'))


def chat_prompts(seed: int = 0) -> dict[str, list[PromptChat]]:
    """All prompts of the bank by split, shuffled; a topic is in one split only.

    Args:
        seed: Seed of the split and of the order.
    """
    splits: dict[str, list[PromptChat]] = {name: [] for name, _ in _SPLIT_SHARES}
    for number, group in enumerate(_bank()['topic_groups']):
        shuffled = list(group['topics'])
        Random(f'{seed}:topics:{number}').shuffle(shuffled)
        start = 0
        for name, share in _SPLIT_SHARES:
            end = len(shuffled) if name == 'test' else start + round(share * len(shuffled))
            splits[name] += [
                PromptChat((t.format(topic),)) for topic in shuffled[start:end] for t in group['templates']
            ]
            start = end
    for name, chats in splits.items():
        rng = Random(f'{seed}:chats:{name}')
        rng.shuffle(chats)
        splits[name] = [_with_follow_up(chat, rng) for chat in chats]
    return splits


def reference_chats() -> list[PromptChat]:
    """Chats whose answers a person wrote."""
    return [PromptChat(tuple(turns[0::2]), tuple(turns[1::2])) for turns in _bank()['reference']]


def generate_text_chats(
    llm_dir: Path,
    prompts: Sequence[PromptChat],
    *,
    max_new_tokens: int = 64,
    batch_size: int = 16,
) -> list[PromptChat]:
    """Let the base language model answer by plain sampling (seeded): its own distribution, so that training keeps it.

    Args:
        llm_dir: Folder of a Hugging Face causal language model with a chat template.
        prompts: Chats without answers; a later prompt sees the earlier answers.
        max_new_tokens: Limit of each answer; an answer that reaches it is cut after its last sentence.
        batch_size: Chats answered at once.

    Returns:
        The chats with answers, in the order given.

    Raises:
        VtbModelError: The folder cannot be loaded or its tokenizer has no chat template.
    """
    import torch

    tokenizer, model = load_causal_lm(llm_dir, 'llm', torch.float32)
    if not tokenizer.chat_template:
        raise VtbModelError('The tokenizer has no chat template.', field='llm', got=Path(llm_dir).name)
    chats = list(prompts)
    with _one_thread():
        for turn in range(max((len(chat.prompts) for chat in chats), default=0)):
            waiting = [i for i, chat in enumerate(chats) if len(chat.prompts) > turn]
            rendered = {i: _render(tokenizer, chats[i], turn) for i in waiting}
            # equal lengths together: less padding, and the order does not depend on anything but the prompts
            waiting.sort(key=lambda i: (len(rendered[i]), i))
            for start in range(0, len(waiting), batch_size):
                group = waiting[start : start + batch_size]
                answers = _answer(tokenizer, model, [rendered[i] for i in group], max_new_tokens)
                for i, (answer, complete) in zip(group, answers, strict=True):
                    chat = chats[i]
                    chats[i] = PromptChat(chat.prompts, (*chat.answers, answer), chat.complete and complete)
    return chats


@contextmanager
def _one_thread() -> Iterator[None]:
    # steps of a small model are so short that waiting threads cost five times the work on a busy machine (measured)
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _with_follow_up(chat: PromptChat, rng: Random) -> PromptChat:
    if rng.random() >= _FOLLOW_UP_SHARE:
        return chat
    return PromptChat((*chat.prompts, rng.choice(_bank()['follow_ups'])))


def _render(tokenizer: Any, chat: PromptChat, turn: int) -> str:
    pairs = zip(chat.prompts, chat.answers, strict=False)
    history = chain.from_iterable(
        ({'role': 'user', 'content': prompt}, {'role': 'assistant', 'content': answer})
        for prompt, answer in list(pairs)[:turn]
    )
    messages = [*history, {'role': 'user', 'content': chat.prompts[turn]}]
    return tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)


def _answer(tokenizer: Any, model: Any, texts: list[str], max_new_tokens: int) -> list[tuple[str, bool]]:
    import torch

    batch = tokenizer(texts, return_tensors='pt', padding=True, add_special_tokens=False)
    width = batch['input_ids'].shape[1]
    with torch.inference_mode(), torch.random.fork_rng(devices=[]):
        torch.manual_seed(zlib.crc32('\0'.join(texts).encode()))
        output = model.generate(
            input_ids=batch['input_ids'],
            attention_mask=batch['attention_mask'],
            max_new_tokens=max_new_tokens,
            # samples of the model's own distribution hold it where it is; greedy answers would sharpen it, which
            # costs it every text that it has not written itself (docs/experiments.md, 3)
            do_sample=True,
            temperature=1.0,
            top_k=0,
            top_p=1.0,
            pad_token_id=tokenizer.pad_token_id,
            eos_token_id=tokenizer.eos_token_id,
        )
    answers = []
    for row in output[:, width:]:
        ended = bool((row == tokenizer.eos_token_id).any())
        text = tokenizer.decode(row, skip_special_tokens=True).strip()
        answers.append((text if ended else _cut(text), ended))
    return answers


def _cut(text: str) -> str:
    # an answer that ran into the limit is ended after its last whole sentence
    end = max(text.rfind(stop) for stop in ('. ', '! ', '? ', '.\n', '!\n', '?\n', '。'))
    return text[: end + 1].strip() if end > 0 else text
