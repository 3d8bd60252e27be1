//! The virtual addresses themselves: on a dummy interface of our own, or on the loopback interface where the kernel has
//! no dummy. Every machine has them, so they are /32 and /128, of host scope, and never announced.

use std::net::IpAddr;

use crate::netlink::Error;
use crate::netlink::route::{Link, Routes};

pub(crate) const INTERFACE: &str = "quorate-ipvs";
const LOOPBACK: &str = "lo";

/// Keeps the addresses of the virtual servers in place.
#[derive(Debug)]
pub(super) struct Addresses(Routes);

impl Addresses {
    pub(super) fn open() -> Result<Self, Error> {
        Routes::open().map(Self)
    }

    /// Addresses that carry the mark of a virtual server, also those of an earlier process.
    pub(super) fn ours(&mut self) -> Result<Vec<IpAddr>, Error> {
        Ok(self
            .0
            .addresses()?
            .into_iter()
            .filter(|found| found.virtual_server)
            .map(|found| found.address)
            .collect())
    }

    /// Whether there is an address that carries the mark, or the interface of our own.
    pub(super) fn are_left(&mut self) -> Result<bool, Error> {
        Ok(self.own()?.is_some() || !self.ours()?.is_empty())
    }

    /// What was noted with the interface of our own when it was added, also by an earlier process; `None` where the machine
    /// has no such interface.
    pub(super) fn noted(&mut self) -> Result<Option<String>, Error> {
        if self.own()?.is_none() {
            return Ok(None);
        }
        Ok(Some(self.0.alias(INTERFACE)?.unwrap_or_default()))
    }

    /// Adds what is missing, removes what is no longer wanted; returns what was changed. `note` is kept with the interface,
    /// should it have to be added.
    pub(super) fn ensure(&mut self, wanted: &[IpAddr], note: &str) -> Result<Vec<String>, Error> {
        let mut changes = Vec::new();
        let present = self.0.addresses()?;
        for found in present
            .iter()
            .filter(|found| found.virtual_server && !wanted.contains(&found.address))
        {
            self.0.delete_address(found.index, found.address, found.prefix)?;
            changes.push(format!("removing address {}", found.address));
        }
        let missing: Vec<&IpAddr> = wanted
            .iter()
            .filter(|address| present.iter().all(|found| found.address != **address))
            .collect();
        if missing.is_empty() {
            return Ok(changes);
        }
        let link = self.interface(note)?;
        for address in missing {
            self.0.add_virtual_server(&link, *address)?;
            changes.push(format!("adding address {address} to {}", link.name));
        }
        Ok(changes)
    }

    /// Removes the interface of our own; `false` if there is none.
    pub(super) fn remove_interface(&mut self) -> Result<bool, Error> {
        let Some(link) = self.own()? else { return Ok(false) };
        match self.0.delete_link(link.index) {
            Err(error) if error.errno() == Some(libc::ENODEV) => Ok(false),
            result => result.map(|()| true),
        }
    }

    fn interface(&mut self, note: &str) -> Result<Link, Error> {
        if let Some(link) = self.own()? {
            return Ok(link);
        }
        match self.0.add_dummy(INTERFACE) {
            Ok(()) => {
                let link = self.0.link(INTERFACE)?;
                self.0.set_alias(&link, note)?;
                Ok(link)
            }
            // No such kind of interface, or no right to load its module.
            Err(error) if matches!(error.errno(), Some(libc::EOPNOTSUPP | libc::EPERM)) => self.0.link(LOOPBACK),
            Err(error) => Err(error),
        }
    }

    fn own(&mut self) -> Result<Option<Link>, Error> {
        Ok(self.0.links()?.into_iter().find(|link| link.name == INTERFACE))
    }
}
