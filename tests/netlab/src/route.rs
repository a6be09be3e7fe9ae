//! A route, as a test describes it.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnetwork::IpNetwork;

/// A unicast route in the main table.
#[derive(Debug, Clone)]
pub struct Route {
    pub(crate) destination: IpNetwork,
    pub(crate) gateway: Option<IpAddr>,
    pub(crate) device: Option<String>,
    pub(crate) source: Option<IpAddr>,
}

impl Route {
    /// To an address or a network.
    #[track_caller]
    #[must_use]
    pub fn to(destination: impl ToString) -> Self {
        let destination = network(&destination.to_string());
        Self { destination, gateway: None, device: None, source: None }
    }

    /// To everything, over a gateway.
    #[must_use]
    pub fn default_via(gateway: impl Into<IpAddr>) -> Self {
        let gateway = gateway.into();
        let any = if gateway.is_ipv4() { Ipv4Addr::UNSPECIFIED.into() } else { IpAddr::from(Ipv6Addr::UNSPECIFIED) };
        Self::to(format!("{any}/0")).via(gateway)
    }

    #[must_use]
    pub fn via(self, gateway: impl Into<IpAddr>) -> Self {
        Self { gateway: Some(gateway.into()), ..self }
    }

    /// Out of this interface. Where there is none, the kernel asks the gateway's route.
    #[must_use]
    pub fn dev(self, name: &str) -> Self {
        Self { device: Some(name.to_owned()), ..self }
    }

    /// The address that packets leave from, where the sender has not chosen one.
    #[must_use]
    pub fn src(self, address: impl Into<IpAddr>) -> Self {
        Self { source: Some(address.into()), ..self }
    }
}

/// An address, with or without the length of its network.
#[track_caller]
pub(crate) fn network(text: &str) -> IpNetwork {
    text.parse().unwrap_or_else(|error| panic!("{text}: {error}"))
}
