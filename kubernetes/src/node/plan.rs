//! What a node does about the objects of one pod: from the objects and the marks that there are. Pure.
//!
//! Steps come from objects alone. Where there is none, whatever the reason (deleted, a definition taken away, an empty list
//! after a watch that broke), there is no step, and the mark stays: absence never releases.

use jiff::Timestamp;

use cni_quarantine::mark::{Mark, MarkContent};
use cni_quarantine::names::Key;

use crate::api::{Origin, PodQuarantine, is_of_an_object};

/// What is wanted of a pod, all of its objects taken together.
#[derive(Debug, Clone, PartialEq)]
pub enum Order {
    /// It is isolated, as this mark says.
    Hold(Box<Mark>),
    /// It is released, as far as the cluster isolated it.
    Release,
    /// It is released, whoever isolated it: an object that shows a mark of the node was released.
    ReleaseAll,
    /// Somebody on the node isolated it; the object only shows it.
    Show,
}

/// What is wanted of a pod by its objects; `None` where there are none.
///
/// As long as one of them is not released the pod is isolated, as the oldest of these says.
#[must_use]
pub fn order(objects: &[&PodQuarantine], now: Timestamp) -> Option<Order> {
    let is_released = |object: &&&PodQuarantine| object.spec.is_released(now);
    let holding = objects.iter().filter(|object| object.spec.origin == Origin::Cluster && !is_released(object));
    if let Some(oldest) = holding.min_by_key(|object| age_of(object)) {
        return Some(Order::Hold(Box::new(oldest.mark())));
    }
    let mut released = objects.iter().filter(is_released).peekable();
    if released.peek().is_some() {
        let shown = released.any(|object| object.spec.origin == Origin::Node);
        return Some(if shown { Order::ReleaseAll } else { Order::Release });
    }
    (!objects.is_empty()).then_some(Order::Show)
}

fn age_of(object: &PodQuarantine) -> (Timestamp, String) {
    let created = object.metadata.creation_timestamp.as_ref().map_or(Timestamp::MAX, |time| time.0);
    (created, object.object_name().to_owned())
}

/// A change of the marks.
#[derive(Debug, Clone, PartialEq)]
pub enum Step {
    /// A mark is written by the pod's UID.
    Write(Box<Mark>),
    /// A mark is removed.
    Remove(Key),
}

/// What is to be done so that an order holds. `marks` are those that hold for the pod, the most specific first, the one by
/// its UID (`own`) among them.
#[must_use]
pub fn steps(order: &Order, own: &Key, marks: &[(Key, MarkContent)]) -> Vec<Step> {
    let by_uid = marks.iter().find(|(key, _)| key == own).map(|(_, content)| content);
    match order {
        Order::Hold(wanted) => match by_uid {
            None => vec![Step::Write(wanted.clone())],
            Some(Ok(mark)) if is_of_an_object(mark) && mark != wanted.as_ref() => vec![Step::Write(wanted.clone())],
            // As wanted, or not ours: one that somebody on the node wrote isolates already, and is not touched.
            Some(_) => Vec::new(),
        },
        Order::Release => marks
            .iter()
            .filter(|(_, content)| content.as_ref().is_ok_and(is_of_an_object))
            .map(|(key, _)| Step::Remove(key.clone()))
            .collect(),
        Order::ReleaseAll => marks.iter().map(|(key, _)| Step::Remove(key.clone())).collect(),
        Order::Show => Vec::new(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::{Expiry, PodQuarantineSpec, PodRef, Release};
    use cni_quarantine::fault::Fault;

    const NOW: Timestamp = Timestamp::constant(1_800_000_000, 0);

    fn object(name: &str, age: i64, change: impl FnOnce(&mut PodQuarantineSpec)) -> PodQuarantine {
        let pod = PodRef {
            namespace: "shop".into(),
            name: "web".into(),
            uid: Some("uid-1".into()),
            node_name: Some("a".into()),
        };
        let mut spec = PodQuarantineSpec::of(pod);
        change(&mut spec);
        let mut object = PodQuarantine::new(name, spec);
        let created = Timestamp::new(NOW.as_second() - age, 0).unwrap();
        object.metadata.creation_timestamp = Some(k8s_openapi::apimachinery::pkg::apis::meta::v1::Time(created));
        object
    }

    fn released(spec: &mut PodQuarantineSpec) {
        spec.release = Some(Release { by: "alice".into(), reason: None });
    }

    fn shown(spec: &mut PodQuarantineSpec) {
        spec.origin = Origin::Node;
    }

    #[test]
    fn one_object_that_is_not_released_holds_the_oldest_first() {
        let hold = object("uid-1", 10, |_| ());
        let older = object("older", 20, |spec| spec.case = Some("IR-1".into()));
        let free = object("free", 30, released);
        let shows = object("shows", 40, shown);
        let freed = object("freed", 40, |spec| {
            shown(spec);
            released(spec);
        });
        let holds = |object: &PodQuarantine| Some(Order::Hold(Box::new(object.mark())));
        for (objects, expected) in [
            (vec![], None),
            (vec![&hold], holds(&hold)),
            (vec![&hold, &older], holds(&older)),
            (vec![&free, &hold], holds(&hold)),
            (vec![&shows, &hold, &free], holds(&hold)),
            (vec![&free], Some(Order::Release)),
            (vec![&shows], Some(Order::Show)),
            (vec![&shows, &free], Some(Order::Release)),
            (vec![&freed], Some(Order::ReleaseAll)),
        ] {
            assert_eq!(order(&objects, NOW), expected, "{objects:?}");
        }
    }

    #[test]
    fn time_releases_only_where_that_was_said() {
        let at = |offset: i64| Timestamp::new(NOW.as_second() + offset, 0).ok();
        for (expires, expiry, expected) in [
            (None, Expiry::Attention, false),
            (at(-1), Expiry::Attention, false),
            (at(1), Expiry::Release, false),
            (at(0), Expiry::Release, true),
            (at(-1), Expiry::Release, true),
        ] {
            let object = object("uid-1", 0, |spec| {
                spec.expires_at = expires;
                spec.expiry = expiry;
            });
            assert_eq!(order(&[&object], NOW) == Some(Order::Release), expected, "{expires:?} {expiry:?}");
        }
    }

    #[test]
    fn only_own_marks_are_touched_unless_the_node_s_own_were_released() {
        let key = |text: &str| Key::new(text).unwrap();
        let uid = key("uid-1");
        let wanted = object("uid-1", 0, |spec| spec.reason = Some("beacon".into())).mark();
        let old = object("uid-1", 0, |_| ()).mark();
        let by_hand = Mark { actor: Some("root".into()), ..Mark::default() };
        let hold = Order::Hold(Box::new(wanted.clone()));
        let write = || vec![Step::Write(Box::new(wanted.clone()))];
        let remove = |keys: &[&str]| keys.iter().map(|text| Step::Remove(key(text))).collect::<Vec<_>>();
        for (order, marks, expected) in [
            (&hold, vec![], write()),
            (&hold, vec![(uid.clone(), Ok(wanted.clone()))], vec![]),
            (&hold, vec![(uid.clone(), Ok(old.clone()))], write()),
            (&hold, vec![(uid.clone(), Ok(by_hand.clone()))], vec![]),
            (&hold, vec![(uid.clone(), Err(Fault::Misplaced))], vec![]),
            (&hold, vec![(key("shop_web"), Ok(by_hand.clone()))], write()),
            (&Order::Release, vec![], vec![]),
            (&Order::Release, vec![(uid.clone(), Ok(old.clone()))], remove(&["uid-1"])),
            (&Order::Release, vec![(uid.clone(), Ok(by_hand.clone()))], vec![]),
            (&Order::Release, vec![(uid.clone(), Err(Fault::Misplaced))], vec![]),
            (
                &Order::Release,
                vec![(key("shop_web"), Ok(by_hand.clone())), (uid.clone(), Ok(wanted.clone()))],
                remove(&["uid-1"]),
            ),
            (
                &Order::ReleaseAll,
                vec![(key("c1"), Err(Fault::Misplaced)), (uid.clone(), Ok(by_hand.clone()))],
                remove(&["c1", "uid-1"]),
            ),
            (&Order::Show, vec![(uid.clone(), Ok(by_hand))], vec![]),
            (&Order::Show, vec![], vec![]),
        ] {
            assert_eq!(steps(order, &uid, &marks), expected, "{order:?} {marks:?}");
        }
    }
}
