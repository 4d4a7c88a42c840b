//! The kernel's network as Weir sees it: namespaces, links, addresses, routes, neighbours, offloads.
//!
//! By netlink, never by calling `ip`. Plain blocking functions; who wants a namespace other than its own thread's opens a
//! [`Net`] there ([`Net::open_in`]) or works inside it ([`Netns::run`]). Knows nothing of Kubernetes or of packets.
//!
//! ```no_run
//! use weir_host::{Net, Netns, VethEnd};
//! let netns = Netns::create("demo")?;
//! let net = Net::open()?;
//! net.create_veth(
//!     &VethEnd { name: "demo0", mac: None, mtu: 1500, queues: 1, netns: None },
//!     &VethEnd { name: "eth0", mac: None, mtu: 1500, queues: 1, netns: Some(&netns) },
//! )?;
//! netns.run(|| Net::open()?.set_up("eth0"))??;
//! # Ok::<(), weir_host::Error>(())
//! ```

#![forbid(unsafe_code)]

mod address;
mod error;
mod link;
mod monitor;
mod neighbour;
mod net;
mod netns;
pub mod offload;
mod pod;
mod route;
mod socket;
pub mod sysctl;

pub use address::Address;
pub use error::{Error, Result};
pub use link::{Link, Mac, VethEnd, Vxlan};
pub use monitor::{Monitor, Picture};
pub use neighbour::{Neighbour, Reach};
pub use net::Net;
pub use netns::Netns;
pub use pod::{POD_INTERFACE, PodLink, attach_pod, detach_pod, guard};
pub use route::{Hop, NewRoute, ROUTE_PROTOCOL, Route};
