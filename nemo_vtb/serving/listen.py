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
"""An address to listen at, who may come in, and an end that lets running answers finish."""

import os
import signal
import socket
import sys

import uvicorn
from starlette.types import ASGIApp

from nemo_vtb.config.schema import HostConfig, WebConfig
from nemo_vtb.errors import VtbConfigError

AUTH_VARIABLE = 'VTB_WEB_AUTH'


def bind(app: ASGIApp, settings: HostConfig, drain_s: float) -> tuple[uvicorn.Server, socket.socket]:
    """A server and its socket, whose port is known from here on.

    Args:
        app: What is served.
        settings: Where.
        drain_s: Seconds for running answers at the end.

    Raises:
        VtbConfigError: The address cannot be listened at.
    """
    config = uvicorn.Config(
        app,
        host=settings.host,
        port=settings.port,
        log_level='warning',
        timeout_graceful_shutdown=int(drain_s),
        server_header=False,
    )
    try:
        return uvicorn.Server(config), config.bind_socket()
    except (OSError, SystemExit) as error:
        raise VtbConfigError(
            'This address cannot be listened at.',
            field='port',
            got=f'{settings.host}:{settings.port}',
            remedy='choose another --port; 0 takes a free one',
        ) from error


def run(server: uvicorn.Server, listener: socket.socket) -> None:
    """Serve until SIGTERM or Ctrl-C: running answers finish, new connections are refused."""
    # uvicorn raises the signal again when all is answered: that is the end that was asked for, no failure
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    server.run(sockets=[listener])


def read_auth(settings: WebConfig) -> tuple[str, str] | None:
    """Name and password that the page asks for.

    Raises:
        VtbConfigError: They are not USER:PASSWORD, or there are none although the page is shared.
    """
    given = settings.auth or os.environ.get(AUTH_VARIABLE)
    if not given:
        if settings.share:
            raise VtbConfigError(
                'A public page without a password would answer everybody.',
                field='share', got=True, allowed='together with auth', remedy='--auth USER:PASSWORD',
            )  # fmt: skip
        return None
    user, _, password = given.partition(':')
    if not user or not password:
        raise VtbConfigError('Name and password are missing.', field='auth', got='***', allowed='USER:PASSWORD')
    return user, password
