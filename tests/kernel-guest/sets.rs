//! What is taken for granted of sets.

use crate::facts::Facts;
use crate::lab::PEER4;
use crate::wire::FRAMES;
use crate::{Outcome, ensure};

impl Facts {
    pub(crate) fn dynamic_sets(&self) -> Outcome {
        self.lab.pod.nft(
            "table netdev w {\n\
             set seen { type inet_proto . ipv4_addr; flags dynamic,timeout; timeout 1m; size 16; }\n\
             chain c { type filter hook ingress device eth0 priority -500; policy accept;\n\
             update @seen { ip protocol . ip saddr counter } counter\n\
             }\n}",
        )?;
        self.expect_in(true)?;
        let rules = self.lab.pod.rules()?;
        ensure!(rules.contains(&format!("{PEER4} counter packets {FRAMES} ")), "not counted: {rules}");
        Ok(())
    }

    /// As a long allow-list is when the station changes by which its peers are reached; and beyond the room that was asked for
    /// nothing is taken.
    pub(crate) fn filled_again(&self) -> Outcome {
        let elements = |station: u8, count: u8| {
            let element = |number| format!("02:00:00:00:00:{station:02x} . 10.20.0.{number} . tcp");
            (0..count).map(element).collect::<Vec<_>>().join(", ")
        };
        let set = "set peers { type ether_addr . ipv4_addr . inet_proto; size 100; elements = { ";
        self.lab.pod.nft(&format!("table netdev w {{\n{set}{} }}\n}}\n}}", elements(1, 100)))?;
        for station in 2..5 {
            let again = elements(station, 100);
            self.lab.pod.nft(&format!("flush set netdev w peers\nadd element netdev w peers {{ {again} }}"))?;
            let rules = self.lab.pod.rules()?;
            let (own, before) =
                (format!("02:00:00:00:00:{station:02x} . "), format!("02:00:00:00:00:{:02x} . ", station - 1));
            ensure!(rules.matches(&own).count() == 100 && !rules.contains(&before), "{rules}");
        }
        let more = self.lab.pod.nft(&format!("add element netdev w peers {{ {} }}", elements(9, 1)));
        ensure!(more.is_err(), "more elements than there is room for");
        Ok(())
    }
}
