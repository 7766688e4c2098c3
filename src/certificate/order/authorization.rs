//! N: what the CA wants proven (RFC 8555 §7.1.4), and telling it to look.

use std::time::Duration;

use instant_acme::{
    AuthorizationHandle, AuthorizationStatus, ChallengeHandle, ChallengeStatus, ChallengeType,
    Order,
};

use tokio::time::{Instant, sleep};

use super::error::{IdentifierProblem, OrderError, own_problem};
use super::{acme_identifier, insist};
use crate::certificate::Identifier;
use crate::certificate::http::Problem;
use crate::certificate::words::one_line;

/// One for each identifier, or fewer: what the CA knows already it need not ask for.
pub(super) fn check_count(order: &mut Order, wanted: &[Identifier]) -> Result<(), OrderError> {
    let count = order.state().authorizations.len();
    match (1..=wanted.len()).contains(&count) {
        true => Ok(()),
        false => Err(OrderError::AuthorizationCount {
            count,
            identifiers: wanted.len(),
        }),
    }
}

/// The nth, from 0. Those that were loaded before are not asked for again.
pub(super) async fn load(order: &mut Order, nth: usize) -> Result<(), instant_acme::Error> {
    let mut authorizations = order.authorizations();
    for _ in 0..=nth {
        if let Some(authorization) = authorizations.next().await {
            authorization?;
        }
    }
    Ok(())
}

/// nginx answers any challenge: for a name that we did not ask for, none must be accepted.
pub(super) async fn check_identifiers(
    order: &mut Order,
    wanted: &[Identifier],
) -> Result<(), OrderError> {
    let wanted: Vec<String> = wanted
        .iter()
        .map(|identifier| acme_identifier(identifier).authorized(false).to_string())
        .collect();
    let mut authorizations = order.authorizations();
    while let Some(authorization) = authorizations.next().await {
        let authorization =
            authorization.map_err(|error| OrderError::of("ask for the authorizations", error))?;
        let identifier = authorization.identifier().to_string();
        if !wanted.contains(&identifier) {
            return Err(OrderError::ForeignAuthorization(clean(&identifier)));
        }
    }
    Ok(())
}

/// The texts that dns-01 wants published, each with its identifier (RFC 8555 §8.4); none for what is
/// valid already. Also those of challenges that the CA looks at already: it may look again.
pub(super) async fn texts(order: &mut Order) -> Result<Vec<(String, String)>, OrderError> {
    of_pending(order, ChallengeType::Dns01, |identifier, challenge| {
        Ok((identifier, challenge.key_authorization().dns_value()))
    })
    .await
}

/// What `read` makes of the challenge of that kind, for each identifier that is not proven yet.
async fn of_pending<T>(
    order: &mut Order,
    kind: ChallengeType,
    read: fn(String, &ChallengeHandle<'_>) -> Result<T, OrderError>,
) -> Result<Vec<T>, OrderError> {
    let mut all = Vec::new();
    let mut authorizations = order.authorizations();
    while let Some(authorization) = authorizations.next().await {
        let mut authorization =
            authorization.map_err(|error| OrderError::of("ask for the authorizations", error))?;
        if authorization.status != AuthorizationStatus::Pending {
            continue;
        }
        let identifier = authorization.identifier().to_string();
        match authorization.challenge(kind.clone()) {
            None => return Err(OrderError::no_challenge(identifier, &kind)),
            Some(challenge) => all.push(read(identifier, &challenge)?),
        }
    }
    Ok(all)
}

/// The authorizations whose challenge the CA refused to validate, by number, and why.
pub(super) async fn set_all_ready(
    order: &mut Order,
    kind: ChallengeType,
) -> Result<Vec<(usize, OrderError)>, OrderError> {
    let mut refused = Vec::new();
    let mut authorizations = order.authorizations();
    let mut nth = 0;
    while let Some(authorization) = authorizations.next().await {
        let authorization =
            authorization.map_err(|error| OrderError::of("ask for the authorizations", error))?;
        if authorization.status == AuthorizationStatus::Pending {
            match set_ready(authorization, kind.clone()).await {
                Err(error) if error.is_problem() => refused.push((nth, error)),
                outcome => outcome?,
            }
        }
        nth += 1;
    }
    Ok(refused)
}

/// Of every challenge that nginx will be asked about.
pub(super) async fn tokens(order: &mut Order) -> Result<Vec<String>, OrderError> {
    of_pending(
        order,
        ChallengeType::Http01,
        |identifier, challenge| match is_token(&challenge.token) {
            true => Ok(challenge.token.clone()),
            false => Err(OrderError::Token(identifier)),
        },
    )
    .await
}

pub(super) async fn is_pending(order: &mut Order, wanted: usize) -> Result<bool, OrderError> {
    let mut authorizations = order.authorizations();
    let mut nth = 0;
    while let Some(Ok(mut authorization)) = authorizations.next().await {
        if nth == wanted {
            let step = "ask for the authorization";
            insist!(step, reread(&mut authorization))?;
            return Ok(authorization.status == AuthorizationStatus::Pending);
        }
        nth += 1;
    }
    Ok(true)
}

/// Why the order is invalid: the CA tells it at the challenges.
pub(super) async fn reasons(order: &mut Order) -> OrderError {
    let mut problems = Vec::new();
    let deadline = Instant::now() + LATECOMERS;
    let mut authorizations = order.authorizations();
    while let Some(authorization) = authorizations.next().await {
        let Ok(mut authorization) = authorization else {
            continue;
        };
        // what we have was read before the validation
        if let Err(error) = insist!("ask for the reason", reread(&mut authorization)) {
            tracing::debug!(%error, "no reason for an invalid authorization");
            continue;
        }
        // one that fails ends the order, and of the others it is not known yet whether they do
        while authorization.status == AuthorizationStatus::Pending && Instant::now() < deadline {
            sleep(LATECOMERS / 10).await;
            if insist!("ask for the reason", reread(&mut authorization)).is_err() {
                break;
            }
        }
        let identifier = clean(&authorization.identifier().to_string());
        let reasons = authorization
            .challenges
            .iter()
            .filter_map(|challenge| challenge.error.as_ref());
        problems.extend(reasons.map(|problem| IdentifierProblem {
            identifier: identifier.clone(),
            problem: own_problem(problem),
        }));
    }
    if problems.is_empty() {
        let problem = order.state().error.as_ref().map(own_problem);
        return OrderError::Invalid(problem.unwrap_or_else(|| Problem {
            detail: "it gives no reason".to_owned(),
            ..Problem::default()
        }));
    }
    OrderError::Challenge { problems }
}

/// Waited for all in all: an identifier that is not named now costs one more attempt.
const LATECOMERS: Duration = Duration::from_secs(2);

async fn set_ready(
    mut authorization: AuthorizationHandle<'_>,
    kind: ChallengeType,
) -> Result<(), OrderError> {
    let identifier = authorization.identifier().to_string();
    match authorization.challenge(kind.clone()) {
        None => Err(OrderError::no_challenge(identifier, &kind)),
        Some(challenge) if !is_token(&challenge.token) => Err(OrderError::Token(identifier)),
        Some(challenge) if challenge.status != ChallengeStatus::Pending => Ok(()),
        Some(mut challenge) => insist!("answer the challenge", challenge.set_ready()),
    }
}

async fn reread(authorization: &mut AuthorizationHandle<'_>) -> Result<(), instant_acme::Error> {
    authorization.refresh().await.map(drop)
}

/// A token is part of a URL path and of what nginx answers: nothing but base64url is let through.
fn is_token(token: &str) -> bool {
    let base64url = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'-' || byte == b'_';
    (1..=128).contains(&token.len()) && token.bytes().all(base64url)
}

fn clean(identifier: &str) -> String {
    one_line(identifier.as_bytes())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_that_is_more_than_base64url_is_refused() {
        assert!(is_token("evaGxfADs6pSRb2LAv9IZf17Dt3juxGJ-PCt92wr-oA"));
        for token in ["", "a/../b", "a b", "a.b", "é", "a\n", &"a".repeat(129)] {
            assert!(!is_token(token), "{token:?}");
        }
    }
}
