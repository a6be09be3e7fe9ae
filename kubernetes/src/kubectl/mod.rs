//! `kubectl quarantine`: what a responder does, from wherever `kubectl` works.
//!
//! A command asks and says: it makes or changes a `PodQuarantine`, and waits, where it is told to, until the pod's node has
//! read its kernel back.

mod arguments;
mod isolate;
mod release;
mod show;
mod wait;

use std::ffi::OsString;
use std::io::{self, Write};

use clap::{CommandFactory, Parser};
use k8s_openapi::api::authentication::v1::SelfSubjectReview;
use kube::api::{Api, DynamicObject, ListParams, PostParams};
use kube::config::{KubeConfigOptions, Kubeconfig};
use kube::{Client, Config};

use crate::api::PodQuarantine;
use crate::uninstall::{self, UninstallError};
use arguments::{Arguments, Cluster, Command};

/// How a command ended; as of `quarantine` on the node.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Exit {
    /// What was asked for is done; where it was waited for, the node has read it back.
    Done = 0,
    /// It is not done, or not whole.
    NotDone = 1,
    /// The command line means nothing, or too much.
    Usage = 2,
    /// The API server does not permit it.
    NotPermitted = 3,
    /// It is asked for, and waits for the node or the pod.
    Waiting = 4,
}

/// Why a command could not do what it is for.
#[derive(Debug)]
struct Failure {
    exit: Exit,
    message: String,
}

impl Failure {
    fn new(exit: Exit, message: impl Into<String>) -> Self {
        Self { exit, message: message.into() }
    }
}

impl From<kube::Error> for Failure {
    fn from(error: kube::Error) -> Self {
        match &error {
            kube::Error::Api(status) if [401, 403].contains(&status.code) => {
                Self::new(Exit::NotPermitted, status.message.clone())
            }
            kube::Error::Api(status) => Self::new(Exit::NotDone, status.message.clone()),
            _ => Self::new(Exit::NotDone, cni_quarantine::audit::chain(&error)),
        }
    }
}

/// Runs the command of these arguments, and returns the exit code.
pub fn run(arguments: impl Iterator<Item = OsString>) -> u8 {
    let arguments = match Arguments::try_parse_from(arguments) {
        Ok(arguments) => arguments,
        Err(error) => {
            let _ = error.print();
            return if error.use_stderr() { Exit::Usage } else { Exit::Done } as u8;
        }
    };
    if let Command::Completion { shell } = arguments.command {
        let mut script = Vec::new();
        clap_complete::generate(shell, &mut Arguments::command(), "kubectl-quarantine", &mut script);
        let _ = io::stdout().write_all(&script);
        return Exit::Done as u8;
    }
    let runtime = match tokio::runtime::Builder::new_current_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => {
            say_error(&format!("cannot begin: {error}"));
            return Exit::NotDone as u8;
        }
    };
    match runtime.block_on(dispatch(arguments)) {
        Ok(exit) => exit as u8,
        Err(failure) => {
            say_error(&failure.message);
            failure.exit as u8
        }
    }
}

async fn dispatch(arguments: Arguments) -> Result<Exit, Failure> {
    let session = Session::of(arguments.cluster).await?;
    match arguments.command {
        Command::Isolate(arguments) => isolate::isolate(&session, &arguments).await,
        Command::Release(arguments) => release::release(&session, &arguments).await,
        Command::Status(arguments) => show::status(&session, &arguments).await,
        Command::List(arguments) => show::list(&session, &arguments).await,
        Command::Uninstall(arguments) => {
            uninstall::run(&arguments, session.client, &mut |line: &str| print(&format!("{line}\n"))).await?;
            Ok(Exit::Done)
        }
        Command::Completion { .. } => Ok(Exit::Done),
    }
}

impl From<UninstallError> for Failure {
    fn from(error: UninstallError) -> Self {
        match error {
            UninstallError::Api(error) => error.into(),
            UninstallError::Isolated(_) => Self::new(Exit::Usage, error.to_string()),
            UninstallError::Incomplete { .. } => Self::new(Exit::NotDone, error.to_string()),
        }
    }
}

/// A cluster, and the namespace that is meant.
struct Session {
    client: Client,
    namespace: String,
}

impl Session {
    async fn of(cluster: Cluster) -> Result<Self, Failure> {
        let options = KubeConfigOptions { context: cluster.context, ..KubeConfigOptions::default() };
        let failed = |error: &dyn std::fmt::Display| Failure::new(Exit::Usage, format!("no cluster: {error}"));
        let config = match cluster.kubeconfig {
            Some(path) => {
                let kubeconfig = Kubeconfig::read_from(path).map_err(|error| failed(&error))?;
                Config::from_custom_kubeconfig(kubeconfig, &options).await.map_err(|error| failed(&error))?
            }
            None => match Config::from_kubeconfig(&options).await {
                Ok(config) => config,
                Err(error) => Config::incluster().map_err(|_| failed(&error))?,
            },
        };
        let namespace = cluster.namespace.unwrap_or_else(|| config.default_namespace.clone());
        Ok(Self { client: Client::try_from(config)?, namespace })
    }

    fn objects(&self) -> Api<PodQuarantine> {
        Api::all(self.client.clone())
    }

    fn pods(&self) -> Api<DynamicObject> {
        let resource = kube::api::ApiResource::erase::<k8s_openapi::api::core::v1::Pod>(&());
        Api::namespaced_with(self.client.clone(), &self.namespace, &resource)
    }

    /// The name under which the API server knows who asks.
    async fn me(&self) -> Result<String, Failure> {
        let reviews: Api<SelfSubjectReview> = Api::all(self.client.clone());
        let review = reviews.create(&PostParams::default(), &SelfSubjectReview::default()).await?;
        let user = review.status.and_then(|status| status.user_info).and_then(|user| user.username);
        user.ok_or_else(|| Failure::new(Exit::NotDone, "the API server does not say who asks"))
    }

    /// The objects of this namespace's pods.
    async fn objects_here(&self) -> Result<Vec<PodQuarantine>, Failure> {
        let mut objects = self.objects().list(&ListParams::default()).await?.items;
        objects.retain(|object| object.spec.pod.namespace == self.namespace);
        Ok(objects)
    }
}

/// Without `--yes` what a selector means is listed, and nothing is done.
fn confirmed(target: &arguments::Target, what: &str, pods: &[String]) -> Result<(), Failure> {
    if target.selector.is_none() || target.yes {
        return Ok(());
    }
    let message = match pods {
        [] => "the selector finds no pod".to_owned(),
        pods => {
            format!("this would {what} {} pods; say --yes too if you mean them:\n  {}", pods.len(), pods.join("\n  "))
        }
    };
    Err(Failure::new(Exit::Usage, message))
}

fn say_error(message: &str) {
    let _ = writeln!(io::stderr(), "quarantine: {message}");
}

fn print(text: &str) {
    let _ = io::stdout().lock().write_all(text.as_bytes());
}
