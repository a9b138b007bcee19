"""The API as it is written: linted, documented as a specification, and compatible with its baseline."""

import hashlib
import json
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from google.protobuf import descriptor_pb2

ROOT = Path(__file__).parents[2]
PROTOS = ROOT / "protos"
BASELINE = PROTOS / "baseline.binpb"
BUF = Path(sys.executable).with_name("buf")

Field = descriptor_pb2.FieldDescriptorProto
SECRET_WORDS = re.compile(r"token|secret|password|private|jwt|auth_json|api_key|assertion|credential|cookie|seal")
NOT_SECRET = {"page_token", "next_page_token"}  # authenticated positions in a list, no credential

# RPC comments name error reasons and states in capitals; these capitals are neither.
OTHER_CAPITALS = {"OK", "JWT", "JSON", "AGENT", "BEARER", "ASCII", "INVALID_ARGUMENT", "ABORTED", "URL", "UTF", "API"}


def buf(*arguments: str, folder: Path = PROTOS) -> subprocess.CompletedProcess[str]:
    """Run buf in `folder` and return what it said."""
    return subprocess.run([BUF, *arguments], cwd=folder, capture_output=True, text=True, check=False, timeout=60)


@dataclass(frozen=True)
class Element:
    """One named thing of the API: its full name, its descriptor and the comment that stands before it."""

    name: str
    descriptor: Any
    comment: str


def walk(file: descriptor_pb2.FileDescriptorProto) -> Iterator[Element]:
    """Yield every message, field, oneof, enum, value, service and RPC of a file, with its leading comment."""
    comments = {tuple(place.path): place.leading_comments for place in file.source_code_info.location}

    def element(descriptor: Any, path: tuple[int, ...], parent: str) -> Element:
        return Element(f"{parent}.{descriptor.name}", descriptor, comments.get(path, ""))

    def enum(descriptor: descriptor_pb2.EnumDescriptorProto, path: tuple[int, ...], parent: str) -> Iterator[Element]:
        yield (this := element(descriptor, path, parent))
        for index, value in enumerate(descriptor.value):
            yield element(value, (*path, 2, index), this.name)

    def message(descriptor: descriptor_pb2.DescriptorProto, path: tuple[int, ...], parent: str) -> Iterator[Element]:
        yield (this := element(descriptor, path, parent))
        for index, field in enumerate(descriptor.field):
            yield element(field, (*path, 2, index), this.name)
        # The oneof that protoc makes for each `optional` field is nobody's to comment.
        synthetic = {field.oneof_index for field in descriptor.field if field.proto3_optional}
        for index, oneof in enumerate(descriptor.oneof_decl):
            if index not in synthetic:
                yield element(oneof, (*path, 8, index), this.name)
        for index, nested in enumerate(descriptor.nested_type):
            yield from message(nested, (*path, 3, index), this.name)
        for index, nested_enum in enumerate(descriptor.enum_type):
            yield from enum(nested_enum, (*path, 4, index), this.name)

    for index, top in enumerate(file.message_type):
        yield from message(top, (4, index), file.package)
    for index, top_enum in enumerate(file.enum_type):
        yield from enum(top_enum, (5, index), file.package)
    for index, service in enumerate(file.service):
        yield (this := element(service, (6, index), file.package))
        for number, method in enumerate(service.method):
            yield element(method, (6, index, 2, number), this.name)


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> list[descriptor_pb2.FileDescriptorProto]:
    """Our own .proto files as descriptors, comments included."""
    image = tmp_path_factory.mktemp("image") / "image.binpb"
    built = buf("build", "-o", str(image))
    assert built.returncode == 0, built.stderr
    everything = descriptor_pb2.FileDescriptorSet.FromString(image.read_bytes())
    return [file for file in everything.file if file.package == "credentialbroker.v1"]


@pytest.fixture(scope="module")
def elements(files: list[descriptor_pb2.FileDescriptorProto]) -> list[Element]:
    """Everything that has a name in them."""
    return [element for file in files for element in walk(file)]


def of_kind(elements: list[Element], kind: type) -> list[Element]:
    """Return the elements whose descriptor is of `kind`; never none, so that no test passes on nothing."""
    found = [element for element in elements if isinstance(element.descriptor, kind)]
    assert found
    return found


@pytest.fixture
def copied_protos(tmp_path: Path) -> Path:
    """A copy of protos/ to spoil."""
    return Path(shutil.copytree(PROTOS, tmp_path / "protos"))


def test_lint_finds_nothing() -> None:
    """The files follow buf's STANDARD and COMMENTS rules with the one exception that buf.yaml gives a reason for."""
    result = buf("lint")
    assert (result.returncode, result.stdout) == (0, "")


def test_lint_misses_a_comment(copied_protos: Path) -> None:
    """An RPC without a comment turns the lint red, so the rules really are switched on."""
    path = copied_protos / "credentialbroker/v1/broker_admin.proto"
    text = path.read_text(encoding="utf-8")
    spoiled = re.sub(r"(  //[^\n]*\n)+(?=  rpc GetStatus)", "", text)
    assert spoiled != text
    path.write_text(spoiled, encoding="utf-8")
    result = buf("lint", folder=copied_protos)
    assert result.returncode == 100
    assert "GetStatus" in result.stdout


def test_format_is_canonical() -> None:
    """`buf format` has nothing to change."""
    result = buf("format", "--diff", "--exit-code")
    assert (result.returncode, result.stdout) == (0, "")


def test_no_break_against_the_baseline() -> None:
    """No caller that was built against the baseline stops compiling or working."""
    result = buf("breaking", "--against", str(BASELINE))
    assert (result.returncode, result.stdout) == (0, "")


@pytest.mark.parametrize(
    ("file", "before", "after"),
    [
        pytest.param("credential_broker", "string revision = 11;", "string revision = 21;", id="renumbered-field"),
        pytest.param("credential_broker", "bool stale = 9;", "bool is_stale = 9;", id="renamed-field"),
        pytest.param("credential_broker", "int32 http_status = 4;", "int64 http_status = 4;", id="retyped-field"),
        pytest.param("broker_admin", "rpc GetTask(", "rpc FetchTask(", id="renamed-rpc"),
        pytest.param("error_reason", "ERROR_REASON_OVERLOAD = 43;", "ERROR_REASON_TOO_MUCH = 43;", id="renamed-value"),
        pytest.param("error_reason", '"dev.credentialbroker.v1"', '"org.other.v1"', id="java-package"),
        pytest.param("error_reason", "go/credentialbroker/v1;", "go/other/v1;", id="go-package"),
        pytest.param("error_reason", '"Credentialbroker.V1"', '"Other.V1"', id="csharp-namespace"),
    ],
)
def test_a_break_is_seen(copied_protos: Path, file: str, before: str, after: str) -> None:
    """Each kind of change that breaks a caller, in whichever language, turns the comparison red."""
    path = copied_protos / f"credentialbroker/v1/{file}.proto"
    text = path.read_text(encoding="utf-8")
    assert text.count(before) == 1
    path.write_text(text.replace(before, after), encoding="utf-8")
    result = buf("breaking", "--against", str(BASELINE), folder=copied_protos)
    assert result.returncode == 100, result.stderr


def test_baseline_change_is_announced() -> None:
    """The changelog names the baseline that is committed, so nobody can move it without telling callers."""
    digest = hashlib.sha256(BASELINE.read_bytes()).hexdigest()[:12]
    changelog = ROOT / "CHANGELOG.md"
    assert changelog.is_file()
    assert f"protos/baseline.binpb {digest}" in changelog.read_text(encoding="utf-8"), (
        f"say in CHANGELOG.md what changed for callers, with the words: protos/baseline.binpb {digest}"
    )


def test_everything_has_a_comment(elements: list[Element]) -> None:
    """Every message, field, oneof, enum, value, service and RPC says what it means."""
    assert [element.name for element in elements if not element.comment.strip()] == []


def test_request_fields_say_whether_they_are_required(
    files: list[descriptor_pb2.FileDescriptorProto], elements: list[Element]
) -> None:
    """A field of a request, or of what goes only into one, says that it is required or what unset means."""
    said = re.compile(r"Required|[Uu]nset|If set|See the service|As in|Must be")
    inputs = reachable(files, r"Request$").keys() - reachable(files, r"Response$").keys()
    silent = [
        element.name
        for element in of_kind(elements, Field)
        if f".{element.name.rpartition('.')[0]}" in inputs
        and not said.search(element.comment)
        and not element.descriptor.HasField("oneof_index")  # said at the oneof
    ]
    assert silent == []


def test_request_oneofs_say_whether_they_are_required(elements: list[Element]) -> None:
    """A oneof of a request says whether exactly one of its fields must be set."""
    oneofs = [e for e in of_kind(elements, descriptor_pb2.OneofDescriptorProto) if "Request." in e.name]
    assert [e.name for e in oneofs if not re.search(r"Required: exactly one|Required for|Unset", e.comment)] == []


def test_answer_fields_say_whether_they_are_always_set(
    files: list[descriptor_pb2.FileDescriptorProto], elements: list[Element]
) -> None:
    """A field of a response, or of what stands in one, says that it is always set, or when it is unset or empty."""
    said = re.compile(r"Always set|[Uu]nset|[Uu]nspecified|[Ee]mpty|[Aa]t least one|Set (only )?for|Whether|How many")
    answers = reachable(files, r"Response$")
    silent = [
        element.name
        for element in of_kind(elements, Field)
        if f".{element.name.rpartition('.')[0]}" in answers
        and not said.search(element.comment)
        and not element.descriptor.HasField("oneof_index")
    ]
    assert silent == []


def test_rpcs_name_their_errors(elements: list[Element]) -> None:
    """Every RPC lists its errors, and each word in capitals is a reason, a state or another word of the API."""
    values = of_kind(elements, descriptor_pb2.EnumValueDescriptorProto)
    known = {value.descriptor.name for value in values} | OTHER_CAPITALS
    for value in values:
        words = value.descriptor.name.split("_")
        known |= {"_".join(words[start:]) for start in range(1, len(words))}
    for rpc in of_kind(elements, descriptor_pb2.MethodDescriptorProto):
        assert "Errors" in rpc.comment, rpc.name
        words_used = set(re.findall(r"\b[A-Z][A-Z_]+[A-Z]\b", rpc.comment))
        assert words_used <= known, (rpc.name, words_used - known)


def test_enum_values_carry_their_prefix(elements: list[Element]) -> None:
    """Values begin with their enum's name and 0 is UNSPECIFIED, so that no value is meant by leaving it out."""
    for enum in of_kind(elements, descriptor_pb2.EnumDescriptorProto):
        prefix = re.sub(r"(?<=[a-z])(?=[A-Z])", "_", enum.descriptor.name).upper()
        zero, *others = enum.descriptor.value
        assert (zero.name, zero.number) == (f"{prefix}_UNSPECIFIED", 0)
        assert [value.name for value in others if not value.name.startswith(f"{prefix}_")] == []


def test_error_reasons_are_documented(elements: list[Element]) -> None:
    """Each reason has its status code, what to do, and a sample of its ErrorInfo that is JSON and names it."""
    codes = (
        "INVALID_ARGUMENT|UNAUTHENTICATED|PERMISSION_DENIED|NOT_FOUND|ALREADY_EXISTS|FAILED_PRECONDITION|ABORTED"
        "|RESOURCE_EXHAUSTED|UNAVAILABLE|DEADLINE_EXCEEDED|UNIMPLEMENTED|DATA_LOSS|INTERNAL"
    )
    reasons = [
        element
        for element in of_kind(elements, descriptor_pb2.EnumValueDescriptorProto)
        if ".ErrorReason." in element.name and element.descriptor.number
    ]
    assert len(reasons) > 40
    for reason in reasons:
        assert re.match(rf" ({codes})\. ", reason.comment), reason.name
        assert "\n Do: " in reason.comment, reason.name
        sample = json.loads(reason.comment.partition("Sample: ")[2])
        assert sample["reason"] == reason.descriptor.name.removeprefix("ERROR_REASON_")
        assert sample["domain"] == "credentialbroker.v1"
        assert all(isinstance(value, str) for value in sample["metadata"].values())


def reachable(files: list[descriptor_pb2.FileDescriptorProto], roots: str) -> dict[str, list[Field]]:
    """Return the fields of every message of ours that can stand in one whose name matches `roots`."""
    messages: dict[str, descriptor_pb2.DescriptorProto] = {}

    def add(message: descriptor_pb2.DescriptorProto, parent: str) -> None:
        messages[f"{parent}.{message.name}"] = message
        for nested in message.nested_type:
            add(nested, f"{parent}.{message.name}")

    for file in files:
        for message in file.message_type:
            add(message, f".{file.package}")
    found: dict[str, list[Field]] = {}
    waiting = [name for name in messages if re.search(roots, name)]
    assert waiting
    while waiting:
        name = waiting.pop()
        if name in messages and name not in found:
            found[name] = list(messages[name].field)
            waiting += [field.type_name for field in found[name] if field.type == Field.TYPE_MESSAGE]
    return found


def test_secrets_are_marked(files: list[descriptor_pb2.FileDescriptorProto]) -> None:
    """Text and bytes whose name sounds like a secret carry debug_redact, by which loggers leave them out."""
    unmarked = [
        f"{message}.{field.name}"
        for message, fields in reachable(files, r"Request$|Response$").items()
        for field in fields
        if field.type in (Field.TYPE_STRING, Field.TYPE_BYTES)
        and SECRET_WORDS.search(field.name)
        and field.name not in NOT_SECRET
        and not field.options.debug_redact
    ]
    assert unmarked == []


def test_answers_carry_no_secret_but_the_headers(files: list[descriptor_pb2.FileDescriptorProto]) -> None:
    """Nothing that goes in as a secret can come out: the only marked field of all answers is a header's value."""
    marked = {
        f"{message}.{field.name}"
        for message, fields in reachable(files, r"Response$").items()
        for field in fields
        if field.options.debug_redact
    }
    assert marked == {".credentialbroker.v1.Header.value"}


def test_tasks_carry_no_backend_task_id(files: list[descriptor_pb2.FileDescriptorProto]) -> None:
    """No answer has a field for the id that the backend gave a task."""
    names = {field.name for fields in reachable(files, r"Response$").values() for field in fields}
    assert names.isdisjoint({"task_id", "upstream_task_id", "encrypted_task_id"})


def test_language_names_are_fixed(files: list[descriptor_pb2.FileDescriptorProto]) -> None:
    """Every file sets its names in every language itself, so that who vendors the files gets the same ones."""
    assert len(files) == 3
    for file in files:
        stem = file.name.rpartition("/")[2].removesuffix(".proto")
        options = file.options
        assert options.go_package == "credentialbroker.dev/stubs/go/credentialbroker/v1;credentialbrokerv1"
        assert options.java_package == "dev.credentialbroker.v1"
        assert options.java_multiple_files
        assert options.java_outer_classname == "".join(word.title() for word in stem.split("_")) + "Proto"
        assert options.csharp_namespace == "Credentialbroker.V1"
        assert options.ruby_package == "Credentialbroker::V1"
        assert options.php_namespace == "Credentialbroker\\V1"
        assert options.php_metadata_namespace == "Credentialbroker\\V1\\Metadata"
        assert options.objc_class_prefix == "CBR"


def test_only_well_known_types_are_imported(files: list[descriptor_pb2.FileDescriptorProto]) -> None:
    """The files import nothing but each other and protobuf's own types, so that stubs need no second package."""
    imports = {name for file in files for name in file.dependency}
    assert [name for name in imports if not re.match(r"google/protobuf/|credentialbroker/v1/", name)] == []


def test_times_and_lists_follow_the_conventions(elements: list[Element]) -> None:
    """Points in time end with `_time`, lists page, updates have a mask and an etag."""
    fields = of_kind(elements, Field)
    by_message: dict[str, set[str]] = {}
    for field in fields:
        by_message.setdefault(field.name.rpartition(".")[0].rpartition(".")[2], set()).add(field.descriptor.name)
        is_time = field.descriptor.type_name == ".google.protobuf.Timestamp"
        assert is_time == field.descriptor.name.endswith("_time"), field.name
    for message, names in by_message.items():
        if message.startswith("List"):
            wanted = {"page_size", "page_token"} if message.endswith("Request") else {"next_page_token"}
            assert wanted <= names, message
        if message.startswith("Update") and message.endswith("Request"):
            assert {"update_mask", "etag"} <= names, message
        if re.match(r"(Create|Import|Rotate|Reauthenticate)\w+Request", message):
            assert "request_id" in names, message
