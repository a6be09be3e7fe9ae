//! What the design takes for granted of nf_tables, asked of this kernel with nft alone.
//!
//! A check that fails here says that the design rests on something that this kernel doesn't do; `containment` would then
//! fail too, and less plainly. Frames from the pod to the peer show whether its egress is shut, datagrams from the peer
//! to the pod whether its ingress is: a packet socket sees a frame before the ingress hook does.

use std::error::Error;
use std::time::{Duration, Instant};

use cni_quarantine::internals::{Hook, Nflog};

use crate::lab::{Lab, NODE4, Netns, PEER_MAC, PEER4, POD_MAC, POD4};
use crate::wire::{FRAMES, Flow, Frame, LONG, SHORT, datagrams, frames};
use crate::{Checks, Outcome, check, ensure, note};

pub(crate) struct Facts {
    pub(crate) lab: Lab,
    /// Whether the kernel took a netdev chain on the egress hook.
    egress: bool,
}

pub(crate) fn check_all() -> Outcome {
    let lab = Lab::new();
    lab.fix_neighbours();
    let release = nix::sys::utsname::uname()?.release().to_string_lossy().into_owned();
    let mut numbers = release.split('.').map(|number| number.parse::<u32>().unwrap_or(0));
    let version = (numbers.next().unwrap_or(0), numbers.next().unwrap_or(0));
    let egress = egress_hook(&lab)?;
    let facts = Facts { lab, egress };

    let all: &Checks<Facts> = &[
        ("a dormant pair of tables wakes and sleeps in one batch, five times over", Facts::toggles),
        ("a base chain joins an awake table at once", Facts::chain_joins_awake_table),
        ("a toggle and a new base chain in one batch are refused", Facts::toggle_with_chain_is_refused),
        ("a batch that fails neither wakes nor puts to sleep", Facts::failed_batch),
        ("a table is deleted and made anew in one batch, awake or dormant", Facts::replaced_in_one_batch),
        ("a chain for an absent device is refused", Facts::absent_device),
        ("a hook follows its device through a rename, awake or dormant", Facts::rename),
        ("a device that goes takes its base chain with it", Facts::deleted_device),
        ("the link header shows a VLAN tag that meta protocol looks through", Facts::vlan),
        ("ARP is 28 bytes long at ingress and 42 at egress", Facts::arp_length),
        ("dynamic sets count packets per element", Facts::dynamic_sets),
        ("a full set is emptied and filled in one batch", Facts::filled_again),
        ("egress sees every kind of raw frame", Facts::raw_frames),
        ("the sender's user is known on the host's end of the veth", Facts::socket_user),
        ("inet ingress shares a set with inet output", Facts::inet_ingress),
        ("family bridge sees the sender's user and ARP", Facts::bridge_family),
        ("what a chain drops is handed over in the netns of its hook", Facts::handed_over),
    ];
    check("facts", "the egress hook is there from 5.16 on, else EOPNOTSUPP at once", || {
        ensure!(egress == (version >= (5, 16)), "{release} has egress: {egress}");
        Ok(())
    });
    for (name, fact) in all {
        check("facts", name, || {
            facts.flush()?;
            facts.control()?;
            fact(&facts)
        });
    }
    Ok(())
}

/// Whether the kernel takes an egress chain; what it says otherwise must be EOPNOTSUPP, with nothing left of the batch.
fn egress_hook(lab: &Lab) -> Result<bool, Box<dyn Error>> {
    let mut answers = Vec::new();
    for flags in ["", "flags dormant;"] {
        let answer = lab.pod.nft(&format!(
            "table netdev probe {{ {flags}\nchain c {{ type filter hook egress device eth0 priority -500; policy accept; }}\n}}"
        ));
        if let Err(complaint) = &answer {
            ensure!(complaint.to_string().contains("Operation not supported"), "no EOPNOTSUPP: {complaint}");
            ensure!(lab.pod.rules()?.is_empty(), "the refused batch left something");
        }
        answers.push(answer.is_ok());
        lab.pod.nft("flush ruleset")?;
    }
    ensure!(answers[0] == answers[1], "a dormant table is answered differently: {answers:?}");
    Ok(answers[0])
}

impl Facts {
    fn flush(&self) -> Outcome {
        self.lab.pod.nft("flush ruleset")?;
        self.lab.peer.nft("flush ruleset")?;
        self.lab.node.nft("flush ruleset")
    }

    /// With no rules, everything arrives.
    fn control(&self) -> Outcome {
        let (sent, received) = (self.out(true)?, self.received(true)?);
        ensure!(
            sent == FRAMES && received == FRAMES,
            "without rules {sent} frames left and {received} datagrams came in"
        );
        Ok(())
    }

    fn out(&self, expected: bool) -> Result<usize, Box<dyn Error>> {
        self.raw(Frame::Unknown, expected)
    }

    fn raw(&self, kind: Frame, expected: bool) -> Result<usize, Box<dyn Error>> {
        let patience = if expected { LONG } else { SHORT };
        frames(kind, (&self.lab.pod, "eth0"), (&self.lab.peer, "eth0", PEER_MAC), patience)
    }

    fn received(&self, expected: bool) -> Result<usize, Box<dyn Error>> {
        datagrams(&self.lab.peer, (&self.lab.pod, POD4), if expected { LONG } else { SHORT })
    }

    /// Fails unless the pod is shut, or open, both ways as far as this kernel can shut it.
    fn expect(&self, shut: bool, when: &str) -> Outcome {
        let (out, inward) = (self.out(!shut || !self.egress)?, self.received(!shut)?);
        let wanted_out = if shut && self.egress { 0 } else { FRAMES };
        let wanted_in = if shut { 0 } else { FRAMES };
        ensure!(
            (out, inward) == (wanted_out, wanted_in),
            "{when}: {out} frames out (expected {wanted_out}), {inward} datagrams in (expected {wanted_in})"
        );
        Ok(())
    }

    /// The two tables of the pod side in the rough, for eth0.
    fn pair(&self, flags: &str) -> String {
        let egress = if self.egress {
            "chain egress-eth0 { type filter hook egress device eth0 priority -500; policy drop; counter drop; }\n"
        } else {
            ""
        };
        format!(
            "table inet q {{ {flags}\n\
             chain input {{ type filter hook input priority -400; policy drop; iifname {{ lo, eth0 }} accept; drop; }}\n\
             chain output {{ type filter hook output priority -400; policy drop; oifname {{ lo, eth0 }} accept; drop; }}\n\
             }}\n\
             table netdev q {{ {flags}\n\
             chain inbound {{ counter drop; }}\n\
             chain ingress-eth0 {{ type filter hook ingress device eth0 priority -500; policy drop; jump inbound; drop; }}\n\
             {egress}}}\n"
        )
    }

    /// By NFLOG, to who is bound to the group in the pod's netns: frames that come in behind their Ethernet header, those that go
    /// out with it.
    fn handed_over(&self) -> Outcome {
        const GROUP: u16 = 20803;
        let report = format!("limit rate 20/second burst 100 packets log prefix p group {GROUP} snaplen 128; drop;");
        let egress = if self.egress {
            format!("chain e {{ type filter hook egress device eth0 priority -500; policy drop; {report} }}\n")
        } else {
            String::new()
        };
        self.lab.pod.nft(&format!(
            "table netdev q {{\nchain i {{ type filter hook ingress device eth0 priority -500; policy drop; {report} }}\n{egress}}}"
        ))?;
        let bound = self.lab.pod.run(|| Nflog::bind(GROUP, 128))?;
        ensure!(self.received(false)? == 0, "a datagram came in");
        let out = self.out(!self.egress)?;
        ensure!(out == 0 || !self.egress, "a frame left");
        let (mut inward, mut outward, mut other) = (0, 0, String::new());
        let deadline = Instant::now() + LONG;
        let mut buffer = vec![0; 128 * 1024];
        while Instant::now() < deadline && (inward == 0 || (outward == 0 && self.egress)) {
            bound.drain(&mut buffer, 16, |handed| match handed.hook {
                Hook::Ingress if handed.link_header.len() == 14 && handed.payload[0] >> 4 == 4 => inward += 1,
                Hook::Egress if handed.payload.get(12..14) == Some(&[0x88, 0xb5]) => outward += 1,
                hook => other = format!("{hook:?} {:02x?} {:02x?}", handed.link_header, handed.payload),
            });
            std::thread::sleep(Duration::from_millis(20));
        }
        ensure!(inward > 0 && (outward > 0 || !self.egress), "handed over: {inward} in, {outward} out; {other}");
        Ok(())
    }

    fn toggles(&self) -> Outcome {
        self.lab.pod.nft(&self.pair("flags dormant;"))?;
        self.expect(false, "loaded dormant")?;
        for _ in 0..5 {
            self.lab.pod.nft("add table inet q\nadd table netdev q")?;
            self.expect(true, "awake")?;
            self.lab.pod.nft("add table inet q { flags dormant; }\nadd table netdev q { flags dormant; }")?;
            self.expect(false, "asleep")?;
        }
        Ok(())
    }

    fn chain_joins_awake_table(&self) -> Outcome {
        self.lab.pod.nft(
            "add table netdev q\nadd chain netdev q mine { type filter hook ingress device eth0 priority -500; }",
        )?;
        self.expect_in(true)?;
        self.lab
            .pod
            .nft("add chain netdev q more { type filter hook ingress device eth0 priority -499; policy drop; }")?;
        self.expect_in(false)?;
        self.lab.pod.nft("delete chain netdev q more")?;
        self.expect_in(true)
    }

    pub(crate) fn expect_in(&self, open: bool) -> Outcome {
        let (seen, wanted) = (self.received(open)?, if open { FRAMES } else { 0 });
        ensure!(seen == wanted, "{seen} datagrams in, expected {wanted}");
        Ok(())
    }

    fn toggle_with_chain_is_refused(&self) -> Outcome {
        self.lab.pod.nft("add table netdev q { flags dormant; }\nadd chain netdev q plain")?;
        let both = "add table netdev q\nadd chain netdev q c { type filter hook ingress device eth0 priority -500; policy drop; }";
        ensure!(self.lab.pod.nft(both).is_err(), "accepted");
        ensure!(self.lab.pod.rules()?.contains("flags dormant"), "the table has woken nonetheless");
        self.expect_in(true)?;
        // With rules and regular chains a toggle may share a batch.
        self.lab.pod.nft("add chain netdev q more\nadd rule netdev q plain counter\nadd table netdev q")
    }

    /// The message that fails is the last one, when the toggles before it have been prepared.
    fn failed_batch(&self) -> Outcome {
        let failing = "add rule netdev q absent counter";
        self.lab.pod.nft(&self.pair("flags dormant;"))?;
        let wake = format!("add table inet q\nadd table netdev q\n{failing}");
        ensure!(self.lab.pod.nft(&wake).is_err(), "the failing batch is accepted");
        self.expect(false, "a failed wake")?;
        self.lab.pod.nft("add table inet q\nadd table netdev q")?;
        self.expect(true, "awake")?;
        let sleep =
            format!("add table inet q {{ flags dormant; }}\nadd table netdev q {{ flags dormant; }}\n{failing}");
        ensure!(self.lab.pod.nft(&sleep).is_err(), "the failing batch is accepted");
        self.expect(true, "a failed sleep")
    }

    fn replaced_in_one_batch(&self) -> Outcome {
        for before in ["flags dormant;", ""] {
            for after in ["flags dormant;", ""] {
                self.flush()?;
                self.lab.pod.nft(&self.pair(before))?;
                self.lab.pod.nft(&format!("delete table inet q\ndelete table netdev q\n{}", self.pair(after)))?;
                self.expect(after.is_empty(), &format!("[{before}] replaced by [{after}]"))?;
            }
        }
        Ok(())
    }

    fn absent_device(&self) -> Outcome {
        for flags in ["", "flags dormant;"] {
            let absent = format!(
                "table netdev q {{ {flags}\nchain c {{ type filter hook ingress device absent0 priority -500; policy drop; }}\n}}"
            );
            match self.lab.pod.nft(&absent) {
                Ok(()) => return Err(format!("accepted in silence with [{flags}]").into()),
                Err(complaint) => {
                    ensure!(complaint.to_string().contains("No such file or directory"), "no ENOENT: {complaint}");
                }
            }
        }
        Ok(())
    }

    fn rename(&self) -> Outcome {
        let result = self.renamed();
        let _ = self.lab.rename("eth9", "eth0");
        self.lab.fix_neighbours();
        result
    }

    fn renamed(&self) -> Outcome {
        let out_by = |interface: &str| {
            frames(Frame::Unknown, (&self.lab.pod, interface), (&self.lab.peer, "eth0", PEER_MAC), SHORT)
        };
        for dormant in [false, true] {
            self.lab.pod.nft(&self.pair(""))?;
            self.expect(true, "awake")?;
            if dormant {
                self.lab.pod.nft("add table netdev q { flags dormant; }")?;
            }
            self.lab.rename("eth0", "eth9")?;
            self.lab.pod.ip(&format!("neigh replace {PEER4} lladdr 02:00:00:00:09:03 dev eth9 nud permanent"))?;
            if dormant {
                self.lab.pod.nft("add table netdev q")?;
            }
            let rules = self.lab.pod.rules()?;
            ensure!(rules.contains("hook ingress device \"eth9\""), "the chain is not listed by the new name: {rules}");
            // The inet chains, which go by name, are not what is asked about here.
            self.lab.pod.nft("delete table inet q")?;
            if self.egress {
                let out = out_by("eth9")?;
                ensure!(out == 0, "{out} frames left by the renamed interface (dormant: {dormant})");
            }
            self.expect_in(false)?;
            self.lab.rename("eth9", "eth0")?;
            self.lab.fix_neighbours();
            self.flush()?;
            self.control()?;
        }
        Ok(())
    }

    fn deleted_device(&self) -> Outcome {
        for flags in ["", "flags dormant;"] {
            let table = format!(
                "table netdev q {{ {flags}\nchain plain {{ counter; }}\nchain c {{ type filter hook ingress device d0 priority -500; policy drop; }}\n}}"
            );
            self.lab.pod.ip("link add d0 type dummy")?;
            self.lab.pod.nft(&table)?;
            self.lab.pod.ip("link del d0")?;
            let gone = self.lab.pod.rules()?;
            self.lab.pod.ip("link add d0 type dummy")?;
            let back = self.lab.pod.rules()?;
            let again = self.lab.pod.nft(&table);
            self.lab.pod.ip("link del d0")?;
            self.flush()?;
            ensure!(gone.contains("chain plain") && !gone.contains("hook ingress"), "after the device went: {gone}");
            ensure!(!back.contains("hook ingress"), "after it came back: {back}");
            again?;
        }
        Ok(())
    }

    /// Counters on a hook of eth0, by the name of each: `(name, match)`.
    fn counters(hook: &str, matches: &[(&str, &str)]) -> String {
        let mut text = String::from("table netdev w {\n");
        for (name, _) in matches {
            text += &format!("counter {name} {{ }}\n");
        }
        text += &format!("chain c {{ type filter hook {hook} device eth0 priority -500; policy accept;\n");
        for (name, expression) in matches {
            text += &format!("{expression} counter name {name}\n");
        }
        text + "}\n}\n"
    }

    fn vlan(&self) -> Outcome {
        let matches = [
            ("tagged", "ether type 0x8100"),
            ("untagged", "ether type ip"),
            ("inner", "meta protocol ip"),
            ("udp4", "ip protocol udp"),
        ];
        self.lab.peer.nft(&Self::counters("ingress", &matches))?;
        if self.egress {
            self.lab.pod.nft(&Self::counters("egress", &matches))?;
        }
        for (netns, address) in [(&self.lab.pod, "10.55.0.2/24"), (&self.lab.peer, "10.55.0.3/24")] {
            netns.ip("link add link eth0 name eth0.5 type vlan id 5")?;
            netns.ip(&format!("addr add {address} dev eth0.5"))?;
            netns.ip("link set eth0.5 up")?;
        }
        let arrived = datagrams(&self.lab.pod, (&self.lab.peer, "10.55.0.3"), LONG);
        for netns in [&self.lab.pod, &self.lab.peer] {
            netns.ip("link del eth0.5")?;
        }
        ensure!(arrived? == FRAMES, "the VLAN does not work");
        let sides = if self.egress { vec![&self.lab.peer, &self.lab.pod] } else { vec![&self.lab.peer] };
        for netns in sides {
            let packets = |name: &str| packets(netns, "netdev w", name);
            let (link, link_ip) = (packets("tagged")?, packets("untagged")?);
            let (meta, ip) = (packets("inner")?, packets("udp4")?);
            ensure!(link >= FRAMES && link_ip == 0, "ether type: {link} of 0x8100, {link_ip} of ip");
            ensure!(meta == FRAMES && ip == FRAMES, "looked through the tag: meta protocol {meta}, ip protocol {ip}");
        }
        Ok(())
    }

    fn arp_length(&self) -> Outcome {
        let matches = [
            ("every", "ether type arp"),
            ("in28", "ether type arp meta length 28"),
            ("out42", "ether type arp meta length 42"),
        ];
        self.lab.peer.nft(&Self::counters("ingress", &matches))?;
        if self.egress {
            self.lab.pod.nft(&Self::counters("egress", &matches))?;
        }
        self.lab.pod.ip("neigh flush dev eth0 nud permanent")?;
        let arrived = datagrams(&self.lab.pod, (&self.lab.peer, PEER4), LONG);
        self.lab.fix_neighbours();
        ensure!(arrived? > 0, "nothing arrived after ARP");
        let (all, fit) = (packets(&self.lab.peer, "netdev w", "every")?, packets(&self.lab.peer, "netdev w", "in28")?);
        ensure!(all > 0 && all == fit, "ingress: {fit} of {all} are 28 bytes long");
        if self.egress {
            let (all, fit) =
                (packets(&self.lab.pod, "netdev w", "every")?, packets(&self.lab.pod, "netdev w", "out42")?);
            ensure!(all > 0 && all == fit, "egress: {fit} of {all} are 42 bytes long");
        }
        Ok(())
    }

    fn raw_frames(&self) -> Outcome {
        if !self.egress {
            note("no egress hook: raw frames leave the pod whatever its own tables say");
        }
        for kind in [Frame::Unknown, Frame::Bypass, Frame::Tagged, Frame::Broadcast] {
            self.flush()?;
            let control = self.raw(kind, true)?;
            ensure!(control == FRAMES, "{kind:?}: only {control} of {FRAMES} arrive without rules");
            self.lab.pod.nft(&self.pair(""))?;
            let (arrived, wanted) = (self.raw(kind, !self.egress)?, if self.egress { 0 } else { FRAMES });
            ensure!(arrived == wanted, "{kind:?}: {arrived} arrived, expected {wanted}");
        }
        Ok(())
    }

    /// Loads counters for TCP towards the pod into a chain on the node, connects, and counts what the chain attributed to root.
    fn attributed(&self, family: &str, hook: &str, only: &str) -> Result<[(usize, usize); 2], Box<dyn Error>> {
        let mut seen = Vec::new();
        for from in [&self.lab.node, &self.lab.peer] {
            self.lab.node.nft("flush ruleset")?;
            self.lab.node.nft(&format!(
                "table {family} w {{\ncounter mine {{ }}\ncounter opened {{ }}\nchain c {{ type filter hook {hook} priority -500; policy accept;\n\
                 {only} meta skuid 0 ip daddr {POD4} ip protocol tcp counter name mine\n\
                 {only} ip daddr {POD4} tcp flags & (syn | ack) == syn counter name opened\n}}\n}}"
            ))?;
            let mut flow = Flow::establish(from, (&self.lab.pod, POD4), LONG)?;
            ensure!(flow.carries(LONG)? == (true, true), "the connection carries nothing");
            let table = format!("{family} w");
            seen.push((packets(&self.lab.node, &table, "mine")?, packets(&self.lab.node, &table, "opened")?));
        }
        Ok([seen[0], seen[1]])
    }

    fn socket_user(&self) -> Outcome {
        if !self.egress {
            note("no egress hook: the host's end of the veth can't be guarded towards the pod in family netdev");
            return Ok(());
        }
        let [node, peer] = self.attributed("netdev", "egress device vpod", "")?;
        ensure!(node.1 == 1 && node.0 >= 3, "from the node {NODE4}: {} attributed, {} opened", node.0, node.1);
        ensure!(peer.1 == 1 && peer.0 == 0, "from the peer: {} attributed, {} opened", peer.0, peer.1);
        Ok(())
    }

    fn bridge_family(&self) -> Outcome {
        let [node, peer] = self.attributed("bridge", "postrouting", "oifname vpod")?;
        ensure!(node.1 == 1 && node.0 >= 3, "from the node: {} attributed, {} opened", node.0, node.1);
        ensure!(peer.1 == 1 && peer.0 == 0, "from the peer: {} attributed, {} opened", peer.0, peer.1);
        let inward =
            |kind, patience| frames(kind, (&self.lab.peer, "eth0"), (&self.lab.pod, "eth0", POD_MAC), patience);
        for kind in [Frame::Unknown, Frame::Tagged, Frame::Broadcast] {
            self.lab.node.nft("flush ruleset")?;
            let control = inward(kind, LONG)?;
            ensure!(control == FRAMES, "{kind:?}: only {control} come in without rules");
            self.lab.node.nft(
                "table bridge w {\nchain c { type filter hook postrouting priority -500; policy drop; oifname != vpod accept; drop; }\n}",
            )?;
            let arrived = inward(kind, SHORT)?;
            ensure!(arrived == 0, "{kind:?}: {arrived} came in past the bridge");
        }
        Ok(())
    }

    /// What a host guard can do without the netdev egress hook: inet output notes the flows that root opens, inet
    /// ingress on the host's end lets only their replies in, netdev ingress before it stops what is no IP.
    fn inet_ingress(&self) -> Outcome {
        self.lab.node.nft(&format!(
            "table inet w {{\n\
             set flows {{ type inet_proto . ipv4_addr . inet_service . inet_service; flags dynamic,timeout; timeout 2m; size 64; }}\n\
             chain output {{ type filter hook output priority -400; policy accept;\n\
             meta skuid 0 ip daddr {POD4} tcp flags & (fin | syn | rst | ack) == syn update @flows {{ ip protocol . ip daddr . tcp dport . tcp sport }}\n\
             }}\n\
             chain from {{ type filter hook ingress device vpod priority -499; policy drop;\n\
             ip protocol . ip saddr . tcp sport . tcp dport @flows accept\ndrop\n\
             }}\n\
             }}\n\
             table netdev w {{\n\
             chain from {{ type filter hook ingress device vpod priority -500; policy drop;\nether type {{ ip, ip6, arp }} accept\ndrop\n}}\n\
             }}"
        ))?;
        let mut flow = Flow::establish(&self.lab.node, (&self.lab.pod, POD4), LONG)?;
        ensure!(flow.carries(LONG)? == (true, true), "the node's connection carries nothing");
        let stranger = Flow::establish(&self.lab.peer, (&self.lab.pod, POD4), SHORT);
        ensure!(stranger.is_err(), "the peer's connection is answered");
        for kind in [Frame::Unknown, Frame::Tagged] {
            let arrived = self.raw(kind, false)?;
            ensure!(arrived == 0, "{kind:?}: {arrived} frames left the pod");
        }
        let arrived = datagrams(&self.lab.pod, (&self.lab.peer, PEER4), SHORT)?;
        ensure!(arrived == 0, "{arrived} datagrams left the pod");
        Ok(())
    }
}

/// What a named counter has counted.
fn packets(netns: &Netns, table: &str, counter: &str) -> Result<usize, Box<dyn Error>> {
    let listed = netns.command("nft", &["-f", "-"], &format!("list counter {table} {counter}"))?;
    let after = listed.split("packets ").nth(1).ok_or("the counter has no packets")?;
    Ok(after.split_whitespace().next().unwrap_or_default().parse()?)
}
