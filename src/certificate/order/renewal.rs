//! N: asking the CA when it wants a certificate renewed (RFC 9773 §4).

use super::AcmeClient;
use crate::certificate::renewal_info::{NoWindow, RenewalId, Reply, Window};

impl AcmeClient {
    /// Never an error: without an answer the certificate's lifetime decides.
    pub async fn renewal_info(&self, id: &RenewalId) -> Reply {
        let failed = |retry_after| Reply {
            window: Err(NoWindow::Failed),
            retry_after,
        };
        let session = match self.session().await {
            Ok(session) => session,
            Err(error) => {
                tracing::debug!("no renewal information: failed to {error}");
                return failed(None);
            }
        };
        let Some(base) = session.renewal_info else {
            return Reply {
                window: Err(NoWindow::Unsupported),
                retry_after: None,
            };
        };
        // §4.1
        let url = format!("{}/{}", base.trim_end_matches('/'), id.as_str());
        let (body, retry_after) = match self.shared.http.get(&url).await {
            Ok(answer) => answer,
            Err(error) => {
                tracing::info!("no renewal information: {error}");
                return failed(error.retry_after());
            }
        };
        match Window::parse(&body) {
            Ok(window) => Reply {
                window: Ok(window),
                retry_after,
            },
            Err(reason) => {
                tracing::warn!("no renewal information: {reason}");
                failed(retry_after)
            }
        }
    }
}
