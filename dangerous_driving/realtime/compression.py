"""Compression on the WebSocket, done once for each message instead of once for each client.

With context takeover (the default of permessage-deflate, RFC 7692) each connection keeps a window of what it sent before, so
that the same text is compressed anew for each of a thousand clients, and each keeps its own window in memory. Here every
message is compressed by itself, so its compressed form is the same for all and is kept for a moment.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from typing import Any

from uvicorn.protocols.websockets.websockets_sansio_impl import WebSocketsSansIOProtocol
from websockets.extensions.base import Extension
from websockets.extensions.permessage_deflate import PerMessageDeflate, ServerPerMessageDeflateFactory
from websockets.frames import CONT, CTRL_OPCODES, Frame
from websockets.typing import ExtensionParameter

#: Messages whose compressed form is remembered, and the longest of them in bytes.
REMEMBERED = 256
LONGEST = 256 * 1024


class SharedDeflate(PerMessageDeflate):
    """permessage-deflate that looks into a common memory first."""

    _memory: OrderedDict[tuple[int, bytes], Frame] = OrderedDict()  # noqa: RUF012 - one for all is the point

    def encode(self, frame: Frame) -> Frame:
        """Compress one frame."""
        if frame.opcode in CTRL_OPCODES or frame.opcode is CONT or not frame.fin or len(frame.data) > LONGEST:
            return super().encode(frame)
        key = (self.local_max_window_bits, bytes(frame.data))
        known = self._memory.get(key)
        if known is None or known.opcode is not frame.opcode:
            known = self._memory[key] = super().encode(frame)
            if len(self._memory) > REMEMBERED:
                self._memory.popitem(last=False)
        return known


class SharedDeflateFactory(ServerPerMessageDeflateFactory):
    """Negotiates permessage-deflate without context takeover in both directions."""

    def __init__(self) -> None:
        super().__init__(
            server_no_context_takeover=True,
            client_no_context_takeover=True,
            # level 6 costs twice the time of 3 for 5 % fewer bytes on these messages, but each is compressed once
            compress_settings={"level": 6},
        )

    def process_request_params(
        self, params: Sequence[ExtensionParameter], accepted_extensions: Sequence[Extension]
    ) -> tuple[list[ExtensionParameter], PerMessageDeflate]:
        """The answer to a client's offer."""
        answer, plain = super().process_request_params(params, accepted_extensions)
        return answer, SharedDeflate(
            plain.remote_no_context_takeover,
            plain.local_no_context_takeover,
            plain.remote_max_window_bits,
            plain.local_max_window_bits,
            plain.compress_settings,
        )


class BridgeProtocol(WebSocketsSansIOProtocol):
    """uvicorn's WebSocket with this compression; the rest is its own."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        if self.config.ws_per_message_deflate:
            self.conn.available_extensions = [SharedDeflateFactory()]
