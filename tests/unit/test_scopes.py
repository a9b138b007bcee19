"""The scope catalogue: what is built in, what inherits from what, and what the configuration may not say."""

from dataclasses import replace

import pytest

from broker.model import ScopeName
from broker.scopes import (
    BUILT_IN,
    Credential,
    ScopeCatalogueError,
    ScopeOverride,
    TaskNeed,
    build_catalogue,
)

REQUIRED, PREFERRED, BEARER = Credential.ASSERTION_REQUIRED, Credential.ASSERTION_PREFERRED, Credential.BEARER_ONLY

CONSUMERS = {
    "Inference, Responses HTTP": "inference",
    "Inference websocket": "inference",
    "Compaction": "inference.compaction",
    "Realtime call set-up": "inference.realtime",
    "Memory summarise, memories write": "inference.memories",
    "Review / guardian scorer": "inference.review",
    "Models manager": "control_plane.models",
    "Analytics": "control_plane.analytics",
    "Rate limits / usage": "control_plane.usage",
    "MCP status list": "control_plane.mcp",
    "Codex Apps MCP server": "control_plane.apps",
    "Apps list": "control_plane.apps",
    "Connector directory": "control_plane.connectors",
    "ChatGPT client GETs": "control_plane.chatgpt",
    "codex apply / get task": "control_plane.cloud_tasks",
    "Cloud requirements": "control_plane.cloud_config",
    "Cloud tasks": "control_plane.cloud_tasks",
    "Remote plugins": "control_plane.plugins",
    "Remote skills": "control_plane.skills",
    "Remote control enrolment": "control_plane.remote_control",
    "Remote control websocket": "control_plane.remote_control",
    "ARC safety monitor": "thread.safety",
    "MCP OpenAI file upload": "thread.files",
    "Generic file upload": "thread.files",
    "Exec-server registry": "control_plane.exec_server",
    "Feedback, history notes, git attribution": "control_plane.feedback",
    "Account check, profile": "control_plane.account",
    "Settings, credits mail, workspace messages": "control_plane.settings",
    "Agent registration": "bootstrap.agent_registration",
    "OAuth refresh, revoke": "bootstrap.token_refresh",
}
"""Every consumer that openai/codex has that sends a credential of the kinds the broker hands out, and its scope.

Left out: the export of curated plugins and the fetch of JWKS (no credential), blob uploads (none either), and task
registration, which only the broker itself does, with a signature.
"""


@pytest.mark.parametrize(("consumer", "scope"), CONSUMERS.items())
def test_every_consumer_has_a_scope_with_its_source(consumer: str, scope: str) -> None:
    """Each upstream consumer has a built-in scope that is described and says where upstream has it."""
    rule = build_catalogue({})[ScopeName(scope)]
    assert rule.description
    assert "/" in rule.source
    assert rule.enabled


def test_no_built_in_scope_is_without_a_consumer() -> None:
    """The catalogue holds nothing beside the consumers and the roots they stand under."""
    roots = {"inference", "thread", "control_plane", "bootstrap"}
    assert {rule.name for rule in BUILT_IN} == set(CONSUMERS.values()) | roots
    assert len({rule.name for rule in BUILT_IN}) == len(BUILT_IN)


@pytest.mark.parametrize(
    ("root", "credential", "task"),
    [
        ("inference", REQUIRED, TaskNeed.THREAD),
        ("thread", REQUIRED, TaskNeed.THREAD),
        ("control_plane", PREFERRED, TaskNeed.BACKGROUND),
        ("bootstrap", BEARER, TaskNeed.NONE),
    ],
)
def test_a_root_and_its_children_have_one_rule(root: str, credential: Credential, task: TaskNeed) -> None:
    """The four roots and all below them ask for the credential and the task the design gives them."""
    family = [rule for rule in BUILT_IN if rule.name == root or rule.name.startswith(f"{root}.")]
    assert len(family) > 1
    assert {(rule.credential, rule.task, rule.is_bootstrap) for rule in family} == {
        (credential, task, root == "bootstrap")
    }


def test_an_override_of_a_root_holds_for_its_children() -> None:
    """What is said of a root reaches built-in children; what is said of a child wins over it, field by field."""
    catalogue = build_catalogue(
        {
            "control_plane": ScopeOverride(credential=REQUIRED, max_lifetime=30.0, enabled=False),
            "control_plane.usage": ScopeOverride(credential=PREFERRED, enabled=True),
        }
    )
    usage, models = catalogue["control_plane.usage"], catalogue["control_plane.models"]
    assert (usage.credential, usage.enabled, usage.max_lifetime) == (PREFERRED, True, 30.0)
    assert (models.credential, models.enabled, models.max_lifetime) == (REQUIRED, False, 30.0)
    assert catalogue["inference"] == next(rule for rule in BUILT_IN if rule.name == "inference")


def test_an_override_keeps_what_it_does_not_say() -> None:
    """Description and source of a built-in scope stay when only its credential changes."""
    before = build_catalogue({})["thread.files"]
    after = build_catalogue({"thread.files": ScopeOverride(credential=PREFERRED)})["thread.files"]
    assert after == replace(before, credential=PREFERRED)


def test_a_new_child_takes_the_rule_of_its_nearest_parent() -> None:
    """A new name below a known one needs to say nothing, and inherits from the nearest, configured ones included."""
    catalogue = build_catalogue(
        {
            "control_plane.usage": ScopeOverride(credential=REQUIRED, max_lifetime=20.0),
            "control_plane.usage.daily": ScopeOverride(description="daily totals"),
        }
    )
    daily = catalogue["control_plane.usage.daily"]
    assert (daily.credential, daily.task, daily.max_lifetime) == (REQUIRED, TaskNeed.BACKGROUND, 20.0)
    assert (daily.description, daily.source) == ("daily totals", "configuration")


def test_a_parent_never_makes_a_child_exist() -> None:
    """A name that stands in neither the catalogue nor the configuration does not exist, whatever its parent says."""
    catalogue = build_catalogue({"control_plane": ScopeOverride(max_lifetime=10.0)})
    assert "control_plane.no_such" not in catalogue


def test_a_scope_that_becomes_bearer_only_needs_no_task() -> None:
    """Saying bearer_only of a scope, or of its root, takes its task away without a word about it."""
    catalogue = build_catalogue({"control_plane": ScopeOverride(credential=BEARER)})
    assert {catalogue[name].task for name in catalogue if name.startswith("control_plane")} == {TaskNeed.NONE}


def test_a_new_root_says_everything_itself() -> None:
    """A new scope without a parent exists with just its credential and its task."""
    rule = build_catalogue({"reports": ScopeOverride(credential=PREFERRED, task=TaskNeed.BACKGROUND)})["reports"]
    assert (rule.credential, rule.task, rule.enabled, rule.is_bootstrap) == (
        PREFERRED,
        TaskNeed.BACKGROUND,
        True,
        False,
    )


def test_all_contradictions_are_told_at_once() -> None:
    """Each scope that makes no sense is named with what to do, in one error."""
    with pytest.raises(ScopeCatalogueError) as caught:
        build_catalogue(
            {
                "reports": ScopeOverride(credential=PREFERRED),
                "exports": ScopeOverride(),
                "Bad Name": ScopeOverride(credential=BEARER),
                "inference": ScopeOverride(task=TaskNeed.NONE),
                "thread.files": ScopeOverride(credential=BEARER, task=TaskNeed.THREAD),
                "control_plane.usage": ScopeOverride(min_lifetime=60.0, max_lifetime=30.0),
            }
        )
    said = {problem.partition(":")[0]: problem for problem in caught.value.problems}
    assert {"scopes.reports", "scopes.exports", "scopes.Bad Name", "scopes.inference"} <= said.keys()
    assert {"scopes.thread.files", "scopes.control_plane.usage"} <= said.keys()
    assert "both `credential` and `task`" in said["scopes.reports"]
    assert "min_lifetime" in said["scopes.control_plane.usage"]


def test_a_lifetime_that_contradicts_the_parents_is_told() -> None:
    """A minimum that only a parent's maximum makes impossible is a contradiction of the child too."""
    with pytest.raises(ScopeCatalogueError) as caught:
        build_catalogue(
            {
                "control_plane": ScopeOverride(max_lifetime=30.0),
                "control_plane.usage": ScopeOverride(min_lifetime=60.0),
            }
        )
    assert [problem.partition(":")[0] for problem in caught.value.problems] == ["scopes.control_plane.usage"]
