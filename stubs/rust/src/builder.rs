//! How a client is made.

use std::path::PathBuf;
use std::time::Duration;

use http::Uri;
use tokio::runtime::Handle;

use crate::address::{self, Address};
use crate::client::Client;
use crate::error::ArgumentError;
use crate::lifetime::CENTURY;
use crate::tasks::Tasks;
use crate::transport::{Channel, Connector};

pub(crate) const TIMEOUT: Duration = Duration::from_secs(10);

/// Settings of a client. What is not set here comes from the environment, then from a default.
///
/// | | variable | default |
/// |---|---|---|
/// | [`address`](Self::address) | `CREDENTIAL_BROKER_ADDRESS` | `dns:///127.0.0.1:50051` |
/// | [`ca_file`](Self::ca_file) | `CREDENTIAL_BROKER_CA_FILE` | no TLS |
/// | [`certificate_file`](Self::certificate_file) | `CREDENTIAL_BROKER_CERTIFICATE_FILE` | none |
/// | [`private_key_file`](Self::private_key_file) | `CREDENTIAL_BROKER_PRIVATE_KEY_FILE` | none |
/// | [`server_name`](Self::server_name) | `CREDENTIAL_BROKER_SERVER_NAME` | the host of the address |
/// | [`plaintext`](Self::plaintext) | `CREDENTIAL_BROKER_PLAINTEXT=1` | refused |
#[derive(Clone, Debug)]
#[must_use]
pub struct Builder {
    pub(crate) identity: String,
    pub(crate) watch: bool,
    pub(crate) timeout: Duration,
    pub(crate) cache_size: usize,
    pub(crate) idle: Duration,
    pub(crate) silence: Duration,
    address: Option<String>,
    ca_file: Option<PathBuf>,
    certificate_file: Option<PathBuf>,
    private_key_file: Option<PathBuf>,
    server_name: Option<String>,
    plaintext: Option<bool>,
}

impl Default for Builder {
    fn default() -> Self {
        Self {
            identity: String::new(),
            watch: true,
            timeout: TIMEOUT,
            cache_size: 1_000,
            idle: Duration::from_secs(300),
            silence: Duration::from_secs(60),
            address: None,
            ca_file: None,
            certificate_file: None,
            private_key_file: None,
            server_name: None,
            plaintext: None,
        }
    }
}

impl Builder {
    /// Where the broker is: `unix:///absolute/path`, `dns:///host:port` or `host:port`.
    pub fn address(mut self, address: impl Into<String>) -> Self {
        self.address = Some(address.into());
        self
    }

    /// File of the authorities, in PEM, that sign the broker's certificate. Switches TLS on.
    pub fn ca_file(mut self, path: impl Into<PathBuf>) -> Self {
        self.ca_file = Some(path.into());
        self
    }

    /// File of the client's own certificate chain, in PEM, for mTLS.
    pub fn certificate_file(mut self, path: impl Into<PathBuf>) -> Self {
        self.certificate_file = Some(path.into());
        self
    }

    /// File of the private key of the client's own certificate, in PEM.
    pub fn private_key_file(mut self, path: impl Into<PathBuf>) -> Self {
        self.private_key_file = Some(path.into());
        self
    }

    /// The name in the broker's certificate, where it is not the host of the address.
    pub fn server_name(mut self, name: impl Into<String>) -> Self {
        self.server_name = Some(name.into());
        self
    }

    /// Whether headers may cross a network without TLS. This machine's own addresses never need it.
    pub fn plaintext(mut self, plaintext: bool) -> Self {
        self.plaintext = Some(plaintext);
        self
    }

    /// The identity of requests that name none.
    pub fn identity(mut self, identity: impl Into<String>) -> Self {
        self.identity = identity.into();
        self
    }

    /// Whether the broker sends next values and withdrawals on a stream. Without one the client asks when a value is
    /// due, and learns of a withdrawal when a value ends. On by default.
    pub fn watch(mut self, watch: bool) -> Self {
        self.watch = watch;
        self
    }

    /// How long a use waits for the broker at most. 10 s by default, which is also the broker's own limit.
    pub fn timeout(mut self, timeout: Duration) -> Self {
        self.timeout = timeout;
        self
    }

    /// How many authorizations are kept at most; the least recently used go first. 1,000 by default.
    pub fn cache_size(mut self, size: usize) -> Self {
        self.cache_size = size;
        self
    }

    /// After how long without use an authorization is let go, when its next value is due. 5 minutes by default.
    pub fn idle(mut self, idle: Duration) -> Self {
        self.idle = idle;
        self
    }

    /// After how long without any message the stream is dead. 60 s by default: the broker says something each 20 s.
    pub fn silence(mut self, silence: Duration) -> Self {
        self.silence = silence;
        self
    }

    /// Makes the client. Does no I/O but reading the TLS files: the broker need not be there.
    ///
    /// # Errors
    ///
    /// A setting, a variable or a file is wrong, or this is not called within a tokio runtime.
    pub fn build(mut self) -> Result<Client, ArgumentError> {
        // What is empty is as if it were not given.
        self.address = self.address.filter(|text| !text.is_empty());
        self.server_name = self.server_name.filter(|text| !text.is_empty());
        for file in [&mut self.ca_file, &mut self.certificate_file, &mut self.private_key_file] {
            *file = file.take().filter(|path| !path.as_os_str().is_empty());
        }
        for time in [&mut self.timeout, &mut self.idle, &mut self.silence] {
            *time = (*time).min(CENTURY);
        }
        self.fill_from(|name| std::env::var(name).ok().filter(|value| !value.is_empty()));
        let runtime = Handle::try_current()
            .map_err(|_| ArgumentError::new("a client of the credential broker is made within a tokio runtime"))?;
        let address =
            Address::parse(self.address.as_deref().unwrap_or(address::DEFAULT)).map_err(ArgumentError::new)?;
        self.check(&address)?;

        let tasks = Tasks::new(runtime);
        let connector = Connector {
            tasks: tasks.clone(),
            #[cfg(feature = "tls")]
            tls: self.tls(&address)?,
        };
        let authority = self.server_name.clone().unwrap_or_else(|| address.authority());
        let scheme = if self.ca_file.is_some() { "https" } else { "http" };
        let origin = Uri::builder().scheme(scheme).authority(authority).path_and_query("/").build();
        let origin = origin.map_err(|_| ArgumentError::new(format!("{address} cannot be called")))?;
        let channel = Channel::new(address, self.timeout, connector);
        Ok(Client::start(self, channel, origin, tasks))
    }

    /// Takes what is not set from the environment.
    fn fill_from(&mut self, variable: impl Fn(&str) -> Option<String>) {
        fn fill<T: From<String>>(setting: &mut Option<T>, variable: Option<String>) {
            if setting.is_none() {
                *setting = variable.map(T::from);
            }
        }
        fill(&mut self.address, variable("CREDENTIAL_BROKER_ADDRESS"));
        fill(&mut self.ca_file, variable("CREDENTIAL_BROKER_CA_FILE"));
        fill(&mut self.certificate_file, variable("CREDENTIAL_BROKER_CERTIFICATE_FILE"));
        fill(&mut self.private_key_file, variable("CREDENTIAL_BROKER_PRIVATE_KEY_FILE"));
        fill(&mut self.server_name, variable("CREDENTIAL_BROKER_SERVER_NAME"));
        let plaintext = || variable("CREDENTIAL_BROKER_PLAINTEXT").is_some_and(|value| value == "1");
        self.plaintext.get_or_insert_with(plaintext);
    }

    fn check(&self, address: &Address) -> Result<(), ArgumentError> {
        let refused = |why: &str| Err(ArgumentError::new(why));
        if self.certificate_file.is_some() != self.private_key_file.is_some() {
            return refused("a client's certificate needs its private key, and the key its certificate");
        }
        if self.ca_file.is_none() && self.certificate_file.is_some() {
            return refused("a client's certificate needs the authorities of the broker's (ca_file)");
        }
        if self.ca_file.is_some() && cfg!(not(feature = "tls")) {
            return refused("this program was built without the feature `tls` of credentialbroker");
        }
        if self.ca_file.is_none() && !address.is_local() && self.plaintext != Some(true) {
            return Err(ArgumentError::new(format!(
                "headers would cross the network to {address} without TLS: name the authorities of the broker's \
                 certificate (ca_file, CREDENTIAL_BROKER_CA_FILE), or allow it (plaintext, CREDENTIAL_BROKER_PLAINTEXT=1)"
            )));
        }
        Ok(())
    }

    #[cfg(feature = "tls")]
    fn tls(&self, address: &Address) -> Result<Option<std::sync::Arc<crate::transport::tls::Tls>>, ArgumentError> {
        use crate::transport::tls::{Files, Tls};

        let Some(authorities) = self.ca_file.clone() else { return Ok(None) };
        let files = Files {
            authorities,
            identity: self.certificate_file.clone().zip(self.private_key_file.clone()),
            server_name: self.server_name.clone().unwrap_or_else(|| address.host().to_owned()),
        };
        Ok(Some(std::sync::Arc::new(Tls::read(files)?)))
    }
}
