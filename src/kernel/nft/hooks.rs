//! Which chains the kernel has hooked at an interface: what it runs, not what is listed.
//!
//! An interface that is moved to another netns takes its hooks with it into nothing, and a kernel that knows chains by the names of their
//! interfaces (6.16) goes on listing them. `nfnetlink_hook` (Linux 5.14, a module that the kernel loads by itself, and not every kernel has)
//! says what is hooked. Where there is none, what is listed is all that can be read.

use std::sync::atomic::{AtomicBool, Ordering};

use nix::errno::Errno;

use super::{Nft, header};
use crate::kernel::netlink::{NetlinkError, attribute, be32, put, put_text, text};
use crate::rules::ruleset::{Chain, Family, Hook, Table};

/// `NFNL_SUBSYS_HOOK` in the upper half, and `NFNL_MSG_HOOK_GET`.
const MSG_HOOK_GET: u16 = 12 << 8;
/// `NFNLA_HOOK_…`.
const HOOK_HOOKNUM: u16 = 1;
const HOOK_DEV: u16 = 3;
const HOOK_CHAIN_INFO: u16 = 6;
/// `NFNLA_HOOK_INFO_…`, and the type of nf_tables' chains.
const INFO_DESC: u16 = 1;
const INFO_TYPE: u16 = 2;
const NFTABLES: u32 = 1;
/// `NFNLA_CHAIN_…`.
const CHAIN_TABLE: u16 = 1;
const CHAIN_FAMILY: u16 = 2;
const CHAIN_NAME: u16 = 3;
const HEADER: usize = 4;

/// Whether this kernel was found to say nothing: each question would have it look for the module again, in a process of its own.
static UNTOLD: AtomicBool = AtomicBool::new(false);

/// A chain as a hook names it.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Hooked {
    family: u8,
    table: Vec<u8>,
    chain: Vec<u8>,
}

impl Nft {
    /// The chains of a table, which is awake and listed, that the kernel has no hook of where they belong. None where it does not say.
    pub(super) fn unhooked<'t>(&mut self, table: &'t Table) -> Result<Vec<&'t Chain>, NetlinkError> {
        let mut unhooked = Vec::new();
        for chain in table.chains.iter().filter(|_| table.family == Family::Netdev) {
            let (number, device) = match &chain.hook {
                Hook::Ingress(device) => (0, device),
                Hook::Egress(device) => (1, device),
                // Those of families are the netns' own, and go nowhere.
                _ => continue,
            };
            let Some(hooked) = self.hooked(number, device.as_bytes())? else { return Ok(Vec::new()) };
            let is_it = |hooked: &Hooked| {
                hooked.family == header(Family::Netdev)[0]
                    && hooked.table == table.name.as_bytes()
                    && hooked.chain == chain.name.as_bytes()
            };
            unhooked.extend((!hooked.iter().any(is_it)).then_some(chain));
        }
        Ok(unhooked)
    }

    /// Whether this kernel says which chains are hooked.
    pub fn tells_hooks(&mut self) -> bool {
        self.hooked(0, b"lo").is_ok_and(|hooked| hooked.is_some())
    }

    /// What is hooked at an interface; `None` where this kernel does not say.
    fn hooked(&mut self, number: u32, device: &[u8]) -> Result<Option<Vec<Hooked>>, NetlinkError> {
        if UNTOLD.load(Ordering::Relaxed) {
            return Ok(None);
        }
        let mut body = header(Family::Netdev).to_vec();
        put(&mut body, HOOK_HOOKNUM, &number.to_be_bytes());
        put_text(&mut body, HOOK_DEV, device);
        match self.socket.dump_all_seen("list the hooks", MSG_HOOK_GET, &body, read_hook) {
            Ok(hooked) => Ok(Some(hooked)),
            // There is no such interface, and so no hook of it.
            Err(NetlinkError::Refused { errno: Errno::ENODEV, .. }) => Ok(Some(Vec::new())),
            Err(NetlinkError::Refused { .. }) => {
                UNTOLD.store(true, Ordering::Relaxed);
                Ok(None)
            }
            Err(error) => Err(error),
        }
    }
}

fn read_hook(payload: &[u8]) -> Option<Hooked> {
    let info = attribute(payload.get(HEADER..)?, HOOK_CHAIN_INFO)?;
    let is_of_tables = attribute(info, INFO_TYPE).and_then(be32) == Some(NFTABLES);
    let chain = attribute(info, INFO_DESC).filter(|_| is_of_tables)?;
    Some(Hooked {
        family: *attribute(chain, CHAIN_FAMILY)?.first()?,
        table: text(attribute(chain, CHAIN_TABLE)?).to_vec(),
        chain: text(attribute(chain, CHAIN_NAME)?).to_vec(),
    })
}

/// What holds of any bytes (`fuzzing`).
#[cfg(any(test, fuzzing))]
pub(super) fn try_any(bytes: &[u8]) {
    if let Some(Hooked { table, chain, .. }) = read_hook(bytes) {
        assert!(!table.contains(&0) && !chain.contains(&0));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernel::netlink::nest;

    fn hook(kind: u32, family: u8) -> Vec<u8> {
        let mut payload = header(Family::Netdev).to_vec();
        put(&mut payload, HOOK_HOOKNUM, &[0; 4]);
        nest(&mut payload, HOOK_CHAIN_INFO, |info| {
            nest(info, INFO_DESC, |chain| {
                put_text(chain, CHAIN_TABLE, b"quarantine");
                put_text(chain, CHAIN_NAME, b"ingress-eth0");
                put(chain, CHAIN_FAMILY, &[family]);
            });
            put(info, INFO_TYPE, &kind.to_be_bytes());
        });
        payload
    }

    #[test]
    fn a_hook_is_told_by_its_chain() {
        let (table, chain) = (b"quarantine".to_vec(), b"ingress-eth0".to_vec());
        assert_eq!(read_hook(&hook(NFTABLES, 5)), Some(Hooked { family: 5, table, chain }));
        assert_eq!(read_hook(&hook(2, 5)), None, "a program of BPF's");
        assert_eq!(read_hook(&hook(NFTABLES, 5)[..20]), None);
    }
}
