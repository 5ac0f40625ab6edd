"""The realtime bridge: WebSocket, REST and the operator page."""
