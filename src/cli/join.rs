//! `quicraft node --join`: asks a running cluster for a place, before the node starts.

use std::time::{Duration, Instant};

use tracing::{info, warn};

use crate::client::{Client, Error as ClientError, Manage, Options};
use crate::server::{self, Admitted, Asked, Known, Settings};

/// Why the node is no member.
#[derive(Debug, thiserror::Error)]
pub(super) enum Error {
    #[error("cannot join: {0}")]
    Refused(#[from] ClientError),
    #[error(transparent)]
    Server(#[from] server::Error),
    #[error(
        "cannot join with {0} as its address: other nodes cannot reach that; give this node's own entry in \
         [[members]] the address where they can"
    )]
    Unreachable(String),
    #[error("--rejoin needs --join HOST:PORT, or the other members in [[members]]")]
    Nobody,
}

/// Makes the data directory of a new member, unless it is there; `via` is a node of the cluster.
pub(super) async fn join(
    settings: &Settings,
    via: Option<String>,
    rejoins: bool,
) -> Result<(), Error> {
    let Some(ask) = server::ask_to_join(settings, rejoins)? else {
        info!("{} is a member already: it starts with the data that it has", settings.name);
        return Ok(());
    };
    let others = settings.members.iter().filter(|member| member.name != settings.name);
    let endpoints: Vec<String> = match via {
        Some(via) => vec![via],
        None => others.map(|member| member.client_address.clone()).collect(),
    };
    if endpoints.is_empty() {
        return Err(Error::Nobody);
    }
    for own in settings.members.iter().filter(|member| member.name == settings.name) {
        for address in [&own.peer_address, &own.client_address] {
            let is_any = address.starts_with("0.0.0.0:") || address.starts_with("[::]:");
            if is_any {
                return Err(Error::Unreachable(address.clone()));
            }
        }
    }
    let give_up = Instant::now() + PATIENCE;
    let admitted = ask_until(options(settings, endpoints), &ask, Some(give_up)).await?;
    let id = admitted.id;
    server::init_joined(settings, admitted)?;
    info!("joined the cluster as member {id}");
    Ok(())
}

/// How a node that lost what it knew asks for a new member in its place: for as long as it takes.
pub(super) fn ask(settings: &Settings) -> impl Fn(Manage, Vec<String>) -> Asked {
    let settings = settings.clone();
    move |question, endpoints| {
        let options = options(&settings, endpoints);
        Box::pin(async move {
            let asked = ask_until(options, &question, None).await;
            asked.map_err(|error| error.to_string())
        })
    }
}

fn options(settings: &Settings, endpoints: Vec<String>) -> Options {
    Options {
        endpoints,
        certs: settings.certs.clone(),
        name: settings.name.clone(),
        timeout: ASK_TIMEOUT,
    }
}

/// Asks for a change until it is done, until the answer is final, or until it is time to give up.
async fn ask_until(
    options: Options,
    question: &Manage,
    give_up: Option<Instant>,
) -> Result<Admitted, ClientError> {
    let mut reported = None;
    loop {
        let asked = async {
            let client = Client::connect(options.clone()).await?;
            let answer = client.manage(question).await;
            let members = client.members().into_iter().map(|member| Known {
                name: member.name,
                peer: member.peer_address,
                client: member.client_address,
            });
            let members = members.collect();
            client.close().await;
            answer.map(|id| Admitted { id, members })
        };
        match asked.await {
            Ok(admitted) => return Ok(admitted),
            Err(error) if is_final(&error) || give_up.is_some_and(|at| Instant::now() >= at) => {
                return Err(error);
            }
            // The same question again is the same join.
            Err(error) => {
                let text = error.to_string();
                if reported.as_ref() != Some(&text) {
                    warn!("not yet joined: {text}");
                    reported = Some(text);
                }
            }
        }
        tokio::time::sleep(PAUSE).await;
    }
}

fn is_final(error: &ClientError) -> bool {
    !matches!(
        error,
        ClientError::Unknown | ClientError::Timeout { .. } | ClientError::Unreachable { .. }
    )
}

const ASK_TIMEOUT: Duration = Duration::from_secs(5);
const PATIENCE: Duration = Duration::from_secs(30);
const PAUSE: Duration = Duration::from_millis(500);
