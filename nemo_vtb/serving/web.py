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
"""Serves the page of `vtb web`: where it listens, who may come in, and that nothing leaves this machine."""

import secrets
import sys
from pathlib import Path
from typing import Any, NoReturn

import gradio as gr
from fastapi import FastAPI
from gradio.networking import setup_tunnel
from starlette.middleware import Middleware
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from nemo_vtb.config.schema import WebConfig
from nemo_vtb.errors import VtbConfigError
from nemo_vtb.serving.engine import Engine
from nemo_vtb.serving.listen import bind, read_auth, run
from nemo_vtb.serving.page import Page

# the browser itself refuses every other host, also if an answer or a library names one
_POLICY = '; '.join(
    (
        "default-src 'self'",
        "script-src 'self' 'unsafe-inline' 'unsafe-eval' blob:",
        "style-src 'self' 'unsafe-inline'",
        "img-src 'self' data: blob:",
        "media-src 'self' data: blob:",
        "font-src 'self' data:",
        "connect-src 'self' data: blob:",
        "worker-src 'self' blob:",
        "form-action 'self'",
        "base-uri 'self'",
        "object-src 'none'",
    )
)


class _Policy:
    """Adds the policy to every reply."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def with_policy(message: Message) -> None:
            if message['type'] == 'http.response.start':
                headers = [(b'content-security-policy', _POLICY.encode()), (b'referrer-policy', b'no-referrer')]
                message['headers'] = [*message['headers'], *headers]
            await send(message)

        await self._app(scope, receive, with_policy if scope['type'] == 'http' else send)


def serve(engine: Engine, settings: WebConfig) -> None:
    """Serve the page until SIGTERM or Ctrl-C.

    Args:
        engine: The model.
        settings: Where and for whom.

    Raises:
        VtbConfigError: The address cannot be listened at, or the settings would show the model to everybody.
    """
    auth = read_auth(settings)
    page = Page(engine, settings)
    _refuse_addresses(page.question)
    app = gr.mount_gradio_app(
        FastAPI(openapi_url=None, middleware=[Middleware(_Policy)]),
        page.blocks,
        path='/',
        auth=auth,
        theme=_theme(),
        css_paths=Path(__file__).with_name('page.css'),
        max_file_size=int(settings.max_body_mb * 1e6),
        footer_links=[], run_history=False, show_error=False,
        enable_monitoring=False, ssr_mode=False, pwa=False, mcp_server=False,
    )  # fmt: skip
    # Gradio compares the paths of recordings with those that were uploaded only where this is set; mounting does not
    page.blocks.has_launched = True
    # an open page holds a connection for ever
    server, listener = bind(app, settings, drain_s=1)
    port = listener.getsockname()[1]
    sys.stderr.write(f'open http://{settings.host}:{port}/\n')
    if settings.share:
        sys.stderr.write(f'public: {_public_address(settings.host, port)}\n')
    run(server, listener)


def _public_address(host: str, port: int) -> str:
    try:
        return setup_tunnel(host, port, secrets.token_urlsafe(32), None, None)
    except Exception as error:
        raise VtbConfigError(
            'There is no public address.', field='share', got=f'{type(error).__name__}: {error}',
            remedy='leave --share out, or put a proxy with TLS in front of --host',
        ) from error  # fmt: skip


def _refuse_addresses(component: gr.MultimodalTextbox) -> None:
    """A recording is one that was uploaded: Gradio would fetch one whose path is an address."""
    move: Any = component.async_move_resource_to_block_cache

    async def checked(path: str | Path | None) -> Any:
        if path is not None and '://' in str(path):
            _refuse()
        return await move(path)

    component.async_move_resource_to_block_cache = checked  # type: ignore[method-assign,assignment]


def _refuse() -> NoReturn:
    raise gr.Error('A recording must be uploaded.')


def _theme() -> gr.themes.Base:
    """Quiet colours and the fonts of the system: no font is loaded from anywhere."""
    fonts = [gr.themes.Font(name) for name in ('system-ui', 'sans-serif')]
    mono = [gr.themes.Font(name) for name in ('ui-monospace', 'monospace')]
    return gr.themes.Base(primary_hue='teal', neutral_hue='slate', radius_size='lg', font=fonts, font_mono=mono).set(
        block_border_width='1px',
        block_shadow='none',
        button_border_width='1px',
        button_secondary_background_fill='transparent',
        button_secondary_background_fill_dark='transparent',
        button_secondary_border_color='*border_color_primary',
        button_secondary_border_color_dark='*border_color_primary',
    )
