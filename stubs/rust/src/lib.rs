#![cfg_attr(feature = "tower", doc = include_str!("../README.md"))]
#![cfg_attr(not(feature = "tower"), doc = "Client of the credential broker: see its README.md.")]

// Where to begin: `client` is the face, `client/calls` asks the broker, `client/upkeep` works beside the uses. `cache` says
// what stays and what goes, `flights` that many wait for one call, `watch` what the stream brings. `transport` gets there.
mod address;
mod authorization;
mod backoff;
mod builder;
mod cache;
mod client;
mod connection;
mod error;
mod flights;
mod interceptor;
mod lifetime;
mod locks;
mod origin;
mod presence;
mod tasks;
#[cfg(feature = "tower")]
pub mod tower;
mod transport;
mod watch;

pub use authorization::{Authorization, Request};
pub use builder::Builder;
pub use client::{Client, State};
pub use connection::Connection;
pub use error::{ArgumentError, BrokerError, Error};
pub use interceptor::Interceptor;
pub use transport::Channel;

/// The generated messages and services of `credentialbroker.v1`: callers' and operators'.
#[allow(missing_docs, clippy::all, clippy::pedantic, unreachable_pub)]
pub mod v1 {
    include!("generated/credentialbroker.v1.rs");
}
