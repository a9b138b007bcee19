"""
Clients of the credential broker, their adapters, and the stubs of its API.

To use: `client` for threads, `aio` for asyncio, `httpx_auth`, `requests_auth`, `grpc_auth`, `errors`; generated: `v1`.

To read, from the inside out. What all is about, without I/O, threads or a clock: `authorization`, `lifetimes`,
`origins`, then `entries` (what is held), `questions` (what is asked of the broker), `flights` (equal questions are one
call), `watch` (what a stream brings, and whether the broker is away); `core` holds them together. Around it, for each
runtime: `thread_calls` and `thread_upkeep`, `aio_calls` and `aio_upkeep`, of which `client` and `aio` are the face.
"""
