package dev.credentialbroker.client;

import io.grpc.ChannelCredentials;
import io.grpc.TlsChannelCredentials;
import io.grpc.util.AdvancedTlsX509KeyManager;
import io.grpc.util.AdvancedTlsX509TrustManager;
import io.grpc.util.CertificateUtils;
import java.io.IOException;
import java.io.InputStream;
import java.nio.file.Files;
import java.nio.file.Path;
import java.nio.file.attribute.FileTime;
import java.security.GeneralSecurityException;
import java.security.PrivateKey;
import java.security.PublicKey;
import java.security.Signature;
import java.security.cert.X509Certificate;
import java.util.ArrayList;
import java.util.List;
import java.util.concurrent.TimeUnit;

/** The PEM files that TLS stands on, which are read again when they change. */
final class TlsFiles {
  private static final System.Logger LOG = System.getLogger(TlsFiles.class.getPackageName());
  private static final long LOOK_INTERVAL = TimeUnit.SECONDS.toNanos(10);

  private final Path authorities;
  private final Path certificate;
  private final Path key;
  private final AdvancedTlsX509TrustManager trust;
  private final AdvancedTlsX509KeyManager identity = new AdvancedTlsX509KeyManager();
  private List<Object> read;
  private volatile long looked = System.nanoTime();

  /**
   * Reads the files.
   *
   * @param certificate the client's own, or null
   * @param key of the certificate, null exactly where the certificate is
   * @throws IllegalArgumentException when one cannot be used, which the message names
   */
  TlsFiles(Path authorities, Path certificate, Path key) {
    this.authorities = authorities;
    this.certificate = certificate;
    this.key = key;
    try {
      trust = AdvancedTlsX509TrustManager.newBuilder().build();
      read = marks();
      load();
    } catch (IOException | GeneralSecurityException e) {
      throw new IllegalArgumentException(e.getMessage(), e);
    }
  }

  ChannelCredentials credentials() {
    TlsChannelCredentials.Builder builder = TlsChannelCredentials.newBuilder().trustManager(trust);
    return (certificate == null ? builder : builder.keyManager(identity)).build();
  }

  /**
   * Reads the files again if they changed and nobody looked for 10 s. Connections that are made
   * from then on use them; files that cannot be used leave the old ones in place.
   */
  void refresh() {
    if (System.nanoTime() - looked < LOOK_INTERVAL) {
      return;
    }
    synchronized (this) {
      if (System.nanoTime() - looked < LOOK_INTERVAL) {
        return;
      }
      looked = System.nanoTime();
      try {
        List<Object> now = marks();
        if (!now.equals(read)) {
          read = now;
          load();
        }
      } catch (IOException | GeneralSecurityException e) {
        LOG.log(System.Logger.Level.WARNING, "TLS files are not read anew: {0}", e.getMessage());
      }
    }
  }

  /** Reads all files, and only then uses them: a half of a new pair is worse than an old one. */
  private void load() throws IOException, GeneralSecurityException {
    X509Certificate[] signers = certificates(authorities);
    if (certificate != null) {
      X509Certificate[] chain = certificates(certificate);
      PrivateKey secret = key();
      if (!belongTogether(chain[0].getPublicKey(), secret)) {
        throw new IOException("the key in " + key + " is not that of " + certificate);
      }
      identity.updateIdentityCredentials(chain, secret);
    }
    trust.updateTrustCredentials(signers);
  }

  private static X509Certificate[] certificates(Path path) throws IOException {
    X509Certificate[] found;
    try (InputStream file = Files.newInputStream(path)) {
      found = CertificateUtils.getX509Certificates(file);
    } catch (IOException | GeneralSecurityException e) {
      throw new IOException("cannot read certificates from " + path, e);
    }
    if (found.length == 0) {
      throw new IOException("no certificate is in " + path);
    }
    return found;
  }

  private PrivateKey key() throws IOException {
    try (InputStream file = Files.newInputStream(key)) {
      return CertificateUtils.getPrivateKey(file);
    } catch (IOException | GeneralSecurityException | RuntimeException e) {
      // Without the cause, whose message may quote the file.
      throw new IOException("cannot read a PKCS #8 key in PEM from " + key);
    }
  }

  private static boolean belongTogether(PublicKey known, PrivateKey secret)
      throws GeneralSecurityException {
    if (!known.getAlgorithm().equals(secret.getAlgorithm())) {
      return false;
    }
    String algorithm =
        switch (known.getAlgorithm()) {
          case "EC" -> "SHA256withECDSA";
          case "RSA" -> "SHA256withRSA";
          default -> known.getAlgorithm();
        };
    byte[] probe = new byte[32];
    Signature signature = Signature.getInstance(algorithm);
    signature.initSign(secret);
    signature.update(probe);
    byte[] signed = signature.sign();
    signature.initVerify(known);
    signature.update(probe);
    return signature.verify(signed);
  }

  /** What changes when a file does: a replaced one has another time, size or real path. */
  private List<Object> marks() throws IOException {
    List<Object> marks = new ArrayList<>();
    for (Path path :
        certificate == null ? List.of(authorities) : List.of(authorities, certificate, key)) {
      try {
        FileTime time = Files.getLastModifiedTime(path);
        marks.add(List.of(time, Files.size(path), path.toRealPath()));
      } catch (IOException e) {
        throw new IOException("cannot read " + path + ": " + e.getClass().getSimpleName(), e);
      }
    }
    return marks;
  }
}
