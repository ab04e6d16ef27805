//! Where a sale is played: at an all-in-one of our own, or at a target that already runs. Below it nobody knows which.

use std::time::Duration;

use tokio::time::{Instant, sleep};

use crate::Failure;
use crate::api::{Figures, Listener, Operator, Pass, Refusal, Sale, Shop};
use crate::arguments::SpikeOptions;
use crate::clock;
use crate::crowd::Arrival;
use crate::database::Auditor;
use crate::http::Client;
use crate::server::{SaleToOpen, Server, Setting, program};
use crate::token::Signer;

const ANSWER_WITHIN: Duration = Duration::from_secs(15);
/// A target must be at rest this long after the last answer.
const REST_WITHIN: Duration = Duration::from_secs(60);
/// A sale is known at every gateway this long after its publication.
const SHOWN_WITHIN: Duration = Duration::from_secs(5);
/// More answers than there are gateways that calls alternate between, or that a balancer alternates between.
const SHOWS_IN_A_ROW: usize = 32;
/// What a whole crowd may spend on proofs of work.
const HASHES_MAX: u64 = 1 << 31;
/// A crowd of real people: nobody but a bot presses this often.
pub(crate) const PER_USER_RPS: u32 = 20;

/// A sale about to open, and the ways to it.
pub(crate) struct Stand {
    pub(crate) server: Option<Server>,
    pub(crate) shop: Shop,
    pub(crate) operator: Option<Operator>,
    pub(crate) auditor: Auditor,
    pub(crate) signer: Signer,
    pub(crate) sale: String,
    pub(crate) per_user_limit: u32,
    pub(crate) opening: Instant,
    pub(crate) puzzles: bool,
    pub(crate) drain_limit: Option<u32>,
    /// Nobody else buys here.
    pub(crate) alone: bool,
}

/// The time in which a crowd gets its passes before the opening.
pub(crate) fn presale(users: u32, arrival: Arrival) -> Duration {
    match arrival {
        Arrival::Presale => Duration::from_millis(2_000 + u64::from(users) * 1_000 / 2_500),
        Arrival::AtOpen => Duration::from_millis(2_000),
    }
}

impl Stand {
    pub(crate) async fn set_up(options: &SpikeOptions, seed: u64) -> Result<Self, Failure> {
        match options.target.as_slice() {
            [] => Self::own(options, seed).await,
            _ if options.own.is_named() => Err(Failure::Usage(
                "--server, --keep and --orders-per-second-max are for a server that is started here: leave them out, or --target"
                    .into(),
            )),
            targets => Self::at(targets, options, seed).await,
        }
    }

    async fn own(options: &SpikeOptions, seed: u64) -> Result<Self, Failure> {
        let program = program(options.own.server.as_deref()).await?;
        // The sale stands in the configuration: its opening leaves the server 2 s to start.
        let wait = Duration::from_secs(2) + presale(options.users, options.arrival);
        let sale = SaleToOpen {
            id: format!("spike-{seed:x}"),
            units: options.units,
            starts_at_ms: clock::unix_now_ms() + wait.as_millis() as u64,
        };
        let limit = options.own.orders_per_second_max.unwrap_or(2_000);
        let setting =
            Setting { per_user_rps: PER_USER_RPS, orders_per_second_max: limit, sale: Some(sale.clone()) };
        let server = Server::start(program, &setting, options.own.keep.as_deref()).await?;
        Ok(Self {
            shop: server.shop(options.connections as usize)?,
            operator: Some(server.operator()?),
            auditor: Auditor::new(&server.database_url()).map_err(Failure::World)?,
            signer: server.signer(),
            sale: sale.id,
            per_user_limit: 1,
            opening: clock::instant_of(sale.starts_at_ms, 0),
            puzzles: false,
            drain_limit: Some(limit),
            alone: true,
            server: Some(server),
        })
    }

    async fn at(targets: &[String], options: &SpikeOptions, seed: u64) -> Result<Self, Failure> {
        let usage = |text: String| Failure::Usage(text);
        let sockets_each = (options.connections as usize).div_ceil(targets.len());
        let client = |target: &String| Client::new(target, sockets_each, ANSWER_WITHIN);
        let shop = Shop::new(targets.iter().map(client).collect::<Result<_, _>>().map_err(usage)?);
        let database_url = match (&options.database_url, &options.database_url_file) {
            (None, file) => read("--database-url-file", file.as_deref())?.trim().to_owned(),
            (Some(url), _) => url.clone(),
        };
        let auditor = Auditor::new(&database_url).map_err(usage)?;
        let secret = read("--jwt-secret-file", options.jwt_secret_file.as_deref())?;
        let signer = Signer::new(&secret, options.jwt_issuer.clone(), options.jwt_audience.clone());
        let operator = operator(options)?;

        let now = shop.time().await.map_err(|error| {
            Failure::World(format!(
                "the target {} does not answer: {error}; start it, or name its gateway.listen with --target",
                targets.join(", ")
            ))
        })?;
        let now_ms =
            clock::parse_ms(&now).ok_or_else(|| Failure::World(format!("the target's time is {now}")))?;
        let ahead_ms = now_ms as i64 - clock::unix_now_ms() as i64;
        let sale = match (&options.sale, &operator) {
            (Some(sale), _) => sale.clone(),
            (None, Some(operator)) => {
                let wait = Duration::from_secs(1) + presale(options.users, options.arrival);
                let sale = SaleToOpen {
                    id: format!("spike-{seed:x}-{}", now_ms / 1_000),
                    units: options.units,
                    starts_at_ms: now_ms + wait.as_millis() as u64,
                };
                operator.publish(&sale.definition()).await.map_err(Failure::World)?;
                sale.id
            }
            (None, None) => {
                return Err(Failure::Usage(
                    "name a --sale, or give --admin-url so that one can be published".into(),
                ));
            }
        };
        let shown = shown(&shop, &sale).await.map_err(Failure::World)?;
        if shown.total != options.units {
            let text = format!("--units {}: the sale {} has {} units", options.units, shown.id, shown.total);
            return Err(Failure::Usage(text));
        }
        let starts_at_ms = clock::parse_ms(&shown.starts_at)
            .ok_or_else(|| Failure::World(format!("the sale starts at {}", shown.starts_at)))?;
        // Before the crowd rather than after it.
        auditor.read(&sale).await.map_err(|error| {
            Failure::World(format!(
                "{error}: --database-url must be the target's orders.database_url, as seen from here"
            ))
        })?;
        let puzzles = asks_puzzles(&shop, &signer, &sale, options, seed).await?;
        Ok(Self {
            server: None,
            shop,
            operator,
            auditor,
            signer,
            sale,
            per_user_limit: shown.per_user_limit,
            opening: clock::instant_of(starts_at_ms, ahead_ms),
            puzzles,
            drain_limit: options.drain_limit,
            alone: true,
        })
    }
}

/// The sale as every gateway shows it: one that was published at another of them a moment ago shows within a second.
async fn shown(shop: &Shop, sale: &str) -> Result<Sale, String> {
    let until = Instant::now() + SHOWN_WITHIN;
    let mut in_a_row = 0;
    loop {
        match shop.sale(sale).await {
            Ok(_) if in_a_row + 1 < SHOWS_IN_A_ROW => in_a_row += 1,
            Err(_) if Instant::now() < until => {
                in_a_row = 0;
                sleep(Duration::from_millis(100)).await;
            }
            answer => return answer,
        }
    }
}

/// The admin listeners that were named: of each gateway its own, each with its own token or all with one.
fn operator(options: &SpikeOptions) -> Result<Option<Operator>, Failure> {
    let (urls, files) = (&options.admin_url, &options.admin_token_file);
    if urls.is_empty() {
        return Ok(None);
    }
    if files.len() != 1 && files.len() != urls.len() {
        return Err(Failure::Usage(format!(
            "{} --admin-url but {} --admin-token-file: give one for each, or one for all",
            urls.len(),
            files.len()
        )));
    }
    let listeners = urls.iter().zip(files.iter().cycle()).map(|(url, file)| {
        let token = read("--admin-token-file", Some(file))?.trim().to_owned();
        let client = Client::new(url, 4, ANSWER_WITHIN).map_err(Failure::Usage)?;
        Ok(Listener { client, token: Some(token) })
    });
    Ok(Some(Operator::new(listeners.collect::<Result<_, Failure>>()?)))
}

/// Learns how the target asks; stops at what a machine should not answer.
async fn asks_puzzles(
    shop: &Shop,
    signer: &Signer,
    sale: &str,
    options: &SpikeOptions,
    seed: u64,
) -> Result<bool, Failure> {
    let token = signer.token(&format!("u-{seed:x}-probe"), clock::unix_now_ms() / 1_000, 600);
    let from = std::net::Ipv4Addr::new(10, 255, 255, 254);
    let refused = match shop.pass(sale, &token, from, "{}").await {
        Pass::Granted { .. } => return Ok(false),
        Pass::Refused(refusal, _) => refusal,
        Pass::Strange(text) => return Err(Failure::World(format!("the target's answer to a pass: {text}"))),
        Pass::Lost(lost) => return Err(Failure::World(format!("the target: {lost}"))),
    };
    match (refused, options.arrival) {
        (Refusal::NotStarted, Arrival::Presale) => {
            return Err(Failure::Usage(
                "the target grants no pass before the opening: raise gate.opens_before_s, or use --arrival at-open".into(),
            ));
        }
        (Refusal::NotStarted, Arrival::AtOpen) => return Ok(false),
        (Refusal::Unauthorized, _) => {
            return Err(Failure::Usage(
                "the target takes none of our users' tokens: --jwt-secret-file must hold its auth.hs256_secret, and --jwt-issuer \
                 and --jwt-audience be its auth.issuer and auth.audience, where it has any"
                    .into(),
            ));
        }
        _ => {}
    }
    match shop.challenge(sale, &token, from).await {
        Ok(challenge) if challenge.kind == "proof-of-work" => {
            let bits = challenge
                .puzzle
                .map_or(64, |puzzle| if puzzle.algorithm == "sha256" { puzzle.bits } else { 64 });
            if u64::from(options.users) > HASHES_MAX.checked_shr(bits).unwrap_or(0) {
                return Err(Failure::Usage(format!(
                    "the target asks for {bits} bits of proof of work: {} users would need more than 2^31 hashes; lower \
                     gate.pow_bits or set gate.challenge = \"off\"",
                    options.users
                )));
            }
            Ok(true)
        }
        Ok(challenge) => Err(Failure::Usage(format!(
            "the target asks {} questions, which only people should answer: set gate.challenge = \"off\" at the target",
            challenge.kind
        ))),
        Err(instead) => {
            Err(Failure::World(format!("the target refuses a pass ({refused}) and a question ({instead:?})")))
        }
    }
}

fn read(option: &str, path: Option<&std::path::Path>) -> Result<String, Failure> {
    let path = path.unwrap_or(std::path::Path::new(""));
    std::fs::read_to_string(path)
        .map_err(|error| Failure::Usage(format!("{option} {}: {error}", path.display())))
}

/// Waits until the target is at rest, at most 60 s. Returns the last figures, and whether it came to rest.
///
/// Without an operator's view, rest is when the rows have not changed for 2 s.
pub(crate) async fn rest(
    operator: Option<&Operator>,
    auditor: &Auditor,
    sale: &str,
) -> Result<(Option<Figures>, bool), Failure> {
    let until = Instant::now() + REST_WITHIN;
    let Some(operator) = operator else {
        let mut seen = auditor.read(sale).await.map_err(Failure::World)?.rows.len();
        while Instant::now() < until {
            sleep(Duration::from_secs(2)).await;
            let now = auditor.read(sale).await.map_err(Failure::World)?.rows.len();
            if std::mem::replace(&mut seen, now) == now {
                return Ok((None, true));
            }
        }
        return Ok((None, false));
    };
    let mut last = Err("never asked".to_owned());
    while Instant::now() < until {
        last = operator.figures(sale).await;
        if last.as_ref().is_ok_and(|figures| figures.at_rest && figures.pending == 0 && figures.backlog == 0)
        {
            return Ok((last.ok(), true));
        }
        sleep(Duration::from_millis(100)).await;
    }
    match last {
        Ok(figures) => Ok((Some(figures), false)),
        Err(error) => Err(Failure::World(format!("the figures of {sale}: {error}"))),
    }
}
