//! Many attacks, fired together: first on a released pod, where each must arrive, then on an isolated one.

use std::time::Duration;

use super::observe::{Matcher, Witnesses};
use crate::lab::{Netns, PATIENCE, eventually};

/// How often each attack is sent.
const SHOTS: u64 = 3;
/// How long packets get to show up where none may. The control has shown by then that they take far less.
const SILENCE: Duration = Duration::from_millis(150);

/// One way of getting a packet across.
pub(crate) struct Attack<'a> {
    pub(crate) name: String,
    from: &'a Netns,
    send: Box<dyn Fn(u16) + Send + Sync + 'a>,
    seen_as: Option<Matcher>,
}

impl<'a> Attack<'a> {
    /// `send` runs inside `from` and is given the attack's number.
    pub(crate) fn new(name: impl Into<String>, from: &'a Netns, send: impl Fn(u16) + Send + Sync + 'a) -> Self {
        Self { name: name.into(), from, send: Box::new(send), seen_as: None }
    }

    /// Its frames hold no tag; this tells them.
    pub(crate) fn seen_as(mut self, matches: impl Fn(&[u8]) -> bool + Send + Sync + 'static) -> Self {
        self.seen_as = Some(Box::new(matches));
        self
    }
}

/// A table of attacks with those who see them arrive.
pub(crate) struct Battery<'a> {
    attacks: Vec<Attack<'a>>,
    witnesses: Witnesses,
}

impl<'a> Battery<'a> {
    pub(crate) fn new(mut attacks: Vec<Attack<'a>>, mut witnesses: Witnesses) -> Self {
        for (number, attack) in (0..).zip(&mut attacks) {
            if let Some(matches) = attack.seen_as.take() {
                witnesses.recognise(number, matches);
            }
        }
        Self { attacks, witnesses }
    }

    /// Leaves out the attacks whose name does not satisfy this.
    pub(crate) fn retain(&mut self, holds: impl Fn(&str) -> bool) {
        self.attacks.retain(|attack| holds(&attack.name));
    }

    /// The control: every attack arrives.
    #[track_caller]
    pub(crate) fn assert_all_arrive(&mut self) {
        self.fire();
        let missing = |battery: &mut Self| -> Vec<String> {
            (0..)
                .zip(&battery.attacks)
                .filter(|(number, _)| battery.witnesses.seen(*number) == 0)
                .map(|(_, attack)| attack.name.clone())
                .collect()
        };
        // A neighbour that has to be found first may cost the first shot: fire again until each was seen.
        let all = eventually(PATIENCE, || {
            let done = missing(self).is_empty();
            if !done {
                std::thread::sleep(Duration::from_millis(20));
                self.fire_unseen();
            }
            done
        });
        assert!(all, "the control fails, these do not arrive on a released pod: {:#?}", missing(self));
    }

    /// Nothing arrives.
    #[track_caller]
    pub(crate) fn assert_none_arrives(&mut self) {
        let leaks = self.leaks();
        assert!(leaks.is_empty(), "these got through: {leaks:#?}");
    }

    /// What got through, and how many packets of it.
    pub(crate) fn leaks(&mut self) -> Vec<(String, u64)> {
        self.witnesses.forget();
        self.fire();
        std::thread::sleep(SILENCE);
        let witnesses = &mut self.witnesses;
        (0..)
            .zip(&self.attacks)
            .map(|(number, attack)| (attack.name.clone(), witnesses.seen(number)))
            .filter(|(_, count)| *count > 0)
            .collect()
    }

    fn fire(&self) {
        for (number, attack) in (0..).zip(&self.attacks) {
            attack.from.run(|| {
                for _ in 0..SHOTS {
                    (attack.send)(number);
                }
            });
        }
    }

    fn fire_unseen(&mut self) {
        for (number, attack) in (0..).zip(&self.attacks) {
            if self.witnesses.seen(number) == 0 {
                attack.from.run(|| (attack.send)(number));
            }
        }
    }
}
