//! N: one message to one receiver, once. Nothing that was a secret comes back in an error.

use std::time::Duration;

use aws_lc_rs::hmac;
use bytes::Bytes;
use http::header::{AUTHORIZATION, CONTENT_TYPE, USER_AGENT};
use http::{HeaderName, HeaderValue, Method, Request, Response, Uri};
use http_body_util::Full;
use tokio::task::spawn_blocking;

use super::message::{self, Message};
use super::secret::{Secret, SecretError};
use super::{Notice, message::environment};
use crate::certificate::http::{
    HttpError, Schemes, USER_AGENT_VALUE, connect, receive, retry_after,
};
use crate::certificate::words::one_line;
use crate::command::CommandError;
use crate::command::program::{Background, Heard, Inherits, Program};
use crate::settings::hooks::{Argv, Hook, Place, UrlSource};
use crate::settings::origin::{HookUrl, UrlError};
use crate::settings::proxy::ProxySettings;

/// Why a message was not taken; a fragment that fits "failed to …".
#[derive(Debug, thiserror::Error)]
pub enum SendError {
    #[error("deliver it: HTTP {status}{words}")]
    Answer {
        status: u16,
        /// The first words of the answer, after a colon; none that repeat a secret.
        words: String,
        retry_after: Option<Duration>,
    },
    #[error(transparent)]
    Command(#[from] CommandError),
    #[error("run {program}: it ended with {status}{words}")]
    CommandFailed {
        program: String,
        status: String,
        words: String,
    },
    #[error("send what is in the secret as a header: it has characters that no header has")]
    Header,
    #[error("deliver it: {0}")]
    Http(#[source] Box<HttpError>),
    /// `via`: ` through the proxy …`, where there is one.
    #[error("deliver it: the receiver is out of reach{via}: {words}")]
    OutOfReach { words: String, via: String },
    #[error(
        "deliver it: it leads elsewhere (HTTP {0}), which is not followed; write the URL that it leads to"
    )]
    Redirect(u16),
    #[error(transparent)]
    Secret(#[from] SecretError),
    #[error("finish work in the background: {0}")]
    Task(#[from] tokio::task::JoinError),
    #[error("deliver it: no answer within {} s{via}", limit.as_secs())]
    TimedOut { limit: Duration, via: String },
    #[error("use the URL in the secret: {0}")]
    Url(#[from] UrlError),
}

impl SendError {
    /// What to do about it.
    pub fn hint(&self) -> Option<&'static str> {
        match self {
            Self::Answer { status, .. } => match status {
                401 | 403 => Some("is the token or the secret the right one?"),
                404 | 410 => Some("was the URL withdrawn by whoever gave it?"),
                _ => None,
            },
            Self::CommandFailed { .. } => {
                Some("it runs without a shell, below /, and under the unit's restrictions")
            }
            Self::Secret(SecretError::NoCredential(_)) => {
                Some("add `LoadCredential=NAME:FILE` to the unit, and restart it")
            }
            _ => None,
        }
    }

    /// The delay that the receiver asked for.
    pub fn retry_after(&self) -> Option<Duration> {
        match self {
            Self::Answer { retry_after, .. } => *retry_after,
            _ => None,
        }
    }

    /// Whether another message may fare better: this one itself was refused.
    pub fn is_about_the_message(&self) -> bool {
        match self {
            Self::Answer { status, .. } => matches!(status, 400 | 413 | 422),
            Self::CommandFailed { .. } => true,
            _ => false,
        }
    }
}

/// `limit`: for an answer by HTTP; a command has [`COMMAND_LIMIT`].
pub async fn send(
    hook: &Hook,
    notice: &Notice,
    host: &str,
    proxy: &ProxySettings,
    limit: Duration,
) -> Result<(), SendError> {
    match hook {
        Hook::Command(argv) => run(argv.clone(), notice, host).await,
        Hook::Discord(place) | Hook::Ntfy(place) | Hook::Slack(place) | Hook::Webhook(place) => {
            let place = place.clone();
            // files may be anywhere, also on a disk that does not answer
            let secrets = spawn_blocking(move || Secrets::read(&place)).await??;
            let message = message::message(hook, notice, host);
            let request = request(hook, message, &secrets)?;
            let place = hook.place().and_then(|place| place.ca_file.clone());
            let chosen = proxy.clone();
            let client = spawn_blocking(move || {
                connect::<Full<Bytes>>(place.as_deref(), Schemes::PlainToo, &chosen)
            });
            let answer = receive(&client.await??, proxy, request, limit).await?;
            judge(&answer, &secrets)
        }
    }
}

impl From<HttpError> for SendError {
    fn from(error: HttpError) -> Self {
        match error {
            HttpError::TimedOut { limit, via } => Self::TimedOut { limit, via },
            HttpError::Transport { words, via } => Self::OutOfReach { words, via },
            error => Self::Http(Box::new(error)),
        }
    }
}

struct Secrets {
    url: Uri,
    secret: Option<Secret>,
    /// Whether the URL is one.
    is_url_secret: bool,
}

impl Secrets {
    fn read(place: &Place) -> Result<Self, SendError> {
        let (url, is_url_secret) = match &place.url {
            UrlSource::Here(url) => (url.clone(), false),
            UrlSource::Secret(source) => (HookUrl::parse(Secret::read(source)?.expose())?, true),
        };
        let secret = place.secret.as_ref().map(Secret::read).transpose()?;
        Ok(Self {
            url: url.uri().clone(),
            secret,
            is_url_secret,
        })
    }

    /// Whether words of the receiver repeat what was a secret: an error page often shows the path.
    fn are_in(&self, words: &str) -> bool {
        let words = words.to_lowercase();
        let url = match self.is_url_secret {
            true => self.url.path_and_query().map_or("", |path| path.as_str()),
            false => self.url.query().unwrap_or(""),
        };
        let parts = url.split(['/', '?', '&', '=']);
        let secret = self.secret.as_ref().map(Secret::expose);
        parts
            .chain(secret)
            .filter(|part| part.len() >= 4)
            .any(|part| words.contains(&part.to_lowercase()))
    }
}

fn request(
    hook: &Hook,
    message: Message,
    secrets: &Secrets,
) -> Result<Request<Full<Bytes>>, SendError> {
    let signature = match (hook, &secrets.secret) {
        (Hook::Webhook(_), Some(secret)) => Some(signature(secret, &message.body)),
        _ => None,
    };
    let mut request = Request::new(Full::new(Bytes::from(message.body)));
    *request.method_mut() = Method::POST;
    *request.uri_mut() = secrets.url.clone();
    let headers = request.headers_mut();
    headers.insert(USER_AGENT, HeaderValue::from_static(USER_AGENT_VALUE));
    headers.insert(CONTENT_TYPE, HeaderValue::from_static(message.content_type));
    let value = |text: &str| HeaderValue::from_str(text).map_err(|_| SendError::Header);
    for (name, text) in &message.headers {
        headers.insert(HeaderName::from_static(name), value(text)?);
    }
    if let Some(signature) = signature {
        headers.insert(SIGNATURE, value(&signature)?);
    }
    if let (Hook::Ntfy(_), Some(token)) = (hook, &secrets.secret) {
        let mut token = value(&format!("Bearer {}", token.expose()))?;
        token.set_sensitive(true);
        headers.insert(AUTHORIZATION, token);
    }
    Ok(request)
}

/// HMAC-SHA256 of the body, in the form that GitHub has made common.
fn signature(secret: &Secret, body: &[u8]) -> String {
    let key = hmac::Key::new(hmac::HMAC_SHA256, secret.expose().as_bytes());
    let tag = hmac::sign(&key, body);
    let hex: String = tag.as_ref().iter().map(|it| format!("{it:02x}")).collect();
    format!("sha256={hex}")
}

fn judge(answer: &Response<Bytes>, secrets: &Secrets) -> Result<(), SendError> {
    let status = answer.status();
    if status.is_success() {
        return Ok(());
    }
    if status.is_redirection() {
        return Err(SendError::Redirect(status.as_u16()));
    }
    let words = one_line(answer.body());
    let words = match words.is_empty() || secrets.are_in(&String::from_utf8_lossy(answer.body())) {
        true => String::new(),
        false => format!(": {words}"),
    };
    Err(SendError::Answer {
        status: status.as_u16(),
        words,
        retry_after: retry_after(answer.headers()),
    })
}

async fn run(argv: Argv, notice: &Notice, host: &str) -> Result<(), SendError> {
    let command = Program {
        path: argv.program,
        arguments: argv.arguments,
        variables: environment(notice, host),
        input: message::data(notice, host),
        inherits: Inherits::Everything,
        heard: Heard::BeginningOfErrors,
        background: Background::GoesOn,
    };
    let ended = spawn_blocking(move || {
        let ended = command.run(COMMAND_LIMIT, None);
        ended.map(|ended| (command.path.display().to_string(), ended))
    });
    let (program, ended) = ended.await??;
    if ended.status.success() {
        return Ok(());
    }
    let words = one_line(&ended.output);
    Err(SendError::CommandFailed {
        program,
        status: ended.status.to_string(),
        words: match words.is_empty() {
            true => words,
            false => format!(": {words}"),
        },
    })
}

/// For a command, however short the time of those that are spoken to by HTTP.
pub const COMMAND_LIMIT: Duration = Duration::from_secs(60);
const SIGNATURE: HeaderName = HeaderName::from_static("x-hub-signature-256");

#[cfg(test)]
mod tests {
    use super::*;
    use crate::settings::hooks::SecretSource;

    fn secret(text: &str) -> Secret {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("secret");
        crate::atomic_file::write(&path, text.as_bytes(), 0o600).unwrap();
        Secret::read(&SecretSource::File(path)).unwrap()
    }

    #[test]
    fn a_signature_is_what_openssl_says() {
        // printf body | openssl dgst -sha256 -hmac key
        assert_eq!(
            signature(&secret("key"), b"body"),
            "sha256=515aae133b435d4000956731f68ae5cf5eb85d4f0dc6a546d2bfcd3595ec1ae1"
        );
    }

    #[test]
    fn an_error_page_that_shows_the_path_is_not_repeated() {
        let secrets = Secrets {
            url: "https://hooks.example/services/T0/hunter2".parse().unwrap(),
            secret: Some(secret("tokentoken")),
            is_url_secret: true,
        };
        let error = |body: &'static str| {
            let mut answer = Response::new(Bytes::from_static(body.as_bytes()));
            *answer.status_mut() = http::StatusCode::NOT_FOUND;
            judge(&answer, &secrets).unwrap_err().to_string()
        };
        assert_eq!(error("no_service"), "deliver it: HTTP 404: no_service");
        assert_eq!(
            error("/services/T0/HUNTER2 was not found"),
            "deliver it: HTTP 404"
        );
        assert_eq!(error("bad token tokentoken"), "deliver it: HTTP 404");
    }
}
