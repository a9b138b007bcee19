"""Java: one Maven reactor of stubs, client and adapters; the driver builds with it and installs nothing."""

import shutil
import subprocess
from pathlib import Path
from typing import Final

from tests.polyglot.languages import Command, Language

PACKAGE: Final = "stubs/java"
DRIVER: Final = "tests/polyglot/drivers/java"
MAVEN: Final = ("mvn", "-q", "-B")
QUIET: Final = {"MAVEN_OPTS": "-Dorg.slf4j.simpleLogger.log.org.apache.maven.cli.transfer=warn"}
START: Final = (
    "exec java -XX:+UseSerialGC -XX:TieredStopAtLevel=1 "
    '-cp "target/classes:$(cat target/class-path)" dev.credentialbroker.driver.Driver'
)
POM: Final = """<project>
  <modelVersion>4.0.0</modelVersion>
  <groupId>test.example</groupId>
  <artifactId>quickstart</artifactId>
  <version>1</version>
  <properties>
    <maven.compiler.source>17</maven.compiler.source>
    <maven.compiler.target>17</maven.compiler.target>
    <project.build.sourceEncoding>UTF-8</project.build.sourceEncoding>
  </properties>
  <dependencies>
    <dependency>
      <groupId>dev.credentialbroker</groupId>
      <artifactId>credentialbroker</artifactId>
      <version>0.1.0</version>
    </dependency>
  </dependencies>
</project>
"""
TRY: Final = """
import dev.credentialbroker.client.AuthorizationRequest;
import dev.credentialbroker.client.BrokerClient;
import dev.credentialbroker.client.BrokerException;
import dev.credentialbroker.v1.ErrorReason;
import java.time.Duration;

public class Try {
  public static void main(String[] arguments) {
    try (BrokerClient broker = BrokerClient.builder().address("127.0.0.1:1").build()) {
      broker.authorization(AuthorizationRequest.of("inference", "t").withTimeout(Duration.ofMillis(300)));
    } catch (BrokerException e) {
      System.out.println((e.reason() == ErrorReason.ERROR_REASON_UNSPECIFIED) + " " + e.code());
    }
  }
}
"""


def describe(tree: Path) -> Language:
    """Describe Java, for a tree."""
    return Language(
        name="java",
        programs=("java", "mvn"),
        checks=(
            Command(
                words=(*MAVEN, "spotless:check", "verify", "javadoc:javadoc-no-fork"), folder=PACKAGE, variables=QUIET
            ),
            # As the stubs promise: also with the protobuf of users that are ahead of gRPC's own.
            Command(
                words=(*MAVEN, "-Pprotobuf4", "-pl", "credentialbroker", "-am", "verify"),
                folder=PACKAGE,
                variables=QUIET,
            ),
        ),
        # Example and benchmark build themselves when they are run: a defect need not wait for them.
        build=(Command(words=(*MAVEN, "-f", "reactor.xml", "compile"), folder=DRIVER, variables=QUIET),),
        drivers={
            "java": Command(
                words=(
                    "sh",
                    "-c",
                    START,
                ),
                folder=DRIVER,
            )
        },
        example=Command(
            words=(
                "sh",
                "-c",
                'exec mvn -q -B -pl examples/quickstart -am compile exec:java -Dexec.args="$1"',
                "quickstart",
            ),
            folder=PACKAGE,
            variables=QUIET,
        ),
        benchmark=Command(
            words=(*MAVEN, "-pl", "benchmarks", "-am", "compile", "exec:exec"), folder=PACKAGE, variables=QUIET
        ),
        prove_install=prove_install,
    )


def prove_install(tree: Path, folder: Path) -> None:
    """Install the package for this user, as its README says, and use it in a new project."""

    def maven(*words: str) -> str:
        return subprocess.run(
            [*MAVEN, *words], cwd=folder, check=True, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
        ).stdout

    sources = folder / "src" / "main" / "java"
    sources.mkdir(parents=True)
    (folder / "pom.xml").write_text(POM, encoding="utf-8")
    (sources / "Try.java").write_text(TRY, encoding="utf-8")
    # In a repository of its own, so that no later build finds this version in that of the user: begun as a copy of that,
    # since Maven 3.8 cannot look into two.
    repository = folder / "repository"
    usual = Path.home() / ".m2" / "repository"
    if usual.is_dir():
        shutil.copytree(usual, repository, ignore=shutil.ignore_patterns("credentialbroker*"))
    own = f"-Dmaven.repo.local={repository}"
    maven(own, "-f", str(tree / PACKAGE / "pom.xml"), "install", "-DskipTests")
    printed = maven(own, "compile", "org.codehaus.mojo:exec-maven-plugin:3.6.2:java", "-Dexec.mainClass=Try")
    if "true DEADLINE_EXCEEDED" not in printed:
        raise subprocess.CalledProcessError(1, "mvn exec:java", printed)
