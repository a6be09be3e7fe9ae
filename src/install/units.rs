//! The systemd units, which are part of the program so that it can put them in place by itself.

use std::fs;
use std::io::ErrorKind;
use std::path::Path;

use super::plan::{NewFile, Plan, Step};
use super::{InstallError, Layout, confdir};

const UNITS: [(&str, &str); 4] = [
    ("quarantine-agent.service", include_str!("../../conf/systemd/quarantine-agent.service")),
    ("quarantine-sync.path", include_str!("../../conf/systemd/quarantine-sync.path")),
    ("quarantine-sync.service", include_str!("../../conf/systemd/quarantine-sync.service")),
    ("quarantine-sync.timer", include_str!("../../conf/systemd/quarantine-sync.timer")),
];

/// Where systemd links a unit that is enabled.
const WANTS: [&str; 3] = ["multi-user.target.wants", "paths.target.wants", "timers.target.wants"];

pub(super) fn put(plan: &mut Plan, layout: &Layout) -> Result<(), InstallError> {
    confdir::trusted_dir(&layout.unit_dir)?;
    let mut changed = false;
    for (name, text) in UNITS {
        let path = layout.unit_dir.join(name);
        if ["/lib/systemd/system", "/usr/lib/systemd/system"]
            .iter()
            .any(|dir| layout.packaged(&Path::new(dir).join(name)))
        {
            continue;
        }
        let text = placed(text, layout)?;
        let what = match existing(&path)? {
            Some(before) if before == text => continue,
            Some(before) if !is_ours(&before) => return Err(InstallError::ForeignUnit { path }),
            Some(before) => ("replace the unit", Some(before.into_bytes())),
            None => ("put the unit", None),
        };
        plan.add(Step::Write(NewFile::of_root(path, text.into_bytes(), what.1, 0o644, what.0.to_owned())));
        changed = true;
    }
    if changed {
        plan.note(
            "Start the agent: systemctl daemon-reload && systemctl enable --now quarantine-agent.service. (Without a \
             resident process: enable quarantine-sync.path and quarantine-sync.timer instead.)",
        );
    }
    Ok(())
}

pub(super) fn remove(plan: &mut Plan, layout: &Layout) -> Result<(), InstallError> {
    let mut any = false;
    for (name, _) in UNITS {
        let path = layout.unit_dir.join(name);
        match existing(&path)? {
            None => continue,
            Some(text) if !is_ours(&text) => {
                plan.note(format!("{} was not put there by quarantine; it stays.", path.display()));
                continue;
            }
            Some(_) => any = true,
        }
        // What `systemctl disable` would remove.
        let links = WANTS.map(|wants| layout.unit_dir.join(wants).join(name));
        plan.extend(links.into_iter().filter(|link| link.is_symlink()).map(Step::Remove));
        plan.add(Step::Remove(path));
    }
    if any {
        plan.note(
            "Stop what may still run: systemctl stop quarantine-agent.service quarantine-sync.path quarantine-sync.timer; \
             systemctl daemon-reload.",
        );
    }
    Ok(())
}

/// The unit's text for these places.
fn placed(text: &str, layout: &Layout) -> Result<String, InstallError> {
    let standard = Layout::default();
    let mut text = text.replace(plain(&standard.program())?, plain(&layout.program())?);
    if layout.state_dir != standard.state_dir {
        let state_dir = plain(&layout.state_dir)?;
        text = text.replace("StateDirectory=cni/quarantine", &format!("ReadWritePaths={state_dir}"));
        text = text.replace("StateDirectoryMode=0700\n", "");
        text = text.replace(plain(&standard.state_dir)?, state_dir);
    }
    Ok(text)
}

/// A path that means itself in a unit file, where spaces, quotes, `%` and `$` mean something else.
fn plain(path: &Path) -> Result<&str, InstallError> {
    let is_plain = |text: &&str| text.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"/._-".contains(&byte));
    let text = path.to_str().filter(|_| path.is_absolute()).filter(is_plain);
    text.ok_or_else(|| InstallError::UnitPath { path: path.to_owned() })
}

fn is_ours(text: &str) -> bool {
    UNITS.iter().any(|(_, unit)| unit.lines().next() == text.lines().next())
}

fn existing(path: &Path) -> Result<Option<String>, InstallError> {
    match fs::read(path) {
        Ok(bytes) => Ok(Some(String::from_utf8_lossy(&bytes).into_owned())),
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
        Err(reason) => Err(InstallError::io("read", path, reason)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn units_name_the_places_that_they_are_installed_for() {
        let layout = Layout { bin_dir: "/var/lib/x/bin".into(), state_dir: "/srv/q".into(), ..Layout::default() };
        for (name, text) in UNITS {
            let placed = placed(text, &layout).unwrap();
            assert!(!placed.contains("/opt/cni") && !placed.contains("/var/lib/cni"), "{name}: {placed}");
            assert!(!placed.contains("StateDirectory"), "{name}: {placed}");
        }
    }

    #[test]
    fn units_stand_unchanged_in_the_standard_places() {
        for (_, text) in UNITS {
            assert_eq!(placed(text, &Layout::default()).unwrap(), text);
        }
    }

    #[test]
    fn a_path_with_a_meaning_to_systemd_is_refused() {
        for path in ["relative", "/a b", "/a%b", "/a\"b", "/a$b", "/a\nb"] {
            assert!(plain(Path::new(path)).is_err(), "{path}");
        }
    }
}
