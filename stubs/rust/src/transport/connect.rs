//! One connection: dialling, TLS, HTTP/2.

use std::fmt;
use std::io;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use hyper::client::conn::http2;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio::sync::oneshot;
use tokio::time::timeout;
use tonic::body::Body;

use crate::tasks::Tasks;

const DIAL: Duration = Duration::from_secs(20);
const PING: Duration = Duration::from_secs(60);
const PONG: Duration = Duration::from_secs(20);

/// Where one connection goes.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Target {
    Tcp(SocketAddr),
    Unix(PathBuf),
}

impl fmt::Display for Target {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tcp(address) => address.fmt(formatter),
            Self::Unix(path) => path.display().fmt(formatter),
        }
    }
}

/// Makes connections. Clones share the TLS settings.
#[derive(Clone)]
pub(crate) struct Connector {
    pub(crate) tasks: Tasks,
    #[cfg(feature = "tls")]
    pub(crate) tls: Option<std::sync::Arc<super::tls::Tls>>,
}

/// What calls are sent with.
pub(crate) type Sender = http2::SendRequest<Body>;

/// Ends when the connection does.
pub(crate) type Running = http2::Connection<TokioIo<Heard>, Body, Tasks>;

pub(crate) trait Stream: AsyncRead + AsyncWrite + Send + Unpin {}
impl<S: AsyncRead + AsyncWrite + Send + Unpin> Stream for S {}

impl Connector {
    /// Looks at the TLS files, if it is time.
    #[cfg_attr(not(feature = "tls"), allow(clippy::unused_self))]
    pub(crate) fn look(&self) {
        #[cfg(feature = "tls")]
        if let Some(tls) = &self.tls {
            tls.look();
        }
    }

    pub(crate) async fn connect(&self, target: &Target) -> io::Result<(Sender, Running)> {
        timeout(DIAL, self.dial(target)).await.map_err(|_| io::Error::from(io::ErrorKind::TimedOut))?
    }

    async fn dial(&self, target: &Target) -> io::Result<(Sender, Running)> {
        let stream: Box<dyn Stream> = match target {
            Target::Tcp(address) => {
                let stream = TcpStream::connect(address).await?;
                stream.set_nodelay(true)?;
                Box::new(stream)
            }
            #[cfg(unix)]
            Target::Unix(path) => Box::new(tokio::net::UnixStream::connect(path).await?),
            #[cfg(not(unix))]
            Target::Unix(_) => return Err(io::ErrorKind::Unsupported.into()),
        };
        #[cfg(feature = "tls")]
        let stream: Box<dyn Stream> = match &self.tls {
            None => stream,
            Some(tls) => {
                tls.look();
                let (connector, name) = tls.current();
                Box::new(connector.connect(name, stream).await?)
            }
        };
        let (stream, heard) = Heard::new(stream);
        let (sender, running) = http2::Builder::new(self.tasks.clone())
            .timer(TokioTimer::new())
            .keep_alive_interval(PING)
            .keep_alive_timeout(PONG)
            .keep_alive_while_idle(true)
            .handshake(TokioIo::new(stream))
            .await
            .map_err(io::Error::other)?;
        // hyper does not wait for the broker's settings, with which HTTP/2 begins: until there is a word of it, whatever
        // took the connection may be about to drop it.
        heard.await.map_err(|_| io::Error::from(io::ErrorKind::ConnectionReset))?;
        Ok((sender, running))
    }
}

/// A stream that says when the first byte is read from it; dropped before, it says nothing.
pub(crate) struct Heard {
    stream: Box<dyn Stream>,
    first: Option<oneshot::Sender<()>>,
}

impl Heard {
    fn new(stream: Box<dyn Stream>) -> (Self, oneshot::Receiver<()>) {
        let (first, heard) = oneshot::channel();
        (Self { stream, first: Some(first) }, heard)
    }
}

impl AsyncRead for Heard {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buffer.filled().len();
        let read = Pin::new(&mut self.stream).poll_read(context, buffer);
        if buffer.filled().len() > before
            && let Some(first) = self.first.take()
        {
            let _ = first.send(());
        }
        read
    }
}

impl AsyncWrite for Heard {
    fn poll_write(mut self: Pin<&mut Self>, context: &mut Context<'_>, data: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(context, data)
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(context)
    }
}
