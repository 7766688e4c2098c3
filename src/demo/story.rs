//! What is told, in order: a file is dropped, changed, broken and mended. Each claim is proven by
//! a request of its own before the story goes on.

use std::io;
use std::time::{Duration, Instant};

use tokio::task::spawn_blocking;
use tokio::time::{sleep, timeout};

use super::app::App;
use super::browser::{Answer, Browser, get_plain};
use super::stage::{ASSET, NAME, Stage};
use super::watcher::Watcher;
use super::{Audience, Chapter, DemoError, Scene};
use crate::reconcile::report::{Outcome, Report};

pub(super) struct Story<'a, 'b> {
    // first, so that it is dropped first
    pub watcher: Watcher,
    pub stage: &'a Stage,
    pub audience: &'a mut Audience<'b>,
}

impl Story<'_, '_> {
    pub(super) async fn tell(&mut self, nginx_version: &str) -> Result<(), DemoError> {
        self.report_where("the daemon is ready", |report| report.nginx_running)
            .await?;
        let (blue, green) = (
            App::start("blue").map_err(DemoError::Port)?,
            App::start("green").map_err(DemoError::Port)?,
        );
        (self.audience)(Scene::Ready {
            stage: self.stage,
            nginx_version,
        });
        let browser = self.drop_file(&blue).await?;
        self.prove_manners(&browser).await?;
        (self.audience)(Scene::Status(self.stage));
        (self.audience)(Scene::Invitation(self.stage));
        let generation = self.change(&browser, &green).await?;
        self.break_file(&browser, &green, generation).await?;
        (self.audience)(Scene::Status(self.stage));
        self.mend(&green, generation).await
    }

    /// Shows what happens, until the daemon ends.
    pub(super) async fn stay(&mut self) -> Result<(), DemoError> {
        (self.audience)(Scene::Staying(self.stage));
        let mut rejected = Vec::new();
        loop {
            let report = self.watcher.report().await?;
            // a look that found nothing is not worth a word
            if report.outcome != Outcome::Unchanged || report.rejected != rejected {
                (self.audience)(Scene::Reconciled(&report));
            }
            rejected = report.rejected;
        }
    }

    async fn drop_file(&mut self, app: &App) -> Result<Browser, DemoError> {
        (self.audience)(Scene::Chapter(Chapter::Drop));
        let saved = self.save(&vhost_file(self.stage, app, "proxy_pass_url"), None)?;
        let claim = format!(
            "https://{NAME}:{}/ answers, and its certificate verifies",
            self.stage.https.port()
        );
        let root = self.stage.root_certificate();
        let browser = within(&claim, async {
            loop {
                match Browser::trusting(&root) {
                    Ok(browser) => return browser,
                    Err(_) => sleep(POLL).await,
                }
            }
        })
        .await?;
        let after = self.await_app(&claim, &browser, app, saved).await?;
        self.show_activations(&claim).await?;
        self.proved(&claim, Some(after));
        Ok(browser)
    }

    /// What every vhost gets without a key.
    async fn prove_manners(&mut self, browser: &Browser) -> Result<(), DemoError> {
        let (http, https) = (self.stage.http, self.stage.https);
        let claim = "the app is told the truth about who asks; a forged header does not reach it";
        let answer = self.get(claim, browser, "/", &[FORGED]).await?;
        let told = |line: &str| answer.body.contains(&format!("  {line}\n"));
        let truth = told("X-Forwarded-Proto: https") && told("X-Forwarded-For: 127.0.0.1");
        (self.audience)(Scene::Page(&answer.body));
        self.hold(claim, truth && !answer.body.contains("192.0.2.66"), &answer)?;

        let claim = "a fingerprinted file comes from disk, to be cached for a year";
        let path = format!("/{ASSET}");
        let answer = self.get(claim, browser, &path, &[]).await?;
        let cached = answer.header("cache-control") == Some(IMMUTABLE);
        self.hold(claim, cached && answer.body.starts_with("body {"), &answer)?;

        let claim = "plain HTTP leads to HTTPS";
        let answer = asked(claim, move || get_plain(http, NAME, "/a?b=c")).await?;
        let target = format!("https://{NAME}:{}/a?b=c", https.port());
        let leads = answer.status == 301 && answer.header("location") == Some(&target);
        self.hold(claim, leads, &answer)?;

        let claim = "a name that nobody serves is refused before any certificate is shown";
        let stranger = browser.clone();
        let refused = spawn_blocking(move || stranger.get(https, "stranger.localhost", "/", &[]));
        match refused.await {
            Ok(Err(error)) if error.to_string().contains("UnrecognisedName") => {
                self.proved(claim, None);
                Ok(())
            }
            Ok(Err(error)) => Err(unproven(claim, &error.to_string())),
            Ok(Ok(answer)) => Err(unproven(claim, &format!("{answer:?}"))),
            Err(error) => Err(unproven(claim, &error.to_string())),
        }
    }

    /// Returns the generation that serves from here on.
    async fn change(&mut self, browser: &Browser, app: &App) -> Result<u64, DemoError> {
        (self.audience)(Scene::Chapter(Chapter::Change));
        let saved = self.save(&vhost_file(self.stage, app, "proxy_pass_url"), Some(2))?;
        let claim = format!("{} answers now, at the same address", app.name);
        let after = self.await_app(&claim, browser, app, saved).await?;
        let generation = self.show_activations(&claim).await?;
        self.proved(&claim, Some(after));
        Ok(generation)
    }

    async fn break_file(
        &mut self,
        browser: &Browser,
        app: &App,
        generation: u64,
    ) -> Result<(), DemoError> {
        (self.audience)(Scene::Chapter(Chapter::Break));
        self.save(&vhost_file(self.stage, app, "proxy_pass_ulr"), Some(2))?;
        let claim = "the broken file is rejected, with its line and what was meant";
        let report = self
            .report_where(claim, |report| !report.rejected.is_empty())
            .await?;
        (self.audience)(Scene::Reconciled(&report));
        let rejected = &report.rejected[0];
        let named = rejected.line == Some(3)
            && rejected.stale
            && rejected.hint.as_deref() == Some("did you mean `proxy_pass_url`?");
        if !named {
            return Err(unproven(claim, &format!("{rejected:?}")));
        }
        self.proved(claim, None);
        let claim = format!(
            "{} still answers: generation {generation} was not touched",
            app.name
        );
        let answer = self.get(&claim, browser, "/", &[]).await?;
        let untouched = report.generation == generation && report.outcome == Outcome::Unchanged;
        self.hold(&claim, untouched && is_from(&answer, app), &answer)
    }

    async fn mend(&mut self, app: &App, generation: u64) -> Result<(), DemoError> {
        (self.audience)(Scene::Chapter(Chapter::Mend));
        self.save(&vhost_file(self.stage, app, "proxy_pass_url"), Some(2))?;
        let claim = "the mended file is what serves already, so nginx is not even reloaded";
        let report = self
            .report_where(claim, |report| report.rejected.is_empty())
            .await?;
        if report.generation != generation || report.outcome != Outcome::Unchanged {
            return Err(unproven(claim, &format!("{report:?}")));
        }
        self.proved(claim, None);
        Ok(())
    }

    fn save(&mut self, text: &str, changed: Option<usize>) -> Result<Instant, DemoError> {
        (self.audience)(Scene::Saved {
            file: &self.stage.vhost_file(),
            text,
            changed,
        });
        let saved = Instant::now();
        self.stage.drop_vhost(text)?;
        Ok(saved)
    }

    /// Until `app` answers over verified HTTPS; how long that took since `saved`.
    async fn await_app(
        &self,
        claim: &str,
        browser: &Browser,
        app: &App,
        saved: Instant,
    ) -> Result<Duration, DemoError> {
        let https = self.stage.https;
        let deadline = Instant::now() + LIMIT;
        loop {
            let browser = browser.clone();
            let answer = spawn_blocking(move || browser.get(https, NAME, "/", &[])).await;
            let seen = match answer {
                Ok(Ok(answer)) if is_from(&answer, app) => return Ok(saved.elapsed()),
                Ok(Ok(answer)) => format!("status {}", answer.status),
                Ok(Err(error)) => error.to_string(),
                Err(error) => error.to_string(),
            };
            if Instant::now() > deadline {
                return Err(unproven(claim, &seen));
            }
            sleep(POLL).await;
        }
    }

    /// Shows every activation up to the present one, at least one; returns its generation.
    async fn show_activations(&mut self, claim: &str) -> Result<u64, DemoError> {
        let activated = |report: &Report| report.outcome == Outcome::Activated;
        let mut last = self.report_where(claim, activated).await?;
        (self.audience)(Scene::Reconciled(&last));
        while let Some(report) = self.watcher.ready_report() {
            if activated(&report) {
                (self.audience)(Scene::Reconciled(&report));
                last = report;
            }
        }
        Ok(last.generation)
    }

    /// The next report that is as `wanted`; one with an error ends the demo.
    async fn report_where(
        &mut self,
        claim: &str,
        wanted: impl Fn(&Report) -> bool,
    ) -> Result<Report, DemoError> {
        within(claim, async {
            loop {
                let report = self.watcher.report().await?;
                if let Some(error) = &report.error {
                    return Err(unproven(claim, error));
                }
                if wanted(&report) {
                    return Ok(report);
                }
            }
        })
        .await?
    }

    async fn get(
        &self,
        claim: &str,
        browser: &Browser,
        path: &str,
        headers: &'static [&'static str],
    ) -> Result<Answer, DemoError> {
        let (browser, path, https) = (browser.clone(), path.to_owned(), self.stage.https);
        asked(claim, move || browser.get(https, NAME, &path, headers)).await
    }

    fn hold(&mut self, claim: &str, holds: bool, seen: &Answer) -> Result<(), DemoError> {
        if !holds {
            return Err(unproven(claim, &format!("{seen:?}")));
        }
        self.proved(claim, None);
        Ok(())
    }

    fn proved(&mut self, claim: &str, after: Option<Duration>) {
        (self.audience)(Scene::Proved { claim, after });
    }
}

/// The four keys; `upstream_key` may be misspelled.
fn vhost_file(stage: &Stage, app: &App, upstream_key: &str) -> String {
    format!(
        "server_name: \"{NAME}\"\nroot: \"{}\"\n{upstream_key}: \"{}\"\ncache_assets: true\n",
        stage.path("public").display(),
        app.url()
    )
}

fn is_from(answer: &Answer, app: &App) -> bool {
    let greeting = format!("Hello from {}\n", app.name);
    answer.status == 200 && answer.body.starts_with(&greeting)
}

async fn asked(
    claim: &str,
    ask: impl FnOnce() -> io::Result<Answer> + Send + 'static,
) -> Result<Answer, DemoError> {
    match spawn_blocking(ask).await {
        Ok(Ok(answer)) => Ok(answer),
        Ok(Err(error)) => Err(unproven(claim, &error.to_string())),
        Err(error) => Err(unproven(claim, &error.to_string())),
    }
}

async fn within<T>(claim: &str, what: impl Future<Output = T>) -> Result<T, DemoError> {
    let seen = format!("it did not happen within {} s", LIMIT.as_secs());
    timeout(LIMIT, what)
        .await
        .map_err(|_| unproven(claim, &seen))
}

fn unproven(claim: &str, seen: &str) -> DemoError {
    DemoError::Unproven {
        claim: claim.to_owned(),
        seen: seen.to_owned(),
    }
}

const FORGED: &str = "X-Forwarded-For: 192.0.2.66";
const IMMUTABLE: &str = "public, max-age=31536000, immutable";
const LIMIT: Duration = Duration::from_secs(30);
const POLL: Duration = Duration::from_millis(2);
