"""The bridge to the browser: WebSocket, REST and the operator's page."""
