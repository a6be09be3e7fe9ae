//! Which sandboxes a person means by a container ID, a prefix of one, a pod UID, or `namespace/name`.
//!
//! Pure. A word that nothing on the node answers to is taken for a pod that is yet to come only where it cannot be
//! mistaken for anything else: a typing error must not pass for an isolation.

use std::fmt;

use crate::model::names::{ContainerId, Key, Pod, PodName};

/// What a word was found to mean.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Selection {
    /// Sandboxes of the node, one at least.
    Here(Vec<ContainerId>),
    /// Nothing on the node answers to it; a mark of this name would hold for what comes.
    Absent(Key),
}

impl Selection {
    /// Those that are on the node.
    pub(super) fn here(self) -> Option<Vec<ContainerId>> {
        match self {
            Self::Here(ids) => Some(ids),
            Self::Absent(_) => None,
        }
    }
}

/// Why a word means nothing, or too much.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum SelectError {
    /// More than one container ID begins so.
    Ambiguous { word: String, candidates: Vec<(ContainerId, Pod)> },
    /// Nothing answers to it, and it has no form that a pod to come could have.
    Unknown { word: String, namesakes: Vec<Pod> },
    /// It cannot be the name of anything.
    Malformed { word: String, why: String },
}

/// Finds out what `word` means among the sandboxes of the node and the marks that stand.
pub(super) fn select<'a>(
    word: &str,
    sandboxes: impl Iterator<Item = (&'a ContainerId, &'a Pod)> + Clone,
    has_mark: impl Fn(&Key) -> bool,
) -> Result<Selection, SelectError> {
    if let Some((namespace, name)) = word.split_once('/') {
        let malformed = |error: crate::model::names::NameError| SelectError::Malformed {
            word: word.to_owned(),
            why: error.to_string(),
        };
        let namespace = PodName::new(namespace).map_err(malformed)?;
        let name = PodName::new(name).map_err(malformed)?;
        let key = Key::new(&format!("{namespace}_{name}")).map_err(malformed)?;
        return Ok(here_or(key.clone(), sandboxes.filter(|(_, pod)| pod.is_named(&key))));
    }
    let key =
        Key::new(word).map_err(|error| SelectError::Malformed { word: word.to_owned(), why: error.to_string() })?;
    if let Some((id, _)) = sandboxes.clone().find(|(id, _)| id.as_str() == word) {
        return Ok(Selection::Here(vec![id.clone()]));
    }
    if let Selection::Here(ids) = select_uid(key.clone(), sandboxes.clone()) {
        return Ok(Selection::Here(ids));
    }
    let candidates: Vec<_> = sandboxes.clone().filter(|(id, _)| id.as_str().starts_with(word)).collect();
    match candidates[..] {
        [(id, _)] => return Ok(Selection::Here(vec![id.clone()])),
        [] => {}
        _ => {
            let candidates = candidates.into_iter().map(|(id, pod)| (id.clone(), pod.clone())).collect();
            return Err(SelectError::Ambiguous { word: word.to_owned(), candidates });
        }
    }
    if has_mark(&key) || looks_like_an_id(word) {
        return Ok(Selection::Absent(key));
    }
    let is_namesake = |pod: &&Pod| pod.name.as_ref().is_some_and(|name| name.as_str() == word);
    let namesakes = sandboxes.map(|(_, pod)| pod).filter(is_namesake).cloned().collect();
    Err(SelectError::Unknown { word: word.to_owned(), namesakes })
}

/// The same for a word that is said to be a pod UID.
pub(super) fn select_uid<'a>(uid: Key, sandboxes: impl Iterator<Item = (&'a ContainerId, &'a Pod)>) -> Selection {
    here_or(uid.clone(), sandboxes.filter(|(_, pod)| pod.uid.as_ref().is_some_and(|own| own.as_str() == uid.as_str())))
}

fn here_or<'a>(key: Key, found: impl Iterator<Item = (&'a ContainerId, &'a Pod)>) -> Selection {
    let ids: Vec<_> = found.map(|(id, _)| id.clone()).collect();
    if ids.is_empty() { Selection::Absent(key) } else { Selection::Here(ids) }
}

/// A pod UID (a UUID; for a static pod the same number without hyphens), or a container ID as all runtimes make them.
fn looks_like_an_id(word: &str) -> bool {
    let is_hex = |part: &str| part.bytes().all(|byte| byte.is_ascii_hexdigit());
    let groups: Vec<_> = word.split('-').collect();
    let lengths: Vec<_> = groups.iter().map(|group| group.len()).collect();
    groups.iter().all(|group| is_hex(group)) && matches!(lengths[..], [8, 4, 4, 4, 12] | [32] | [64])
}

impl fmt::Display for SelectError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Ambiguous { word, candidates } => {
                write!(
                    f,
                    "{word} is the beginning of {} container IDs; say more of the one you mean:",
                    candidates.len()
                )?;
                candidates.iter().try_for_each(|(id, pod)| write!(f, "\n  {id}  {pod}"))
            }
            Self::Unknown { word, namesakes } if namesakes.is_empty() => write!(
                f,
                "nothing on this node answers to {word:?}: no container ID begins so, no pod has this UID, no mark this name\n  \
                 `quarantine list` shows what can be reached. Pods with hostNetwork are named by their UID; pods that started before the\n  \
                 plugin was in the conflist cannot be, until they are adopted. A pod that is yet to come is named by its UID or as namespace/name; --uid\n  \
                 takes any word for a UID"
            ),
            Self::Unknown { word, namesakes } => {
                write!(f, "a pod is named together with its namespace; {word:?} may be:")?;
                namesakes.iter().try_for_each(|pod| write!(f, "\n  {pod}"))
            }
            Self::Malformed { word, why } => write!(f, "{word:?} names no sandbox: {why}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::names::PodUid;

    const UUID: &str = "0f9d6b52-6f0a-4a43-9d1c-0123456789ab";

    fn id(text: &str) -> ContainerId {
        ContainerId::new(text).unwrap()
    }

    fn here(ids: &[&str]) -> Result<Selection, SelectError> {
        Ok(Selection::Here(ids.iter().map(|text| id(text)).collect()))
    }

    fn absent(key: &str) -> Result<Selection, SelectError> {
        Ok(Selection::Absent(Key::new(key).unwrap()))
    }

    fn find(word: &str) -> Result<Selection, SelectError> {
        let pod = |name: &str, uid: Option<&str>| Pod {
            namespace: Some(PodName::new("shop").unwrap()),
            name: Some(PodName::new(name).unwrap()),
            uid: uid.map(|uid| PodUid::new(uid).unwrap()),
        };
        let sandboxes = [
            (id("abc"), pod("web", Some("uid-1"))),
            (id("abcdef"), pod("db", None)),
            (id("abcxyz"), pod("web", Some("uid-1"))),
            (id("f00"), Pod::default()),
        ];
        select(word, sandboxes.iter().map(|(id, pod)| (id, pod)), |key| key.as_str() == "stale")
    }

    #[test]
    fn every_name_of_a_sandbox_finds_it() {
        assert_eq!(find("abcdef"), here(&["abcdef"]));
        assert_eq!(find("abcd"), here(&["abcdef"]));
        assert_eq!(find("f"), here(&["f00"]));
        assert_eq!(find("uid-1"), here(&["abc", "abcxyz"]));
        assert_eq!(find("shop/web"), here(&["abc", "abcxyz"]));
        // What is a prefix of others, and whole itself, is itself.
        assert_eq!(find("abc"), here(&["abc"]));
    }

    #[test]
    fn an_ambiguous_prefix_lists_the_candidates() {
        let error = find("ab").unwrap_err();
        let text = error.to_string();
        for candidate in ["3 container IDs", "\n  abc  shop/web", "\n  abcdef  shop/db", "\n  abcxyz  shop/web"] {
            assert!(text.contains(candidate), "{text}");
        }
    }

    #[test]
    fn only_what_cannot_be_mistaken_is_taken_for_a_pod_to_come() {
        let hex = "0123456789abcdef";
        assert_eq!(find(UUID), absent(UUID));
        assert_eq!(find(&hex.repeat(2)), absent(&hex.repeat(2)));
        assert_eq!(find(&hex.repeat(4)), absent(&hex.repeat(4)));
        assert_eq!(find("shop/new"), absent("shop_new"));
        assert_eq!(find("stale"), absent("stale"));
        for word in ["nothing", "uid-2", hex, &UUID[1..], &UUID.replace('0', "g")] {
            assert!(matches!(find(word), Err(SelectError::Unknown { .. })), "{word}");
        }
        assert!(find("web").unwrap_err().to_string().contains("\n  shop/web"));
        for word in ["", "a b", "../x", "/", "shop/", "a/b/c", "-x"] {
            assert!(matches!(find(word), Err(SelectError::Malformed { .. })), "{word}");
        }
        let uid = select_uid(Key::new("any").unwrap(), std::iter::empty());
        assert_eq!(Ok(uid), absent("any"));
    }
}
