//! TLS to the broker from files that may change while the client runs.

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio::time::Instant;
use tokio_rustls::TlsConnector;
use tokio_rustls::rustls::crypto::ring;
use tokio_rustls::rustls::pki_types::pem::PemObject as _;
use tokio_rustls::rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use tokio_rustls::rustls::{ClientConfig, RootCertStore};

use crate::error::ArgumentError;
use crate::locks::lock;

/// The files are looked at no more often than this.
const LOOK: Duration = Duration::from_secs(10);

/// The files, and the name that the broker's certificate must have.
#[derive(Clone, Debug)]
pub(crate) struct Files {
    pub(crate) authorities: PathBuf,
    /// Certificate and private key of the client.
    pub(crate) identity: Option<(PathBuf, PathBuf)>,
    pub(crate) server_name: String,
}

/// The newest settings that the files gave.
pub(crate) struct Tls {
    files: Files,
    name: ServerName<'static>,
    loaded: Mutex<Loaded>,
}

struct Loaded {
    looked: Instant,
    contents: Contents,
    config: Arc<ClientConfig>,
}

/// What the files hold: authorities, certificate, key.
#[derive(PartialEq, Eq)]
struct Contents(Vec<Vec<u8>>);

impl Tls {
    /// Reads the files; the error names the one that is wrong.
    pub(crate) fn read(files: Files) -> Result<Self, ArgumentError> {
        let name = ServerName::try_from(files.server_name.clone())
            .map_err(|_| ArgumentError::new(format!("{:?} is no name of a server", files.server_name)))?;
        let contents = files.read()?;
        let config = files.parse(&contents)?;
        Ok(Self { files, name, loaded: Mutex::new(Loaded { looked: Instant::now(), contents, config }) })
    }

    /// Looks whether the files have changed, when the last look is long enough ago. Files that cannot be read or do not
    /// parse leave the settings as they are.
    pub(crate) fn look(&self) {
        let mut loaded = lock(&self.loaded);
        if loaded.looked.elapsed() < LOOK {
            return;
        }
        loaded.looked = Instant::now();
        let parsed = self.files.read().and_then(|contents| {
            let changed = contents != loaded.contents;
            Ok(if changed { Some((self.files.parse(&contents)?, contents)) } else { None })
        });
        match parsed {
            Ok(Some((config, contents))) => {
                loaded.config = config;
                loaded.contents = contents;
            }
            Ok(None) => {}
            Err(error) => tracing::warn!("the TLS files of the credential broker's client stay as they were: {error}"),
        }
    }

    /// Returns what the next connection uses.
    pub(crate) fn current(&self) -> (TlsConnector, ServerName<'static>) {
        let loaded = lock(&self.loaded);
        (TlsConnector::from(Arc::clone(&loaded.config)), self.name.clone())
    }
}

impl Files {
    fn read(&self) -> Result<Contents, ArgumentError> {
        let identity = self.identity.iter().flat_map(|(certificate, key)| [certificate, key]);
        let contents = std::iter::once(&self.authorities).chain(identity).map(|path| {
            std::fs::read(path)
                .map_err(|error| ArgumentError::new(format!("{} cannot be read: {error}", path.display())))
        });
        contents.collect::<Result<_, _>>().map(Contents)
    }

    fn parse(&self, contents: &Contents) -> Result<Arc<ClientConfig>, ArgumentError> {
        let mut roots = RootCertStore::empty();
        for certificate in certificates(&self.authorities, &contents.0[0])? {
            roots.add(certificate).map_err(|error| wrong(&self.authorities, &error))?;
        }
        let builder = ClientConfig::builder_with_provider(Arc::new(ring::default_provider()))
            .with_safe_default_protocol_versions()
            .map_err(|error| ArgumentError::new(error.to_string()))?
            .with_root_certificates(roots);
        let mut config = match &self.identity {
            None => builder.with_no_client_auth(),
            Some((certificate, key)) => {
                let chain = certificates(certificate, &contents.0[1])?;
                // The parser's own words could quote the key.
                let parsed = PrivateKeyDer::from_pem_slice(&contents.0[2])
                    .map_err(|_| wrong(key, &"it holds no private key in PEM"))?;
                builder.with_client_auth_cert(chain, parsed).map_err(|error| {
                    wrong(certificate, &format!("it cannot be used with the key {}: {error}", key.display()))
                })?
            }
        };
        config.alpn_protocols = vec![b"h2".to_vec()];
        Ok(Arc::new(config))
    }
}

fn certificates(path: &Path, pem: &[u8]) -> Result<Vec<CertificateDer<'static>>, ArgumentError> {
    let found: Vec<_> =
        CertificateDer::pem_slice_iter(pem).collect::<Result<_, _>>().map_err(|error| wrong(path, &error))?;
    if found.is_empty() { Err(wrong(path, &"it holds no certificate in PEM")) } else { Ok(found) }
}

fn wrong(path: &Path, why: &dyn std::fmt::Display) -> ArgumentError {
    ArgumentError::new(format!("{} cannot be used: {why}", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use rcgen::{CertifiedKey, generate_simple_self_signed};

    struct Folder(PathBuf);

    impl Folder {
        fn new(name: &str) -> Self {
            let path = std::env::temp_dir().join(format!("credentialbroker-{name}-{}", std::process::id()));
            std::fs::create_dir_all(&path).unwrap();
            Self(path)
        }

        fn put(&self, name: &str, content: &str) -> PathBuf {
            let path = self.0.join(name);
            std::fs::write(&path, content).unwrap();
            path
        }
    }

    impl Drop for Folder {
        fn drop(&mut self) {
            let _ = std::fs::remove_dir_all(&self.0);
        }
    }

    fn pair() -> (String, String) {
        let CertifiedKey { cert, signing_key } = generate_simple_self_signed(["broker.test".to_owned()]).unwrap();
        (cert.pem(), signing_key.serialize_pem())
    }

    fn files(authorities: PathBuf) -> Files {
        Files { authorities, identity: None, server_name: "broker.test".to_owned() }
    }

    #[test]
    fn whatever_is_wrong_with_a_file_names_it() {
        let folder = Folder::new("wrong");
        let (certificate, key) = pair();
        let good = folder.put("ca.pem", &certificate);
        let other_key = folder.put("other.key", &pair().1);
        let (empty, junk) =
            (folder.put("empty.pem", ""), folder.put("junk.pem", "-----BEGIN CERTIFICATE-----\nZm9v\n"));
        let key = folder.put("client.key", &key);
        let missing = folder.0.join("missing.pem");
        let with = |certificate: &PathBuf, key: &PathBuf| Files {
            identity: Some((certificate.clone(), key.clone())),
            ..files(good.clone())
        };
        for (files, named) in [
            (files(missing.clone()), &missing),
            (files(empty.clone()), &empty),
            (files(junk.clone()), &junk),
            (with(&missing, &key), &missing),
            (with(&good, &missing), &missing),
            (with(&good, &empty), &empty),
            (with(&good, &good), &good),
            (with(&good, &other_key), &other_key),
        ] {
            let message = Tls::read(files).err().expect("it must be refused").to_string();
            assert!(message.contains(&named.display().to_string()), "{message}");
        }
        assert!(Tls::read(with(&good, &key)).is_ok());
    }

    #[tokio::test(start_paused = true)]
    async fn changed_files_are_used_after_the_next_look_unless_they_do_not_parse() {
        let folder = Folder::new("changed");
        let tls = Tls::read(files(folder.put("ca.pem", &pair().0))).unwrap();
        let config = |tls: &Tls| Arc::clone(&tls.loaded.lock().unwrap().config);
        let first = config(&tls);

        folder.put("ca.pem", "junk");
        tokio::time::advance(LOOK).await;
        tls.look();
        assert!(Arc::ptr_eq(&first, &config(&tls)));

        folder.put("ca.pem", &pair().0);
        tls.look();
        assert!(Arc::ptr_eq(&first, &config(&tls)), "looked again too soon");
        tokio::time::advance(LOOK).await;
        tls.look();
        assert!(!Arc::ptr_eq(&first, &config(&tls)));
    }
}
