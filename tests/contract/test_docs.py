"""What a person reads is true: its code runs, its files exist, its tables are those of the code."""

import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from broker.config import load_config
from broker.model import IdentityState, TaskState
from broker.policy import ROWS
from broker.profiles import PRESETS
from broker.rpc.status import CODES
from tests.support.command_line import environment, run, start

ROOT = Path(__file__).parents[2]
PAGES = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md"), *ROOT.glob("*/README.md"), *ROOT.glob("stubs/*/*.md")])
ANY_PORTS = ("--port", "0", "--admin-port", "0", "--http-port", "0", "--emulator-port", "0")
ARCHITECTURE = (ROOT / "docs/ARCHITECTURE.md").read_text(encoding="utf-8")
README = (ROOT / "README.md").read_text(encoding="utf-8")


def named(path: Path) -> str:
    """Name a parametrized page by its path."""
    return str(path.relative_to(ROOT))


def section(text: str, heading: str) -> str:
    """Return what stands below a heading, up to the next one that is not below it."""
    level = heading.split(" ", maxsplit=1)[0]
    start_of = text.index(f"{heading}\n") + len(heading)
    end = re.search(rf"^#{{1,{len(level)}}} ", text[start_of:], re.MULTILINE)
    return text[start_of : start_of + end.start() if end else None]


def table(text: str) -> list[list[str]]:
    """Return the rows of the first table in a text, without its head."""
    rows = [line for line in text.splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in re.split(r"(?<!\\)\|", row)[1:-1]] for row in rows[2:]]


# --- what is shown runs ----------------------------------------------------------------------------------------------


def test_the_readme_shows_what_dev_prints() -> None:
    """The output in the README is what `dev` prints, but for ports, times and the folder's name."""
    (shown,) = re.findall(r"```console\n\$ make dev\n(.*?)\n\nNext", README, re.DOTALL)
    printed = run("dev", "--once", *ANY_PORTS).stdout

    def without_chance(text: str) -> str:
        text = re.sub(r"127\.0\.0\.1:\d+", "ADDRESS", text)
        text = re.sub(r"/tmp\S+", "FOLDER", text)
        return re.sub(r"\d+\.\d ms", "TIME", text).strip()

    assert without_chance(shown) == without_chance(printed)


def test_the_readmes_python_runs_beside_dev() -> None:
    """The README's call from Python, with nothing changed but the ports, prints what the README says."""
    (code,) = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    dev = start("dev", *ANY_PORTS)
    try:
        printed = dev.read_until("Ctrl-C")
        callers = re.search(r"^callers +(\S+)$", printed, re.MULTILINE)
        backend = re.search(r"^backend +(http://\S+?),", printed, re.MULTILINE)
        assert callers is not None
        assert backend is not None
        assert code.count("http://127.0.0.1:8089") == 1
        code = code.replace("http://127.0.0.1:8089", backend[1])
        clean = {name: value for name, value in environment().items() if not name.lower().endswith("_proxy")}
        clean["CREDENTIAL_BROKER_ADDRESS"] = callers[1]
        done = subprocess.run(
            [sys.executable, "-"], input=code, capture_output=True, text=True, check=False, timeout=60, env=clean
        )
    finally:
        dev.stop()
    assert done.returncode == 0, done.stderr
    assert done.stdout == "AGENT_ASSERTION 200\n"
    assert f"It prints `{done.stdout.strip()}`" in README


def test_commands_that_pages_name_exist() -> None:
    """Each `credential-broker COMMAND` in a page for people is a command."""
    from broker.cli import root

    named_commands = {
        command
        for page in PAGES
        if page.name != "cli.md"
        for command in re.findall(r"credential-broker ([a-z][a-z-]+)", page.read_text(encoding="utf-8"))
    }
    assert {"serve", "dev", "get", "identity"} <= named_commands
    prose = {"does", "is", "and", "on", "has"}
    assert named_commands - set(root.commands) - prose == set()


def test_make_targets_that_pages_name_exist() -> None:
    """Each `make TARGET` in a page is a target of the Makefile."""
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE))
    named_targets = {
        target for page in PAGES for target in re.findall(r"`make ([a-z-]+)`", page.read_text(encoding="utf-8"))
    }
    assert "test" in named_targets
    assert named_targets - targets == set()


# --- what is named exists --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("page", PAGES, ids=named)
def test_links_lead_somewhere(page: Path) -> None:
    """Each link inside the repository leads to a file, and to a heading of it."""
    broken = []
    # In a block of code brackets are the language's own.
    prose = re.sub(r"^```.*?^```$", "", page.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)
    for link in re.findall(r"\]\(([^)\s]+)\)", prose):
        if link.startswith(("http://", "https://", "mailto:")):
            continue
        path, _, anchor = link.partition("#")
        target = (page.parent / path).resolve() if path else page
        if not target.exists() or not target.is_relative_to(ROOT):
            broken.append(link)
        elif anchor:
            headings = re.findall(r"^#+ (.+)$", target.read_text(encoding="utf-8"), re.MULTILINE)
            anchors = {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}
            broken += [] if anchor in anchors else [link]
    assert broken == []


@pytest.mark.parametrize("page", PAGES, ids=named)
def test_files_that_are_named_exist(page: Path) -> None:
    """Each path of the repository that stands in a page is that of a file or folder."""
    text = page.read_text(encoding="utf-8")
    paths = re.findall(r"`((?:broker|docs|tests|protos|stubs|deploy|requirements|\.ci)/[\w./-]*)`", text)
    assert [path for path in paths if not (ROOT / path).exists()] == []


def test_the_list_of_files_is_complete() -> None:
    """Every module of the broker stands in the one list of names and files, and no other."""
    rows = table(section(ARCHITECTURE, "## Where everything is"))
    listed = {row[1].strip("`").rstrip("/"): row[2] for row in rows}
    modules = {
        f"broker/{path.name}"
        for path in (ROOT / "broker").iterdir()
        if (path.suffix == ".py" and path.name != "__init__.py") or (path.is_dir() and path.name != "__pycache__")
    }
    assert {name for name in listed if name.startswith("broker/")} == modules
    for package in ("cli", "rpc", "bearer", "store"):
        inside = {path.name for path in (ROOT / "broker" / package).glob("*.py")} - {"__init__.py"}
        assert {name for name in inside if f"`{name}`" not in listed[f"broker/{package}"]} == set(), package


def test_the_layers_of_the_list_are_those_that_are_checked() -> None:
    """The number of each module's layer in the list is its place in import-linter's contract."""
    contracts = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["importlinter"][
        "contracts"
    ]
    checked = {
        module.strip(): str(number) for number, row in enumerate(contracts[0]["layers"], 1) for module in row.split("|")
    }
    rows = table(section(ARCHITECTURE, "## Where everything is"))
    listed = {
        row[1].strip("`").removeprefix("broker/").removesuffix(".py").rstrip("/"): row[0] for row in rows if row[0]
    }
    assert listed == checked


# --- what is said is what the code does ------------------------------------------------------------------------------


def test_the_decision_table_is_that_of_the_code() -> None:
    """ARCHITECTURE has the rows of `broker.policy` by their numbers, and every reason it names is one."""
    rows = table(section(ARCHITECTURE, "## The decision"))
    assert [int(row[0]) for row in rows] == [row.number for row in ROWS]
    reasons = {outcome.reason for outcome in CODES} | {
        "SCOPE_IS_BEARER_ONLY",
        "IDENTITY_IS_BEARER",
        "TASK_ASSERTION",
        "TASK_UNAVAILABLE",
        "BEARER",
        "UNAVAILABLE",
    }
    named_words = {word for row in rows for cell in row for word in re.findall(r"`([A-Z_]+)`", cell)}
    assert named_words - reasons == set()


def test_every_state_is_explained() -> None:
    """The page of states has a row for each state of identities and tasks."""
    text = (ROOT / "docs/states.md").read_text(encoding="utf-8")
    identities = {row[0].strip("`") for row in table(section(text, "## Identities"))}
    tasks = {row[0].strip("`") for row in table(section(text, "## Tasks"))}
    assert identities == {state.value for state in IdentityState}
    assert tasks == {state.value for state in TaskState} | {"none"}


def test_every_profile_is_listed() -> None:
    """ARCHITECTURE lists the profiles that exist."""
    rows = table(section(ARCHITECTURE, "## Profiles"))
    assert {row[0].split("`")[1] for row in rows} == set(PRESETS)


def test_names_of_languages_are_those_of_the_protos() -> None:
    """The names of each language in ARCHITECTURE are the options of the proto files."""
    names = section(ARCHITECTURE, "## Names in each language")
    proto = (ROOT / "protos/credentialbroker/v1/credential_broker.proto").read_text(encoding="utf-8")
    options = dict(re.findall(r'^option (\w+) = "(.+)";$', proto, re.MULTILINE))
    path, _, package = options["go_package"].partition(";")
    for name in (
        path,
        package,
        options["java_package"],
        options["java_outer_classname"],
        options["csharp_namespace"],
        options["ruby_package"],
        options["php_namespace"].replace("\\\\", "\\"),
        options["objc_class_prefix"],
    ):
        assert f"`{name}`" in names, name


@pytest.mark.parametrize("page", ["cli", "configuration"])
def test_generated_pages_are_current(page: str) -> None:
    """A generated page is what its script writes."""
    done = subprocess.run(
        [sys.executable, f"docs/build_{page}.py", "--check"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr


def test_the_example_configuration_is_sound() -> None:
    """deploy/broker.toml loads as it stands."""
    config = load_config(ROOT / "deploy/broker.toml", {})
    assert "control_plane.reports" in config.scope_catalogue()


def test_what_the_example_configuration_leaves_out_is_sound_too(tmp_path: Path) -> None:
    """With every setting that is commented out taken in, it still loads: no comment shows a setting that is wrong."""
    text = (ROOT / "deploy/broker.toml").read_text(encoding="utf-8")
    whole, count = re.subn(r'^# (?=(?:[a-z_]+|"[a-z_.]+") = |\[)', "", text, flags=re.MULTILINE)
    assert count >= 6
    alternatives = re.findall(r'^(\w+) = .*# or (\[".*"\])$', whole, flags=re.MULTILINE)
    assert [key for key, _ in alternatives] == ["callers", "admin"]
    for key, value in alternatives:
        whole = re.sub(rf"^{key} = .*$", f"{key} = {value}", whole, flags=re.MULTILINE)
    path = tmp_path / "broker.toml"
    path.write_text(whole, encoding="utf-8")
    config = load_config(path, {})
    assert config.listen.tls is not None
    assert config.broker.default_identity == "fleet"
    assert config.backends["default"].assertion_routes == {"control_plane.analytics": False}


def test_decisions_are_listed_and_whole() -> None:
    """Each decision stands in the index under its title, is numbered without gaps, and has its four parts."""
    folder = ROOT / "docs/adr"
    index = (folder / "README.md").read_text(encoding="utf-8")
    pages = sorted(folder.glob("[0-9]*.md"))
    assert [int(page.name[:4]) for page in pages] == list(range(1, len(pages) + 1))
    for page in pages:
        text = page.read_text(encoding="utf-8")
        title = text.splitlines()[0].removeprefix(f"# {page.name[:4]}. ")
        assert f"| [{page.name[:4]}]({page.name}) | {title} |" in index
        assert "\nStatus: " in text
        for part in ("Context", "Decision", "Consequences"):
            assert len(section(text, f"## {part}").split()) > 10, (page.name, part)


def test_no_page_names_a_place_of_ours() -> None:
    """No page names a folder of a developer's machine or an index of packages."""
    wrong = re.compile(r"/(?:home|root|work|Users)/|(?:pypi|pythonhosted)\.org", re.IGNORECASE)
    assert [named(page) for page in PAGES if wrong.search(page.read_text(encoding="utf-8"))] == []
