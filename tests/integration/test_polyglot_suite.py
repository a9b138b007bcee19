"""The conformance suite sees a client that is wrong, and a driver that is of no use, and leaves nothing running."""

import os
import sys
from pathlib import Path

import pytest

from tests.polyglot.languages import ROOT, Command
from tests.polyglot.suite import cases, driver, lanes
from tests.polyglot.suite.matrix import Matrix, Outcome

USE = '{ do = "authorization", scope = "inference", thread = "$thread", save = "%s" }'
HIT = (
    USE % "first",
    USE % "second",
    "{ expect = \"calls('GetAuthorization') == 1\" }",
    '{ expect = "second.revision == first.revision" }',
)
UNKNOWN = '{ do = "authorization", scope = "unknown", %s }'
ASKED = "{ expect = \"calls('GetAuthorization') == 1\" }"


async def run(folder: Path, *steps: str, fault: str = "", head: str = "") -> Matrix:
    """Run one case with the fake driver."""
    text = f'[[case]]\nname = "one"\nbehaviour = "b"\ncatches = "c"\n{head}steps = [{", ".join(steps)}]\n'
    (folder / "group.toml").write_text(text, encoding="utf-8")
    command = Command(words=(sys.executable, "-m", "tests.support.fake_driver", fault))
    results: list[object] = []
    matrix = await lanes.run_all([lanes.Variant("fake", command)], cases.load(folder), results.append)
    assert results == matrix.results
    return matrix


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Wait for drivers that hang for a second only."""
    monkeypatch.setattr(driver, "COMMAND_SECONDS", 1.0)
    monkeypatch.setattr(driver, "CLOSE_SECONDS", 1.0)


@pytest.fixture(autouse=True)
def nothing_is_left() -> object:
    """No process of a run outlives it."""
    yield
    mine = f"PPid:\t{os.getpid()}\n"
    left = []
    for status in Path("/proc").glob("[0-9]*/status"):
        try:
            if mine in status.read_text(encoding="ascii"):
                left.append((status.parent / "cmdline").read_bytes().split(b"\0")[:4])
        except (FileNotFoundError, ProcessLookupError):
            continue
    assert left == []


async def test_a_client_that_is_right(tmp_path: Path) -> None:
    """Is green, and has come to an end."""
    matrix = await run(tmp_path, *HIT)
    assert [(one.outcome, one.text) for one in matrix.results] == [(Outcome.GREEN, "")]
    assert matrix.is_green


async def test_a_client_that_is_wrong(tmp_path: Path) -> None:
    """Turns the case red, which says what was expected and what was."""
    matrix = await run(tmp_path, *HIT, fault="forget")
    assert [one.outcome for one in matrix.results] == [Outcome.RED]
    assert matrix.results[0].text == (
        "step 3: not so: calls('GetAuthorization') == 1\n  calls('GetAuthorization') is 2"
    )


@pytest.mark.parametrize(
    ("fault", "text"),
    [
        ("hang", "authorization was not answered within 1 s"),
        ("crash", "the driver ended with 3; its log ends:\nout of luck"),
        ("babble", "the driver said b'this is no answer"),
    ],
)
async def test_a_driver_that_is_of_no_use(tmp_path: Path, fault: str, text: str) -> None:
    """Turns the case red, and is named."""
    matrix = await run(tmp_path, *HIT, fault=fault)
    assert [one.outcome for one in matrix.results] == [Outcome.RED]
    assert text in matrix.results[0].text


async def test_an_answer_that_comes_after_its_case_was_over(tmp_path: Path) -> None:
    """Is nobody's: the driver goes on for the cases that share it."""
    command = Command(words=(sys.executable, "-m", "tests.support.fake_driver", "late"))
    async with driver.Driver(command, tree=ROOT, folder=tmp_path) as late:
        _, asking = late.begin({"do": "authorization", "client": "main"})
        await late.ask({"do": "hello"})
        asking.cancel()
        assert (await late.ask({"do": "http", "adapter": "one"})).ok == {"status": 200, "body": "one"}
        assert not late.has_ended
    assert asking.cancelled()


async def test_a_driver_that_does_not_end(tmp_path: Path) -> None:
    """Is a problem of the language, whatever its cases say."""
    matrix = await run(tmp_path, *HIT, fault="linger")
    assert not matrix.is_green
    assert "hung when its input ended" in matrix.problems[0]


@pytest.mark.parametrize(
    ("steps", "text"),
    [
        ((UNKNOWN % 'save = "first"', ASKED), "step 1: authorization failed: {"),
        ((UNKNOWN % 'save = "first", background = true', '{ join = "first" }', ASKED), "join first failed: {"),
        ((UNKNOWN % 'fails = "TASK_ENDED"', ASKED), "must fail with {'type': 'broker', 'reason': 'TASK_ENDED'}, and"),
        ((USE % 'first", fails = "TASK_ENDED', ASKED), "must fail with TASK_ENDED, and answered"),
        ((USE % 'first", background = true, more = "', ASKED), "the case does not join first"),
        (
            (UNKNOWN % 'save = "e"', "{ expect = \"error(e) and calls('X') == e.revision\" }"),
            "e.revision: e is an error",
        ),
        ((USE % "first", "{ until = \"calls('X') == 1\", seconds = 0.2 }"), "within 0.2 s not so: calls('X') == 1"),
        ((USE % "first", "{ stays = \"calls('X') == 1\", seconds = 0.2 }"), "did not stay: not so: calls('X') == 1"),
    ],
)
async def test_what_fails(tmp_path: Path, steps: tuple[str, ...], text: str) -> None:
    """An error that nobody looked at, one that did not come or is another, and what does not become true."""
    matrix = await run(tmp_path, *steps)
    assert [one.outcome for one in matrix.results] == [Outcome.RED]
    assert text in matrix.results[0].text


@pytest.mark.parametrize(
    "steps",
    [
        (UNKNOWN % 'fails = "SCOPE_UNKNOWN"', ASKED),
        (UNKNOWN % 'fails = { code = "INVALID_ARGUMENT" }', ASKED),
        (
            UNKNOWN % 'save = "e"',
            "{ expect = \"error(e).reason == 'SCOPE_UNKNOWN' and calls('GetAuthorization') == 1\" }",
        ),
        (
            (
                '{ for = "word", in = ["a", "b"], steps = ['
                '{ do = "authorization", scope = "unknown.$word", fails = "SCOPE_UNKNOWN" }] }'
            ),
            "{ expect = \"calls('GetAuthorization', code='INVALID_ARGUMENT') == 2\" }",
        ),
        (
            USE % "first",
            '{ world = "verify", of = "first", save = "seen" }',
            "{ expect = \"seen.verdict == 'verified' and len(ledger(operation='resource')) == 1\" }",
            "{ expect = \"len(grants(thread=variable('thread'))) == 1\" }",
        ),
        (
            '{ world = "disable" }',
            USE.replace("save", "fails") % "IDENTITY_REVOKED",
            '{ world = "enable" }',
            USE % "first",
            '{ expect = "len(grants()) == 1" }',
        ),
    ],
)
async def test_what_does_well(tmp_path: Path, steps: tuple[str, ...]) -> None:
    """Errors that are demanded, or looked at; what operators do; what emulator and audit log tell."""
    matrix = await run(tmp_path, *steps)
    assert [(one.outcome, one.text) for one in matrix.results] == [(Outcome.GREEN, "")]


async def test_adapters(tmp_path: Path) -> None:
    """A case of adapters is run for each that the driver names."""
    steps = (
        '{ do = "http", adapter = "$adapter", save = "r" }',
        "{ expect = \"r.body == '$adapter' and calls('X') == 0\" }",
    )
    matrix = await run(tmp_path, *steps, head='adapters = "http"\n')
    assert [(one.adapter, one.outcome) for one in matrix.results] == [("one", Outcome.GREEN), ("two", Outcome.GREEN)]


async def test_brokers_of_its_own(tmp_path: Path) -> None:
    """They are killed and stopped and started; what they counted before is not forgotten."""
    steps = (
        USE % "first",
        '{ world = "kill_broker" }',
        '{ world = "start_broker" }',
        '{ do = "authorization", scope = "inference", thread = "$thread2" }',
        "{ expect = \"calls('GetAuthorization', at='a') >= 2 and calls('GetAuthorization', at='b') == 0\" }",
        '{ world = "stop_broker" }',
        "{ expect = \"calls('GetAuthorization') >= 2 and len(grants()) == 2\" }",
    )
    matrix = await run(tmp_path, *steps, head='lane = "own"\nbrokers = ["a", "b"]\n')
    assert [(one.outcome, one.text) for one in matrix.results] == [(Outcome.GREEN, "")]


async def test_a_broker_that_is_scripted(tmp_path: Path) -> None:
    """It does what it is told and tells what it got."""
    steps = (
        '{ world = "script", answers = [{ revision = "r1" }] }',
        USE % "first",
        "{ expect = \"first.revision == 'r1' and len(received('GetAuthorization')) == 1\" }",
    )
    matrix = await run(tmp_path, *steps, head='lane = "scripted"\n')
    assert [(one.outcome, one.text) for one in matrix.results] == [(Outcome.GREEN, "")]


async def try_again(folder: Path, fault: str) -> Matrix:
    """Run a case with a fake driver that is wrong, then once more with one that has another fault."""
    matrix = await run(folder, *HIT, fault="forget")
    command = Command(words=(sys.executable, "-m", "tests.support.fake_driver", fault))
    seen: list[object] = []
    await lanes.second_tries([lanes.Variant("fake", command)], matrix, seen.append)
    assert len(matrix.results) == 1
    assert seen in ([], matrix.results)
    return matrix


async def test_what_was_red_for_once_is_green_and_told(tmp_path: Path) -> None:
    """Alone it is green: so is the run, which says what went wrong at first."""
    matrix = await try_again(tmp_path, "")
    assert matrix.is_green
    assert "green at the second try: one, fake; at the first:\nstep 3: not so" in matrix.as_text()
    assert "1 runs, 1 tried again" in matrix.as_text()


async def test_what_is_red_twice_is_red(tmp_path: Path) -> None:
    """A client that is wrong stays red."""
    assert not (await try_again(tmp_path, "forget")).is_green


async def test_nothing_is_tried_again_where_much_is_red(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """That is not the work of a busy machine."""
    monkeypatch.setattr(lanes, "MOST_SECOND_TRIES", 0)
    matrix = await try_again(tmp_path, "")
    assert not matrix.is_green
    assert matrix.results[0].first_try == ""
