"""
The scope catalogue: what a call may be for, and the rule each scope has.

Pure data. The built-in scopes cover every consumer that openai/codex has, each with where it stands there (below
`codex-rs/`). Operators override or extend the catalogue in the configuration; only names that stand in one of the two
exist. A dotted name takes what it does not say from its parent (`control_plane.analytics` from `control_plane`), but a
parent never makes a child exist.
"""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from enum import StrEnum
from typing import Final, TypeVar

from broker.model import ScopeName

Value = TypeVar("Value")

_NAME: Final = re.compile(r"[a-z0-9_.]{1,128}")


class Credential(StrEnum):
    """Which credential a scope asks for: the column of the decision table."""

    BEARER_ONLY = "bearer_only"
    ASSERTION_PREFERRED = "assertion_preferred"
    ASSERTION_REQUIRED = "assertion_required"


class TaskNeed(StrEnum):
    """Whose task an assertion of this scope is signed for."""

    NONE = "none"
    BACKGROUND = "background"
    THREAD = "thread"


@dataclass(frozen=True, slots=True, kw_only=True)
class ScopeRule:
    """
    The rule of one scope.

    `max_lifetime` (seconds) shortens what is handed out, None leaves the profile's; `min_lifetime` is the shortest
    remaining life with which anything is handed out.
    """

    name: ScopeName
    credential: Credential
    task: TaskNeed
    enabled: bool = True
    min_lifetime: float | None = None
    max_lifetime: float | None = None
    description: str = ""
    source: str = "configuration"
    """Where upstream has this consumer, or `configuration`."""

    @property
    def is_bootstrap(self) -> bool:
        """Whether this is what the broker itself registers and refreshes with; answered only to callers granted it."""
        return self.name == "bootstrap" or self.name.startswith("bootstrap.")


@dataclass(frozen=True, slots=True, kw_only=True)
class ScopeOverride:
    """What the configuration says of one scope; None leaves what the catalogue or the parent says."""

    credential: Credential | None = None
    task: TaskNeed | None = None
    enabled: bool | None = None
    min_lifetime: float | None = None
    max_lifetime: float | None = None
    description: str | None = None


def _rule(name: str, credential: Credential, task: TaskNeed, description: str, source: str) -> ScopeRule:
    return ScopeRule(
        name=ScopeName(name),
        credential=credential,
        task=task,
        description=description,
        source=source,
    )


def _inference(name: str, description: str, source: str) -> ScopeRule:
    return _rule(name, Credential.ASSERTION_REQUIRED, TaskNeed.THREAD, description, source)


def _control(name: str, description: str, source: str) -> ScopeRule:
    return _rule(name, Credential.ASSERTION_PREFERRED, TaskNeed.BACKGROUND, description, source)


def _bootstrap(name: str, description: str, source: str) -> ScopeRule:
    return _rule(name, Credential.BEARER_ONLY, TaskNeed.NONE, description, source)


BUILT_IN: Final[tuple[ScopeRule, ...]] = (
    _inference("inference", "model calls of a thread, over HTTP or a websocket", "core/src/client.rs"),
    _inference("inference.compaction", "compacting a thread's history", "core/src/client.rs"),
    _inference("inference.realtime", "setting up a realtime call and its side-band websocket", "core/src/client.rs"),
    _inference("inference.memories", "summarising and writing memories", "memories/write/src/runtime.rs"),
    _inference("inference.review", "review and guardian scoring", "ext/guardian-v2/src/async_scorer/extension.rs"),
    _inference("thread", "calls made for one thread beside its model calls", "core/src/mcp_openai_file.rs"),
    _inference("thread.files", "uploading files of a thread", "codex-api/src/files.rs; core/src/mcp_openai_file.rs"),
    _inference("thread.safety", "safety checks of a thread; never answered with less", "core/src/arc_monitor.rs"),
    _control("control_plane", "calls without a thread", "backend-client/src/client.rs"),
    _control("control_plane.account", "account check and profile", "backend-client/src/client.rs"),
    _control("control_plane.analytics", "analytics events", "analytics/src/client.rs"),
    _control("control_plane.apps", "the apps MCP server and its listing", "codex-mcp/src/mcp/mod.rs"),
    _control("control_plane.chatgpt", "reads of the ChatGPT client", "chatgpt/src/chatgpt_client.rs"),
    _control("control_plane.cloud_config", "cloud requirements and configuration", "cloud-config/src/service.rs"),
    _control("control_plane.cloud_tasks", "cloud tasks and environments, applying a task", "cloud-tasks/src/lib.rs"),
    _control("control_plane.connectors", "the connector directory", "connectors/src/lib.rs; chatgpt/src/connectors.rs"),
    _control("control_plane.exec_server", "the exec-server registry", "exec-server/src/remote.rs"),
    _control("control_plane.feedback", "feedback, history notes, git attribution", "backend-client/src/client.rs"),
    _control("control_plane.mcp", "status lists of MCP servers", "app-server/src/codex_message_processor.rs"),
    _control("control_plane.models", "the list of models", "models-manager/src/manager.rs"),
    _control(
        "control_plane.plugins", "remote plugins: list, featured, enable, uninstall", "core-plugins/src/remote.rs"
    ),
    _control("control_plane.remote_control", "remote control", "app-server-transport/src/transport/remote_control"),
    _control("control_plane.settings", "settings, credits mail, workspace messages", "backend-client/src/client.rs"),
    _control("control_plane.skills", "remote skills", "core-skills/src/remote.rs"),
    _control("control_plane.usage", "rate limits and usage", "backend-client/src/client.rs"),
    _bootstrap("bootstrap", "what registers and refreshes", "login/src/auth/manager.rs"),
    _bootstrap("bootstrap.agent_registration", "registering an agent identity", "agent-identity/src/lib.rs"),
    _bootstrap("bootstrap.token_refresh", "refreshing and revoking tokens", "login/src/auth/manager.rs"),
)


class ScopeCatalogueError(ValueError):
    """The configured scopes make no sense; `problems` names each with what to do."""

    def __init__(self, problems: list[str]) -> None:
        super().__init__("; ".join(problems))
        self.problems = problems


def _parent(name: str, known: Mapping[str, ScopeRule]) -> ScopeRule | None:
    while "." in name:
        name = name.rpartition(".")[0]
        if name in known:
            return known[name]
    return None


def build_catalogue(
    overrides: Mapping[str, ScopeOverride], built_in: Iterable[ScopeRule] = BUILT_IN
) -> dict[str, ScopeRule]:
    """
    Merge the configured scopes into the built-in ones.

    A new name inherits from its nearest parent; without one it must say `credential` and `task` itself. An override of
    a root holds for its built-in children too, unless they are overridden themselves.

    Raises:
        ScopeCatalogueError: a scope is incomplete or contradicts itself; all problems at once.
    """
    rules: dict[str, ScopeRule] = {rule.name: rule for rule in built_in}
    problems: list[str] = []
    # Parents first, so that a child inherits what was said of its parent.
    for name in sorted(set(overrides) | set(rules), key=lambda name: (name.count("."), name)):
        override = overrides.get(name, ScopeOverride())
        base = rules.get(name)
        parent = _parent(name, rules)
        inherited = _parent_change(name, overrides)
        credential = override.credential or inherited.credential or (base or parent or override).credential
        task = override.task or inherited.task or (base or parent or override).task
        if credential is Credential.BEARER_ONLY and override.task is None:
            task = TaskNeed.NONE  # a bearer is signed for nobody's task, so that need not be said
        if not _NAME.fullmatch(name):
            problems.append(f"scopes.{name}: a scope's name has at most 128 characters of a-z, 0-9, _ and .")
            continue
        if credential is None or task is None:
            problems.append(
                f"scopes.{name}: is new and has no parent, so it must say both `credential` and `task`"
                " (or be named as a child, such as control_plane.NAME)"
            )
            continue
        if (credential is Credential.BEARER_ONLY) != (task is TaskNeed.NONE):
            problems.append(
                f'scopes.{name}: `task = "{task}"` does not go with `credential = "{credential}"`; a bearer needs task'
                ' "none", an assertion "thread" or "background"'
            )
            continue
        known = base or ScopeRule(name=ScopeName(name), credential=credential, task=task)
        rule = rules[name] = replace(
            known,
            credential=credential,
            task=task,
            enabled=_first(override.enabled, inherited.enabled, known.enabled, default=True),
            min_lifetime=_first(override.min_lifetime, inherited.min_lifetime, known.min_lifetime, default=None),
            max_lifetime=_first(override.max_lifetime, inherited.max_lifetime, known.max_lifetime, default=None),
            description=_first(override.description, known.description, default=""),
        )
        if rule.min_lifetime is not None and rule.max_lifetime is not None and rule.min_lifetime > rule.max_lifetime:
            problems.append(
                f"scopes.{name}: min_lifetime_seconds = {rule.min_lifetime:g} is more than"
                f" max_lifetime_seconds = {rule.max_lifetime:g}, so nothing could ever be handed out"
            )
    if problems:
        raise ScopeCatalogueError(problems)
    return {name: rules[name] for name in sorted(rules)}


def _parent_change(name: str, overrides: Mapping[str, ScopeOverride]) -> ScopeOverride:
    """Return what the configuration says of the nearest parents, nearest first, field by field."""
    merged = ScopeOverride()
    while "." in name:
        name = name.rpartition(".")[0]
        said = overrides.get(name)
        if said is not None:
            merged = replace(
                merged,
                credential=merged.credential or said.credential,
                task=merged.task or said.task,
                enabled=said.enabled if merged.enabled is None else merged.enabled,
                min_lifetime=merged.min_lifetime or said.min_lifetime,
                max_lifetime=merged.max_lifetime or said.max_lifetime,
            )
    return merged


def _first(*values: Value | None, default: Value) -> Value:
    return next((value for value in values if value is not None), default)
