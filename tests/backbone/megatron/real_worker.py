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
"""Answers of a real LLM on the Megatron backbone, on so many ranks as the launcher started.

Usage: torchrun --nproc-per-node=2 real_worker.py FOLDER OUT.json
"""

import json
import os
import sys
from pathlib import Path

import torch
from torch.nn.utils.rnn import pad_sequence

from nemo_vtb.backbone.megatron import runtime
from nemo_vtb.factory.demo.text_only import chat_prompts

NUM_PROMPTS, NEW_TOKENS = 20, 20


def prompts(tokenizer: object) -> list[list[int]]:
    """Typed questions in the LLM's own template, of different lengths."""
    chats = chat_prompts(0)['test'][:NUM_PROMPTS]
    return [
        tokenizer.apply_chat_template(  # type: ignore[attr-defined]
            [{'role': 'user', 'content': chat.prompts[0]}], add_generation_prompt=True, return_dict=False
        )
        for chat in chats
    ]


def main() -> None:
    folder, out = Path(sys.argv[1]), Path(sys.argv[2])
    torch.set_num_threads(1)
    runtime.initialize(int(os.environ['WORLD_SIZE']))
    from transformers import AutoTokenizer

    from nemo_vtb.backbone.megatron.model import build_backbone

    tokenizer = AutoTokenizer.from_pretrained(folder)
    backbone = build_backbone(folder).eval()
    rows = [torch.tensor(ids) for ids in prompts(tokenizer)]
    ids = pad_sequence(rows, batch_first=True, padding_side='left')  # (B, T)
    mask = pad_sequence([torch.ones(len(row)) for row in rows], batch_first=True, padding_side='left').bool()
    with torch.no_grad():
        embeds = torch.stack([backbone.embed(row) for row in ids])  # (B, T, H)
        end = tokenizer.eos_token_id
        answers = backbone.greedy(embeds, mask, NEW_TOKENS, [end], end).tolist()
        answers = [answer[: answer.index(end)] if end in answer else answer for answer in answers]
    if runtime.tp_rank() == 0:
        out.write_text(json.dumps(answers), encoding='utf-8')


if __name__ == '__main__':
    main()
