//! One controller at a time: a Lease that is held, and renewed while it works.

use std::time::Duration;

use anyhow::Context as _;
use jiff::Timestamp;
use k8s_openapi::api::coordination::v1::{Lease, LeaseSpec};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::MicroTime;
use kube::api::PostParams;
use kube::{Api, Client};

/// After how long without a renewal a lease is anybody's.
const LASTS: Duration = Duration::from_secs(15);
const RENEWED_EVERY: Duration = Duration::from_secs(5);
const TRIED_EVERY: Duration = Duration::from_secs(2);

/// A lease by its name, and who wants it.
pub(super) struct Turn {
    leases: Api<Lease>,
    name: String,
    me: String,
}

impl Turn {
    pub(super) fn new(client: Client, namespace: &str, name: &str, me: String) -> Self {
        Self { leases: Api::namespaced(client, namespace), name: name.to_owned(), me }
    }

    /// Waits until the lease is this process's.
    pub(super) async fn take(&self) {
        loop {
            match self.try_take().await {
                Ok(true) => return,
                Ok(false) => {}
                Err(error) => log::warn!("event=no-lease error={:?}", error.to_string()),
            }
            tokio::time::sleep(TRIED_EVERY).await;
        }
    }

    /// Renews it until it is lost.
    pub(super) async fn keep(&self) -> anyhow::Error {
        let mut renewed = tokio::time::Instant::now();
        loop {
            tokio::time::sleep(RENEWED_EVERY).await;
            match tokio::time::timeout(RENEWED_EVERY, self.try_take()).await {
                Ok(Ok(true)) => renewed = tokio::time::Instant::now(),
                Ok(Ok(false)) => return anyhow::anyhow!("the lease {} is another's now", self.name),
                Ok(Err(_)) | Err(_) if renewed.elapsed() < LASTS => {}
                Ok(Err(error)) => return anyhow::Error::new(error).context("the lease could not be renewed"),
                Err(_) => return anyhow::anyhow!("the lease could not be renewed: no answer"),
            }
        }
    }

    /// Gives it back, so that the next one need not wait.
    pub(super) async fn give_back(&self) -> anyhow::Result<()> {
        let mut lease = self.leases.get(&self.name).await?;
        let spec = lease.spec.get_or_insert_default();
        if spec.holder_identity.as_deref() == Some(&self.me) {
            spec.holder_identity = Some(String::new());
            self.leases.replace(&self.name, &PostParams::default(), &lease).await.context("the lease stays taken")?;
        }
        Ok(())
    }

    async fn try_take(&self) -> Result<bool, kube::Error> {
        let now = Timestamp::now();
        let Some(mut lease) = self.leases.get_opt(&self.name).await? else {
            let mut lease = Lease::default();
            lease.metadata.name = Some(self.name.clone());
            lease.spec = Some(self.claim(LeaseSpec::default(), now));
            return taken(self.leases.create(&PostParams::default(), &lease).await);
        };
        let spec = lease.spec.take().unwrap_or_default();
        if !is_free(&spec, &self.me, now) {
            return Ok(false);
        }
        lease.spec = Some(self.claim(spec, now));
        // The version goes along: of two that try, one is refused.
        taken(self.leases.replace(&self.name, &PostParams::default(), &lease).await)
    }

    fn claim(&self, before: LeaseSpec, now: Timestamp) -> LeaseSpec {
        let mine = before.holder_identity.as_deref() == Some(&self.me);
        LeaseSpec {
            holder_identity: Some(self.me.clone()),
            acquire_time: if mine { before.acquire_time } else { Some(MicroTime(now)) },
            renew_time: Some(MicroTime(now)),
            lease_duration_seconds: i32::try_from(LASTS.as_secs()).ok(),
            lease_transitions: Some(before.lease_transitions.unwrap_or(0) + i32::from(!mine)),
            ..before
        }
    }
}

fn taken(result: Result<Lease, kube::Error>) -> Result<bool, kube::Error> {
    match result {
        Ok(_) => Ok(true),
        Err(kube::Error::Api(error)) if error.code == 409 => Ok(false),
        Err(error) => Err(error),
    }
}

fn is_free(spec: &LeaseSpec, me: &str, now: Timestamp) -> bool {
    let holder = spec.holder_identity.as_deref().unwrap_or_default();
    let lasts = i64::from(spec.lease_duration_seconds.unwrap_or(0));
    let renewed = spec.renew_time.as_ref().map_or(i64::MIN, |time| time.0.as_second());
    holder.is_empty() || holder == me || renewed.saturating_add(lasts) < now.as_second()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_lease_is_free_when_it_ran_out_or_was_given_back() {
        let now = Timestamp::constant(1_800_000_000, 0);
        let spec = |holder: &str, age: i64| LeaseSpec {
            holder_identity: Some(holder.to_owned()),
            lease_duration_seconds: Some(15),
            renew_time: Timestamp::new(now.as_second() - age, 0).ok().map(MicroTime),
            ..LeaseSpec::default()
        };
        for (spec, free) in [
            (LeaseSpec::default(), true),
            (spec("", 0), true),
            (spec("me", 0), true),
            (spec("other", 0), false),
            (spec("other", 15), false),
            (spec("other", 16), true),
        ] {
            assert_eq!(is_free(&spec, "me", now), free, "{spec:?}");
        }
    }
}
