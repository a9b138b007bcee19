//! The way to the broker: connections to all its addresses, and calls over them that wait and are tried again.
//!
//! tonic's own channel has no retries, balances by load over a fixed list of addresses, and never resolves a name again.

mod channel;
mod connect;
mod replicas;
#[cfg(feature = "tls")]
pub(crate) mod tls;

pub use channel::Channel;
pub(crate) use connect::Connector;
