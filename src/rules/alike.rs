//! Rules of a chain that ask for the same fields and do the same, made one: what their fields may be, together, becomes the
//! elements of a set that is the rule's own.
//!
//! Exactly what passed before passes, and does to sets and counters what it did: an element is what one rule asked for, so that
//! nothing is let through that two of them would let through each by half. A rule goes past those between only where their order
//! makes no difference.
//!
//! Pure. The rules themselves are `containment`'s.

use super::ruleset::{Field, KeyType, Meta, Ranges, Rule, Statement, Table, Value};
use super::value::do_overlap;

/// Fewer rules are not worth a set.
const FEWEST: usize = 2;
/// Bytes of the kernel's registers.
const WIDEST: usize = 64;
/// nft numbers the type of a key in 32 bits, six for each field.
const MOST_FIELDS: usize = 5;
/// Of a key with a field that it has no name for nft 1.0 lists no more.
const MOST_FIELDS_BESIDE_RAW: usize = 4;

/// Makes one of the rules that are alike, in each chain.
pub fn put_together(table: &mut Table) {
    for chain in &mut table.chains {
        let groups = groups(std::mem::take(&mut chain.rules));
        chain.rules = groups.into_iter().flat_map(Group::into_rules).collect();
    }
}

/// Whether no packet is both: a field would have to be two things.
pub(super) fn are_disjoint(one: &[Statement], other: &[Statement]) -> bool {
    one.iter().any(|statement| other.iter().any(|other| excludes(statement, other)))
}

fn excludes(one: &Statement, other: &Statement) -> bool {
    match (one, other) {
        (Statement::Match(field, test), Statement::Match(other_field, other_test)) if field == other_field => {
            match (test.range(), other_test.range()) {
                (Some(range), Some(other)) => !do_overlap(range, other),
                _ => false,
            }
        }
        (Statement::Meta(Meta::Length(length)), Statement::Meta(Meta::Length(other))) => length != other,
        (Statement::Meta(Meta::Nfproto { v6 }), Statement::Meta(Meta::Nfproto { v6: other })) => v6 != other,
        (Statement::Meta(Meta::Iifname(name)), Statement::Meta(Meta::Iifname(other)))
        | (Statement::Meta(Meta::Oifname(name)), Statement::Meta(Meta::Oifname(other))) => name != other,
        _ => false,
    }
}

/// What a rule does with a packet that it is for.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Effect {
    /// It lets it pass, or ends it, and that is all.
    Decides,
    /// It remembers it first.
    Remembers,
    /// What cannot be shared: each rule counts for itself, and has a limit of its own.
    Own,
}

fn effect(rule: &Rule) -> Effect {
    match rule.conditions().1 {
        [Statement::Accept | Statement::Drop] => Effect::Decides,
        [Statement::Update { .. }] | [Statement::Update { .. }, Statement::Accept] => Effect::Remembers,
        _ => Effect::Own,
    }
}

/// Rules that are alike.
struct Group {
    /// At least one.
    rules: Vec<Rule>,
    /// The conditions that are not the same in all of them, by their places.
    differing: Vec<usize>,
}

/// The rules in groups, each at the place of its first.
fn groups(rules: Vec<Rule>) -> Vec<Group> {
    let mut groups: Vec<Group> = Vec::new();
    for rule in rules {
        let mut joined = None;
        for (place, group) in groups.iter().enumerate().rev() {
            joined = group.differing_with(&rule).map(|differing| (place, differing));
            if joined.is_some() || !group.lets_past(&rule) {
                break;
            }
        }
        match joined.and_then(|(place, differing)| Some((groups.get_mut(place)?, differing))) {
            Some((group, differing)) => {
                group.rules.push(rule);
                group.differing = differing;
            }
            None => groups.push(Group { rules: vec![rule], differing: Vec::new() }),
        }
    }
    groups
}

impl Group {
    /// Whether it makes no difference to any packet that this rule comes before all of them.
    fn lets_past(&self, rule: &Rule) -> bool {
        let Some(first) = self.rules.first() else { return true };
        let (conditions, does) = first.conditions();
        let in_common = (0..conditions.len()).filter(|place| !self.differing.contains(place));
        let others = rule.conditions().0;
        (effect(rule) == Effect::Decides && does == rule.conditions().1)
            || in_common.into_iter().any(|place| are_disjoint(&conditions[place..=place], others))
            || self.rules.iter().all(|rule| are_disjoint(rule.conditions().0, others))
    }

    /// In which conditions the rules would differ with this one among them; `None` where it is not like them.
    fn differing_with(&self, rule: &Rule) -> Option<Vec<usize>> {
        let first = self.rules.first()?;
        let ((conditions, does), (others, does_too)) = (first.conditions(), rule.conditions());
        if does != does_too || first.comment != rule.comment || conditions.len() != others.len() {
            return None;
        }
        let mut differing = self.differing.clone();
        for (place, (condition, other)) in conditions.iter().zip(others).enumerate() {
            if condition != other && !differing.contains(&place) {
                differing.push(place);
            }
            if differing.contains(&place) && !differ_in_values(condition, other) {
                return None;
            }
        }
        differing.sort_unstable();
        let fits = match differing[..] {
            [only] if matches!(conditions[only], Statement::OneOf { .. }) => true,
            _ => fits(&fields(conditions, &differing)?),
        };
        // Of single values any that is another one will do.
        let is_single = |&place: &usize| range(&conditions[place]).is_some_and(|(first, last)| first == last);
        let is_for_others = || match differing.iter().all(is_single) {
            true => !self.rules.contains(rule),
            false => self.rules.iter().all(|rule| are_disjoint(rule.conditions().0, others)),
        };
        let may_share = match effect(rule) {
            Effect::Decides => true,
            // Else a packet of both would be remembered twice, or be tried again where there was no room for it.
            Effect::Remembers => is_for_others(),
            Effect::Own => false,
        };
        (fits && may_share).then_some(differing)
    }

    fn into_rules(self) -> Vec<Rule> {
        match self.rules.len() >= FEWEST {
            true => self.together().map_or(self.rules, |rule| vec![rule]),
            false => self.rules,
        }
    }

    /// The one rule that does what they do.
    fn together(&self) -> Option<Rule> {
        let first = self.rules.first()?;
        let (conditions, does) = first.conditions();
        let mut places = self.differing.clone();
        let (key, elements) = match places[..] {
            [] => return Some(first.clone()),
            [only] if let Statement::OneOf { key, .. } = &conditions[only] => {
                let elements_of = |rule: &Rule| match &rule.statements[only] {
                    Statement::OneOf { elements, .. } => elements.clone(),
                    _ => Vec::new(),
                };
                (key.clone(), self.rules.iter().flat_map(elements_of).collect())
            }
            _ => {
                let key = fields(conditions, &places)?;
                let is_single = places.iter().all(|&place| range(&conditions[place]).is_some_and(|(a, b)| a == b));
                if key.len() == 1 && !is_single {
                    places.push(companion(conditions, &places)?);
                    places.sort_unstable();
                }
                let element = |rule: &Rule| {
                    places.iter().map(|&place| range(&rule.statements[place])).collect::<Option<_>>().map(Ranges)
                };
                (fields(conditions, &places)?, self.rules.iter().map(element).collect::<Option<Vec<_>>>()?)
            }
        };
        let rest = conditions.iter().enumerate().filter(|(place, _)| !places.contains(place)).map(|(_, rest)| rest);
        // What costs less is asked first.
        let (cheap, costly): (Vec<_>, Vec<_>) =
            rest.partition(|condition| !matches!(condition, Statement::Lookup(..) | Statement::OneOf { .. }));
        let one_of = Statement::OneOf { key, elements: without_overlaps(elements) };
        let statements = cheap.into_iter().chain([&one_of]).chain(costly).chain(does).cloned().collect();
        Some(Rule { statements, comment: first.comment })
    }
}

/// Elements that hold what these do, in the order of nft.
fn without_overlaps(elements: Vec<Ranges>) -> Vec<Ranges> {
    let mut apart = Vec::with_capacity(elements.len());
    match elements.iter().all(Ranges::is_single) {
        true => apart = elements,
        false => elements.into_iter().for_each(|element| element.put_among(&mut apart)),
    }
    apart.sort_unstable();
    apart.dedup();
    apart
}

/// Whether both may be elements of one set: values, or ranges of them.
fn differ_in_values(one: &Statement, other: &Statement) -> bool {
    match (one, other) {
        (Statement::Match(field, _), Statement::Match(other_field, _)) if field == other_field => {
            match (range(one), range(other)) {
                // Ranges make another sort of set, which costs more.
                (Some((first, last)), Some((others_first, others_last))) => {
                    (first == last) == (others_first == others_last)
                }
                _ => false,
            }
        }
        (Statement::OneOf { key, .. }, Statement::OneOf { key: other, .. }) => key == other,
        _ => false,
    }
}

fn range(condition: &Statement) -> Option<(Value, Value)> {
    match condition {
        Statement::Match(field, test) if field.key_type().is_some() => test.range(),
        _ => None,
    }
}

fn fields(conditions: &[Statement], places: &[usize]) -> Option<Vec<Field>> {
    let field = |&place: &usize| match conditions.get(place)? {
        Statement::Match(field, _) => Some(*field),
        _ => None,
    };
    places.iter().map(field).collect()
}

/// A condition that goes into the key of a set of ranges which would have one field: those the kernel keeps in another way. Not
/// the protocol, by which nft tells what the rest of the rule is of.
fn companion(conditions: &[Statement], places: &[usize]) -> Option<usize> {
    (0..conditions.len()).rev().find(|place| {
        let with_it: Vec<_> = places.iter().chain([place]).copied().collect();
        let is_protocol = |field: &Field| field.key_type() == Some(KeyType::Protocol);
        !places.contains(place)
            && range(&conditions[*place]).is_some()
            && fields(conditions, &with_it).is_some_and(|key| fits(&key) && !key.iter().any(is_protocol))
    })
}

/// Whether the kernel takes such a key, and nft lists it.
fn fits(key: &[Field]) -> bool {
    let types: Option<Vec<_>> = key.iter().map(|field| field.key_type()).collect();
    types.is_some_and(|types| {
        let is_raw = |key_type: &&KeyType| matches!(key_type, KeyType::Raw(_));
        let most = if types.iter().any(|each| is_raw(&each)) { MOST_FIELDS_BESIDE_RAW } else { MOST_FIELDS };
        types.len() <= most && types.iter().map(|key_type| key_type.padded_length()).sum::<usize>() <= WIDEST
    })
}

#[cfg(test)]
mod tests;
