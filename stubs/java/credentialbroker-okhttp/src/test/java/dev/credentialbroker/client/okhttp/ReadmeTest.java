package dev.credentialbroker.client.okhttp;

import static org.junit.jupiter.api.Assertions.assertEquals;
import static org.junit.jupiter.api.Assertions.assertTrue;

import java.io.IOException;
import java.net.URI;
import java.nio.file.Files;
import java.nio.file.Path;
import java.util.ArrayList;
import java.util.List;
import java.util.regex.Matcher;
import java.util.regex.Pattern;
import javax.tools.DiagnosticCollector;
import javax.tools.JavaCompiler;
import javax.tools.JavaFileObject;
import javax.tools.SimpleJavaFileObject;
import javax.tools.ToolProvider;
import org.junit.jupiter.api.Test;
import org.junit.jupiter.api.io.TempDir;

/** What the README shows compiles. */
class ReadmeTest {
  private static final String AROUND =
      """
      import dev.credentialbroker.client.*;
      import dev.credentialbroker.client.okhttp.*;
      import dev.credentialbroker.v1.CredentialBrokerGrpc;
      import java.net.http.*;
      import java.net.http.HttpResponse.BodyHandlers;
      import java.nio.file.Path;
      import okhttp3.HttpUrl;
      import okhttp3.OkHttpClient;
      import okhttp3.Request;

      class Snippet {
        %s
        BrokerHttpClient backend;
        HttpRequest request;
        HttpRequest.Builder builder;
        AuthorizationRequest wanted;
        CredentialBrokerGrpc.CredentialBrokerBlockingStub stub;

        void show() throws Exception {
          %s
        }
      }
      """;

  @TempDir Path folder;

  @Test
  void compiles() throws IOException {
    Matcher blocks =
        Pattern.compile("```java\n(.*?)```", Pattern.DOTALL)
            .matcher(Files.readString(Path.of("../README.md")));
    List<String> wrong = new ArrayList<>();
    int count = 0;
    for (; blocks.find(); count++) {
      String block = blocks.group(1);
      wrong.addAll(compile(block));
    }
    assertEquals(List.of(), wrong);
    assertTrue(count >= 8);
  }

  private List<String> compile(String block) {
    boolean whole = block.startsWith("import ");
    boolean makesBroker = block.startsWith("BrokerClient broker");
    String text =
        whole ? block : AROUND.formatted(makesBroker ? "" : "BrokerClient broker;", block);
    JavaFileObject source =
        new SimpleJavaFileObject(
            URI.create("string:///" + (whole ? "Main" : "Snippet") + ".java"),
            JavaFileObject.Kind.SOURCE) {
          @Override
          public CharSequence getCharContent(boolean ignoreEncodingErrors) {
            return text;
          }
        };
    DiagnosticCollector<JavaFileObject> said = new DiagnosticCollector<>();
    JavaCompiler compiler = ToolProvider.getSystemJavaCompiler();
    List<String> options =
        List.of("-d", folder.toString(), "-cp", System.getProperty("java.class.path"));
    boolean well = compiler.getTask(null, null, said, options, null, List.of(source)).call();
    return well ? List.of() : List.of(block + said.getDiagnostics());
  }
}
