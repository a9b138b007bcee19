"""Cases that cannot run, or would prove nothing, are refused before anything runs."""

from pathlib import Path

import pytest

from tests.polyglot.suite.cases import CaseError, load, selected

HEAD = 'name = "one"\nbehaviour = "b"\ncatches = "c"\n'
USE = '{ do = "authorization", scope = "inference", save = "first" }'


def read(folder: Path, text: str) -> None:
    """Load one file of cases."""
    (folder / "group.toml").write_text(text, encoding="utf-8")
    load(folder)


def case(*steps: str, head: str = HEAD) -> str:
    """Return a file of one case."""
    return f"[[case]]\n{head}steps = [{', '.join(steps)}]\n"


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        (case(USE), "a client that lies would pass"),
        (case(USE, '{ expect = "first.revision" }'), "a client that lies would pass"),
        (
            case(USE, '{ world = "verify", of = "first", save = "seen" }', '{ expect = "first.revision" }'),
            "a client that lies would pass",
        ),
        (case(USE, "{ expect = \"calls('X') == other.revision\" }"), "nothing is known as other"),
        (case("{ expect = \"calls('X') == first.count\" }", USE), "nothing is known as first"),
        (case(USE, '{ expect = "calls(" }'), "is no expression"),
        (case('{ do = "guess" }'), "no command guess"),
        (case('{ world = "push" }'), "no action push in the lane counted"),
        (case('{ world = "kill_broker" }'), "no action kill_broker in the lane counted"),
        (case('{ join = "nobody" }'), "nothing is saved as nobody"),
        (case('{ hope = "so" }'), "is no step"),
        (case("{ wait = 1, seconds = 2 }"), "seconds: is no word of wait"),
        (case(USE, head=HEAD.replace("one", "One")), "lower case"),
        (case(USE, head='name = "one"\nbehaviour = "b"\n'), "has no catches"),
        (case(USE, head=f"{HEAD}line = 3\n"), "line: is no word"),
        (case(USE, head=f'{HEAD}lane = "fast"\n'), "no lane fast"),
        (case(USE, head=f'{HEAD}adapters = "soap"\n'), "neither http nor grpc"),
        (case(USE, head=f'{HEAD}without = ["httpx"]\n'), "is for none"),
        (case(USE, head=f"{HEAD}connection_age = 3\n"), "lane own"),
        (case(USE, head=f"{HEAD}port = 50051\n"), "only a scripted broker"),
        (case("{ expect = \"calls('X') == 1\" }", head=f'{HEAD}lane = "timed"\n'), "use grants or ledger"),
        (case("{ expect = \"received('X') == []\" }"), "only the scripted broker"),
        (case("{ expect = \"calls('$nothing') == 1\" }"), "nothing: is no variable"),
        (2 * case("{ expect = \"calls('X') == 0\" }"), "two cases of this name"),
        ("[[case]\n", "is not TOML"),
    ],
)
def test_refused(tmp_path: Path, text: str, problem: str) -> None:
    """With what is wrong, and where."""
    with pytest.raises(CaseError, match=r"group\.toml|two cases") as refused:
        read(tmp_path, text)
    assert problem in str(refused.value)


def test_all_problems_are_told_at_once(tmp_path: Path) -> None:
    """Those of all cases of all files."""
    for name in ("a", "b"):
        (tmp_path / f"{name}.toml").write_text(case(USE), encoding="utf-8")
    with pytest.raises(CaseError) as refused:
        load(tmp_path)
    assert [line.partition(":")[0] for line in str(refused.value).splitlines()] == ["a.toml", "b.toml"]


@pytest.mark.parametrize(
    "step",
    [
        '{ expect = "grants() == []" }',
        '{ until = "ledger() == []" }',
        '{ let = "n", be = "connections()" }',
    ],
)
def test_evidence(tmp_path: Path, step: str) -> None:
    """What broker, emulator or a server saw is enough, however it is asked for."""
    lane = "scripted" if "connections" in step else "counted"
    read(tmp_path, case(USE, step, head=f'{HEAD}lane = "{lane}"\n'))


def test_what_a_case_needs_for_itself(tmp_path: Path) -> None:
    """A process of its own where it is looked into, or has an environment."""
    files = {
        "shared": case("{ expect = \"calls('X') == 0\" }"),
        "looked-into": case("{ expect = \"calls('X') == 0 and fds() > 0\" }"),
        "environment": case("{ expect = \"calls('X') == 0\" }", head=HEAD + 'env = { A = "1" }\n'),
        "asked": case("{ expect = \"calls('X') == 0\" }", head=f"{HEAD}alone = true\n"),
    }
    for name, text in files.items():
        (tmp_path / f"{name}.toml").write_text(text.replace('"one"', f'"{name}"'), encoding="utf-8")
    assert {one.name: one.has_own_driver for one in load(tmp_path)} == {
        "shared": False, "looked-into": True, "environment": True, "asked": True,
    }  # fmt: skip


def test_lists_may_hold_many_texts_in_one(tmp_path: Path) -> None:
    """`{1..3}` in a text of a list, also of one within."""
    text = case('{ do = "many", threads = ["a", "$thread.{9..11}.x"] }', "{ expect = \"calls('{1..2}') == 1\" }")
    (tmp_path / "group.toml").write_text(text, encoding="utf-8")
    many, expected = load(tmp_path)[0].steps
    assert many["threads"] == ["a", "$thread.9.x", "$thread.10.x", "$thread.11.x"]
    assert expected["expect"] == "calls('{1..2}') == 1"


def test_selection_by_name_and_by_group(tmp_path: Path) -> None:
    """As a shell's patterns, apart by commas."""
    for name in ("cache", "watch"):
        text = case("{ expect = \"calls('X') == 0\" }").replace('"one"', f'"{name}-one"')
        (tmp_path / f"{name}.toml").write_text(text, encoding="utf-8")
    cases = load(tmp_path)
    assert [one.name for one in selected(cases, "watch")] == ["watch-one"]
    assert [one.name for one in selected(cases, "cache-*, w*")] == ["cache-one", "watch-one"]
    assert selected(cases, None) == cases
