//! The packet path of Weir. Modules stand in the order in which a packet meets them; read `pipeline` first.

#![deny(unsafe_code)]

pub mod admin;
pub mod answer;
pub mod capture;
pub mod config;
pub mod conntrack;
pub mod counters;
pub mod craft;
pub mod daemon;
pub mod events;
pub mod flows;
pub mod io;
pub mod model;
pub mod nat;
pub mod overlay;
pub mod parse;
pub mod pipeline;
pub mod policy;
pub mod route;
pub mod runtime;
pub mod service;
pub mod tables;
pub mod tap;
pub mod verdict;
pub mod wire;
pub mod worker;
pub mod yaml;
