"""What the protected resource answers once a call is verified: mostly, what was verified."""

from __future__ import annotations

import json
from typing import Any

from broker.emulator.calls import Answer, Call, as_json, refuse
from broker.emulator.refusal import Refusal
from broker.emulator.routing import RESPONSES_SUFFIX


def resource_answer(call: Call, seen: dict[str, Any]) -> Answer:
    """Answer a verified call: with what Codex CLI must be able to read, where it must, else with what was seen."""
    if call.path.endswith(RESPONSES_SUFFIX):
        if (call.header("upgrade") or "").lower() == "websocket":
            call.entry.verdict = "verified"
            refusal = Refusal(426, "websocket_refused", "use POST with server-sent events")
            return refuse(refusal, headers=(("upgrade", "HTTP/1.1"),))
        if call.method == "POST":
            return Answer(body=_event_stream(), content_type="text/event-stream")
    if call.path.endswith("/wham/config/bundle"):
        # Codex CLI reads this one and stops unless it can; an empty object means "nothing special".
        return as_json({})
    saw = {"verdict": "verified", "method": call.method, "path": call.path, **seen}
    if call.path.endswith("/codex/models"):
        # An empty list keeps Codex CLI from reporting an answer it cannot read.
        saw["models"] = []
    return as_json(saw)


def _event_stream() -> bytes:
    """The fewest server-sent events that complete a run of Codex CLI 0.169.0."""
    message = {
        "type": "message",
        "role": "assistant",
        "id": "msg_emulator",
        "content": [{"type": "output_text", "text": "the emulator verified this call"}],
    }
    usage = {
        "input_tokens": 1,
        "input_tokens_details": None,
        "output_tokens": 1,
        "output_tokens_details": None,
        "total_tokens": 2,
    }
    events: list[dict[str, Any]] = [
        {"type": "response.created", "response": {"id": "resp_emulator"}},
        {"type": "response.output_item.done", "item": message},
        {"type": "response.completed", "response": {"id": "resp_emulator", "usage": usage}},
    ]
    return "".join(f"event: {event['type']}\ndata: {json.dumps(event)}\n\n" for event in events).encode()
