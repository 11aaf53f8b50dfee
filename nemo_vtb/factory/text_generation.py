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
"""Language models that generate data, behind one protocol: an OpenAI-compatible endpoint, or a local HF model.

Answers are objects with text fields. A server is given a JSON schema; a local model always answers in that form, since
the braces and keys are prefilled and it generates the values.
"""

import hashlib
import json
import os
import re
import socket
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

from nemo_vtb.assets.resolve import resolve_asset
from nemo_vtb.errors import VtbModelError
from nemo_vtb.factory.endpoint import Endpoint
from nemo_vtb.factory.settings import Llm
from nemo_vtb.io import json_line, read_json_lines

_FENCED = re.compile(r'```(?:json)?\s*(.*?)```', re.DOTALL)


@dataclass(frozen=True, slots=True)
class Request:
    """One request.

    Args:
        system: Who the model is.
        user: What it is to do.
        fields: Names of the text fields of its answer, in order.
        seed: Of the sampling.
    """

    system: str
    user: str
    fields: tuple[str, ...]
    seed: int = 0


@dataclass(frozen=True, slots=True)
class Reply:
    """One answer.

    Args:
        values: The fields; None if no try gave them.
        prompt_tokens: Read by the model, all tries together.
        completion_tokens: Written by it.
        requests: Answered by the model.
        retries: Repeated, since the server was busy, slow or broken.
        invalid: How many answers did not have the form.
        raw: The last answer as it came, when it is invalid.
    """

    values: Mapping[str, str] | None
    prompt_tokens: int = 0
    completion_tokens: int = 0
    requests: int = 1
    retries: int = 0
    invalid: int = 0
    raw: str = ''


class TextGenerator(Protocol):
    """A language model."""

    def generate(self, requests: Sequence[Request]) -> list[Reply]:
        """Answer all requests, in their order."""
        ...


def parse_object(text: str, fields: Sequence[str]) -> dict[str, str] | None:
    """Read the first JSON object of an answer; None unless it has all fields as texts."""
    value = find_object(text)
    if value is None or not all(isinstance(value.get(name), str) for name in fields):
        return None
    return {name: ' '.join(value[name].split()) for name in fields}


def find_object(text: str) -> dict[str, Any] | None:
    """Read the first JSON object of an answer, whatever stands around it; None if there is none."""
    fenced = _FENCED.search(text)
    body = fenced[1] if fenced else text
    begin, end = body.find('{'), body.rfind('}')
    if begin < 0 or end < begin:
        return None
    try:
        value = json.loads(body[begin : end + 1])
    except ValueError:
        return None
    return value if isinstance(value, dict) else None


class EndpointGenerator:
    """A server with OpenAI's `/chat/completions`.

    Args:
        settings: Address, model, sampling, limits.
        cache: Keeps replies, so that none is paid for twice.
    """

    def __init__(self, settings: Llm, cache: 'ResponseCache | None' = None) -> None:
        assert settings.url
        self._settings, self._cache = settings, cache
        self.endpoint = Endpoint(
            settings.url,
            settings.api_key_env,
            settings.concurrency,
            settings.timeout_s,
            settings.tries,
            settings.requests_per_minute,
        )

    def generate(self, requests: Sequence[Request]) -> list[Reply]:
        """Send all requests at once; an answer without the form is requested again."""
        return self.endpoint.map(self._generate, requests)

    async def _generate(self, client: Any, request: Request) -> Reply:
        key = request_key(request, self._settings)
        if self._cache is not None and (known := self._cache.get(key)) is not None:
            return known
        reply = Reply(None, requests=0)
        for attempt in range(self._settings.invalid_tries):
            response, retries = await self.endpoint.post(client, 'chat/completions', self._body(request, attempt))
            reply = _read(response, request, replace(reply, retries=reply.retries + retries))
            if reply.values is not None:
                break
        if self._cache is not None:
            self._cache.put(key, reply)
        return reply

    def _body(self, request: Request, attempt: int) -> dict[str, Any]:
        settings = self._settings
        messages = [{'role': 'system', 'content': request.system}, {'role': 'user', 'content': request.user}]
        body: dict[str, Any] = {
            'model': settings.model,
            'messages': messages,
            'temperature': settings.temperature,
            'max_tokens': settings.max_tokens,
            'seed': request.seed + attempt,
        }
        if settings.structured == 'json_object':
            body['response_format'] = {'type': 'json_object'}
        elif settings.structured == 'json_schema':
            schema = {
                'type': 'object',
                'properties': {name: {'type': 'string'} for name in request.fields},
                'required': list(request.fields),
                'additionalProperties': False,
            }
            named = {'name': 'answer', 'schema': schema, 'strict': True}
            body['response_format'] = {'type': 'json_schema', 'json_schema': named}
        return body


def _read(response: Any, request: Request, before: Reply) -> Reply:
    """Add one answer of the server to what came before it."""
    try:
        body = response.json()
        text = body['choices'][0]['message']['content'] or ''
    except (ValueError, KeyError, IndexError, TypeError):
        body, text = {}, response.text
    usage = body.get('usage') or {}
    values = parse_object(text, request.fields)
    return Reply(
        values,
        before.prompt_tokens + int(usage.get('prompt_tokens') or 0),
        before.completion_tokens + int(usage.get('completion_tokens') or 0),
        before.requests + 1,
        before.retries,
        before.invalid + (values is None),
        '' if values is not None else text[:500],
    )


def load_causal_lm(folder: str | Path, field: str, dtype: Any) -> tuple[Any, Any]:
    """Tokenizer, padding on the left, and model in evaluation mode, of a Hugging Face folder.

    Args:
        folder: Nothing is downloaded.
        field: The setting that an error names.
        dtype: Of the weights, or `auto`.

    Raises:
        VtbModelError: It cannot be loaded.
    """
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from transformers.utils import logging

    # a bar for one second of loading would interrupt the progress lines
    logging.disable_progress_bar()
    try:
        tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
        model = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype, local_files_only=True)
    except (OSError, ValueError) as error:
        raise VtbModelError(
            'The language model cannot be loaded.',
            field=field,
            got=f'{folder}: {error}',
            allowed='a Hugging Face folder or asset:NAME; with llm.url, the name of a model of that server',
        ) from error
    finally:
        logging.enable_progress_bar()
    tokenizer.padding_side = 'left'
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer, model.eval()


class LocalGenerator:
    """A causal language model of transformers, on this machine.

    Args:
        settings: Folder or asset of the model, sampling.
    """

    def __init__(self, settings: Llm) -> None:
        import torch

        self._settings = settings
        self._tokenizer, model = load_causal_lm(resolve_asset(settings.model), 'llm.model', 'auto')
        # bf16 is many times slower than fp32 on processors without it
        self._model = model.cuda() if torch.cuda.is_available() else model.float()

    def generate(self, requests: Sequence[Request]) -> list[Reply]:
        """Answer all in one batch, field by field."""
        if not requests:
            return []
        replies = [Reply({}) for _ in requests]
        texts = [self._render(request) for request in requests]
        for number in range(max(len(request.fields) for request in requests)):
            active = [i for i, request in enumerate(requests) if len(request.fields) > number]
            for i in active:
                texts[i] += ('{' if number == 0 else ', ') + json.dumps(requests[i].fields[number]) + ': "'
            values, read, written = self._complete([texts[i] for i in active], requests[active[0]].seed + number)
            for i, value, count_in, count_out in zip(active, values, read, written, strict=True):
                texts[i] += json.dumps(value, ensure_ascii=False)[1:]
                done = replies[i]
                replies[i] = replace(
                    done,
                    values={**(done.values or {}), requests[i].fields[number]: value},
                    prompt_tokens=done.prompt_tokens + (count_in if number == 0 else 0),
                    completion_tokens=done.completion_tokens + count_out,
                )
        return replies

    def _render(self, request: Request) -> str:
        messages = [{'role': 'system', 'content': request.system}, {'role': 'user', 'content': request.user}]
        return self._tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)

    def _complete(self, texts: Sequence[str], seed: int) -> tuple[list[str], list[int], list[int]]:
        """The rest of a JSON text value for each text; tokens read and written."""
        import torch

        batch = self._tokenizer(list(texts), return_tensors='pt', padding=True, add_special_tokens=False)
        batch = {name: batch[name].to(self._model.device) for name in ('input_ids', 'attention_mask')}
        width = batch['input_ids'].shape[1]
        warm = self._settings.temperature > 0
        with torch.inference_mode(), torch.random.fork_rng():
            torch.manual_seed(seed)
            out = self._model.generate(
                **batch,
                max_new_tokens=self._settings.max_tokens,
                do_sample=warm,
                **({'temperature': self._settings.temperature, 'top_p': 0.95} if warm else {}),
                pad_token_id=self._tokenizer.pad_token_id,
                stop_strings=['"', '\n'],
                tokenizer=self._tokenizer,
            )
        values, written = [], []
        for row in out[:, width:]:
            text = self._tokenizer.decode(row, skip_special_tokens=True)
            values.append(' '.join(re.split(r'["\n]', text)[0].replace('\\', '').split()))
            written.append(int((row != self._tokenizer.pad_token_id).sum()))
        return values, batch['attention_mask'].sum(1).tolist(), written


class ResponseCache:
    """Replies in an append-only file: an interruption loses at most those in flight.

    Args:
        folder: Where the files lie; each process writes one of its own and reads all.
    """

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._known: dict[str, Reply] = {}
        self._lock = threading.Lock()
        for path in sorted(folder.glob('answers.*.jsonl')):
            self._known.update({key: Reply(*values) for key, values in read_json_lines(path)})
        self._stream = (folder / f'answers.{socket.gethostname()}-{os.getpid()}.jsonl').open('ab')
        self._stream.write(b'\n')  # ends a line that an earlier process of this number left

    def get(self, key: str) -> Reply | None:
        """The answer to a request, if there is one."""
        return self._known.get(key)

    def put(self, key: str, reply: Reply) -> None:
        """Add a reply, written through to the disk."""
        values: list[Any] = [reply.values and dict(reply.values), reply.prompt_tokens, reply.completion_tokens]
        values += [reply.requests, reply.retries, reply.invalid, reply.raw]
        with self._lock:
            self._known[key] = reply
            self._stream.write(json_line([key, values]).encode())
            self._stream.flush()
            os.fsync(self._stream.fileno())


def request_key(request: Request, settings: Llm) -> str:
    """Identity of a request: all that decides its answer."""
    parts = (settings.model, settings.temperature, settings.max_tokens, settings.structured)
    text = json.dumps([request.system, request.user, request.fields, request.seed, parts])
    return hashlib.sha256(text.encode()).hexdigest()[:32]


def load_generator(settings: Llm, cache_folder: Path) -> TextGenerator:
    """The model that the settings name.

    Raises:
        VtbConfigError: The address is none.
        VtbModelError: The folder cannot be loaded.
    """
    return EndpointGenerator(settings, ResponseCache(cache_folder)) if settings.url else LocalGenerator(settings)
