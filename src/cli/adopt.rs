//! `adopt`: records for pods that were made without the plugin.

use std::fmt::Write as _;
use std::path::Path;

use crate::adopt::{AdoptError, Adoption, Cached, Known, Places, adopt, entries_of, known};
use crate::kernel::netns::NetnsError;
use crate::model::audit::chain;
use crate::model::names::{ContainerId, Pod};
use crate::node::sandbox::Side;
use crate::node::state::StateDir;
use crate::plugin::config::Config;

use super::arguments::{Adopt, CniPlaces};
use super::selector::{Selection, select};
use super::{Exit, Failure, print};

impl CniPlaces {
    pub(super) fn places(&self) -> Places {
        Places { cache: self.cni_cache.clone(), conf: self.cni_conf.clone(), cri: self.cri.clone() }
    }
}

/// `quarantine adopt`.
pub(super) fn run(state_dir: &Path, arguments: &Adopt) -> Result<Exit, Failure> {
    take_in(state_dir, &arguments.places.places(), (!arguments.all).then_some(&arguments.sandboxes[..]))
}

/// All of the node.
pub(super) fn all(state_dir: &Path, places: &Places) -> Result<Exit, Failure> {
    take_in(state_dir, places, None)
}

fn take_in(state_dir: &Path, places: &Places, sandboxes: Option<&[String]>) -> Result<Exit, Failure> {
    let state = StateDir::open_or_create(state_dir)?;
    let Known { attachments: mut found, unusable } = known(places).map_err(failure)?;
    let mut text = String::new();
    let mut exit = Exit::Done;
    if let Some(words) = sandboxes {
        let chosen = chosen(&found, &unusable, words)?;
        found.retain(|cached| chosen.contains(&cached.id.container_id));
    } else {
        for (what, why) in &unusable {
            let _ = writeln!(text, "{what}: cannot be used: {why}");
        }
    }
    let entries = entries_of(places, state_dir);
    let default = Config { state_dir: state_dir.to_owned(), ..Config::default() };
    let mut host = Side::own()?;
    let mut adopted = 0;
    for one in &found {
        let Cached { id, pod, network, .. } = one;
        let config = entries.get(network);
        let said = match adopt(&state, &mut host, one, config.unwrap_or(&default)) {
            Ok(Adoption::Known) => "has a record already".to_owned(),
            Ok(Adoption::Adopted) => {
                adopted += 1;
                match config {
                    Some(_) => "adopted".to_owned(),
                    None => {
                        format!("adopted, with the default policy: the network {network} has no entry of the plugin's")
                    }
                }
            }
            Err(AdoptError::Netns(NetnsError::Open { .. } | NetnsError::NotOne { .. })) if sandboxes.is_none() => {
                continue;
            }
            Err(error) => {
                exit = Exit::NotDone;
                format!("NOT adopted: {}", chain(&error))
            }
        };
        let _ = writeln!(text, "{} {} ({pod}): {said}", id.container_id, id.ifname);
    }
    let _ = writeln!(text, "{adopted} adopted");
    print(&text);
    Ok(exit)
}

fn failure(error: AdoptError) -> Failure {
    Failure::new(Exit::NotDone, chain(&error))
}

/// The sandboxes of the cache that these words mean.
fn chosen(found: &[Cached], unusable: &[(String, String)], words: &[String]) -> Result<Vec<ContainerId>, Failure> {
    let names: Vec<(ContainerId, Pod)> =
        found.iter().map(|cached| (cached.id.container_id.clone(), cached.pod.clone())).collect();
    let mut chosen = Vec::new();
    for word in words {
        match select(word, names.iter().map(|(container_id, pod)| (container_id, pod)), |_| false)? {
            Selection::Here(ids) => chosen.extend(ids),
            Selection::Absent(_) => {
                let mut message = format!(
                    "neither libcni's cache nor the runtime says enough of {word}: it was made by another runtime, or with hostNetwork"
                );
                for (what, why) in unusable {
                    let _ = write!(message, "\n  {what} cannot be used: {why}");
                }
                return Err(Failure::new(Exit::NotDone, message));
            }
        }
    }
    Ok(chosen)
}
