//! Offloads that AF_XDP cannot carry: the marks by which the kernel postpones checksums and segmentation are lost when a
//! frame leaves it by XDP, so who sends must finish its frames itself, or leave checksums in a form that tells.
//!
//! By generic netlink, family `ethtool` (`Documentation/networking/ethtool-netlink.rst`, FEATURES_GET and FEATURES_SET).

use std::collections::BTreeSet;

use netlink_sys::protocols::NETLINK_GENERIC;

use crate::error::{Error, Result};
use crate::socket::{Socket, attributes, put_attribute};

/// Tells whether a feature, as the kernel spells it (`net/ethtool/common.c`), postpones work on a frame: checksums and
/// scattered frames on transmit, every kind of segmentation, aggregation on receive. By pattern, because kernels differ in
/// what kinds they know, and refuse names that they do not.
pub fn postpones_work(feature: &str) -> bool {
    feature.starts_with("tx-checksum-")
        || feature.starts_with("tx-scatter-gather")
        || feature.ends_with("-segmentation")
        || feature == "tx-gso-list"
        || feature.starts_with("rx-gro")
}

/// Generic netlink's own family number (`GENL_ID_CTRL`), its command and attributes.
const GENL_ID_CTRL: u16 = 0x10;
const CTRL_CMD_GETFAMILY: u8 = 3;
const CTRL_ATTR_FAMILY_ID: u16 = 1;
const CTRL_ATTR_FAMILY_NAME: u16 = 2;
/// `include/uapi/linux/ethtool_netlink_generated.h`.
const ETHTOOL_MSG_FEATURES_GET: u8 = 11;
const ETHTOOL_MSG_FEATURES_SET: u8 = 12;
const ETHTOOL_A_FEATURES_HEADER: u16 = 1;
const ETHTOOL_A_FEATURES_WANTED: u16 = 3;
const ETHTOOL_A_FEATURES_ACTIVE: u16 = 4;
const ETHTOOL_A_HEADER_DEV_NAME: u16 = 2;
const ETHTOOL_A_HEADER_FLAGS: u16 = 3;
const ETHTOOL_FLAG_OMIT_REPLY: u32 = 2;
const ETHTOOL_A_BITSET_BITS: u16 = 3;
const ETHTOOL_A_BITSET_BITS_BIT: u16 = 1;
const ETHTOOL_A_BITSET_BIT_NAME: u16 = 2;
const ETHTOOL_A_BITSET_BIT_VALUE: u16 = 3;
const NESTED: u16 = 0x8000;

/// Switches off every feature of an interface that [`postpones_work`], in the calling thread's namespace.
///
/// # Errors
/// [`Error::Refused`].
pub fn switch_off(name: &str) -> Result<()> {
    let active = active_features(name)?;
    let unwanted: Vec<&str> = active.iter().map(String::as_str).filter(|feature| postpones_work(feature)).collect();
    switch(name, &unwanted, false)
}

/// Switches off every feature of an interface that [`postpones_work`], but for the checksums of TCP and UDP, which the
/// dataplane finishes, and for frames in several pieces, which the kernel has only with checksums. Without them it would copy and
/// read every long packet twice more.
///
/// # Errors
/// [`Error::Refused`].
pub fn leave_checksums(name: &str) -> Result<()> {
    let stays = |feature: &str| feature.starts_with("tx-checksum-ip") || feature.starts_with("tx-scatter-gather");
    let active = active_features(name)?;
    let unwanted: Vec<&str> = active.iter().map(String::as_str).filter(|feature| postpones_work(feature) && !stays(feature)).collect();
    switch(name, &unwanted, false)
}

/// Switches features of an interface on or off, in the calling thread's namespace. What the device cannot change stays.
///
/// # Errors
/// [`Error::Refused`].
pub fn switch(name: &str, features: &[&str], on: bool) -> Result<()> {
    let action = || format!("switch offloads of {name} {}", if on { "on" } else { "off" });
    let mut bits = Vec::new();
    for feature in features {
        // A bit that is listed without a value is one to clear.
        let mut bit = Vec::new();
        put_attribute(&mut bit, ETHTOOL_A_BITSET_BIT_NAME, &zero_terminated(feature));
        if on {
            put_attribute(&mut bit, ETHTOOL_A_BITSET_BIT_VALUE, &[]);
        }
        put_attribute(&mut bits, ETHTOOL_A_BITSET_BITS_BIT | NESTED, &bit);
    }
    let mut bitset = Vec::new();
    put_attribute(&mut bitset, ETHTOOL_A_BITSET_BITS | NESTED, &bits);
    let mut request = request_header(ETHTOOL_MSG_FEATURES_SET, name, ETHTOOL_FLAG_OMIT_REPLY);
    put_attribute(&mut request, ETHTOOL_A_FEATURES_WANTED | NESTED, &bitset);
    let (socket, family) = open(&action)?;
    socket.request(family, 0, &request, &action).map(drop)
}

/// The names of the features that are active on an interface of the calling thread's namespace.
///
/// # Errors
/// [`Error::Refused`].
pub fn active_features(name: &str) -> Result<BTreeSet<String>> {
    let action = || format!("list the features of {name}");
    let (socket, family) = open(&action)?;
    let answers = socket.request(family, 0, &request_header(ETHTOOL_MSG_FEATURES_GET, name, 0), &action)?;
    let body = answers.first().and_then(|a| a.payload.get(4..)).unwrap_or_default();
    let bits = nested(body, ETHTOOL_A_FEATURES_ACTIVE).and_then(|set| nested(set, ETHTOOL_A_BITSET_BITS)).unwrap_or_default();
    let names = attributes(bits).filter_map(|(_, bit)| {
        // In a set with a mask a bit without a value is off; the active set has no mask, and then every listed bit is on.
        let name = nested(bit, ETHTOOL_A_BITSET_BIT_NAME)?;
        Some(String::from_utf8_lossy(name.strip_suffix(b"\0").unwrap_or(name)).into_owned())
    });
    Ok(names.collect())
}

fn open(action: &dyn Fn() -> String) -> Result<(Socket, u16)> {
    let socket = Socket::open(NETLINK_GENERIC)?;
    let mut request = vec![CTRL_CMD_GETFAMILY, 1, 0, 0];
    put_attribute(&mut request, CTRL_ATTR_FAMILY_NAME, b"ethtool\0");
    let answers = socket.request(GENL_ID_CTRL, 0, &request, action)?;
    let family = answers.iter().find_map(|answer| {
        let id = nested(answer.payload.get(4..)?, CTRL_ATTR_FAMILY_ID)?;
        Some(u16::from_ne_bytes(id.try_into().ok()?))
    });
    match family {
        Some(family) => Ok((socket, family)),
        None => Err(Error::Malformed { action: action(), detail: "no number for the family ethtool".into() }),
    }
}

/// A generic netlink header (command, version 1) and the header attribute of all ethtool requests.
fn request_header(command: u8, name: &str, flags: u32) -> Vec<u8> {
    let mut header = Vec::new();
    put_attribute(&mut header, ETHTOOL_A_HEADER_DEV_NAME, &zero_terminated(name));
    put_attribute(&mut header, ETHTOOL_A_HEADER_FLAGS, &flags.to_ne_bytes());
    let mut request = vec![command, 1, 0, 0];
    put_attribute(&mut request, ETHTOOL_A_FEATURES_HEADER | NESTED, &header);
    request
}

fn zero_terminated(text: &str) -> Vec<u8> {
    [text.as_bytes(), b"\0"].concat()
}

fn nested(bytes: &[u8], wanted: u16) -> Option<&[u8]> {
    attributes(bytes).find(|&(kind, _)| kind == wanted).map(|(_, value)| value)
}
