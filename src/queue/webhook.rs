use std::time::Duration;

use hmac::{Hmac, KeyInit, Mac};
use serde_json::{Value, json};
use sha2::Sha256;

use super::Job;
use crate::base::{Backoff, Seconds, Timestamp};

/// After so many tries a webhook is given up: about a day with the pauses below.
const MAX_TRIES: u32 = 30;
const PATIENCE: Duration = Duration::from_secs(10);

/// Tells the world how jobs ended. What is sent carries `webhook-id`, `webhook-timestamp` and `webhook-signature` as the
/// Standard Webhooks specification has them: the id is the same for every try, so that a receiver can tell them apart
/// from news.
pub struct WebhookSender {
    client: reqwest::Client,
    secret: Option<Vec<u8>>,
}

impl WebhookSender {
    /// Without a secret nothing is signed.
    pub fn new(client: reqwest::Client, secret: Option<Vec<u8>>) -> Self {
        Self { client, secret }
    }

    /// The pause until the next try; none when it was accepted or is given up.
    pub(super) async fn send(&self, job: &Job, tries: u32) -> Option<Duration> {
        let url = job.submission.webhook.as_deref()?;
        let body = body(job).to_string();
        let id = format!("{}.{}", job.id, job.claims);
        let seconds = Timestamp::now().as_millis() / 1_000;
        let mut request = self
            .client
            .post(url)
            .timeout(PATIENCE)
            .header("content-type", "application/json")
            .header("webhook-id", &id)
            .header("webhook-timestamp", seconds);
        for (name, value) in job.submission.trace().headers() {
            request = request.header(name, value);
        }
        if let Some(secret) = &self.secret {
            request = request.header("webhook-signature", signature(secret, &id, seconds, &body));
        }
        let why = match request.body(body).send().await {
            Ok(answer) if answer.status().is_success() => return None,
            // Gone: the receiver wants no more.
            Ok(answer) if answer.status().as_u16() == 410 => return None,
            Ok(answer) => format!("it answered {}", answer.status()),
            Err(cause) => cause.without_url().to_string(),
        };
        if tries >= MAX_TRIES {
            tracing::warn!(job = %job.id, "its webhook is given up after {tries} tries: {why}");
            return None;
        }
        tracing::info!(job = %job.id, "its webhook was not accepted, try {tries}: {why}");
        let backoff = Backoff { initial: Seconds::from_secs(1), max: Seconds::from_secs(3_600), ..Backoff::default() };
        Some(backoff.random_delay(tries))
    }
}

fn body(job: &Job) -> Value {
    let mut data = json!({
        "id": job.id, "service": job.submission.service, "state": job.state, "submitted": job.submitted,
        "finished": job.finished, "attempts": job.attempts,
    });
    let fields = data.as_object_mut().expect("UNWRAP: made as an object above");
    let mut add = |name: &str, value: Option<Value>| drop(value.map(|value| fields.insert(name.to_owned(), value)));
    add("result", job.result.clone());
    add("result_blob", job.result_blob.as_ref().map(|blob| json!(blob)));
    add("failure", job.failure.as_ref().map(|failure| json!(failure)));
    add("customer", job.submission.customer.as_ref().map(|customer| json!(customer)));
    add("workflow", job.submission.workflow.as_ref().map(|workflow| json!(workflow)));
    json!({ "type": format!("job.{}", job.state), "timestamp": Timestamp::now(), "data": data })
}

fn signature(secret: &[u8], id: &str, seconds: u64, body: &str) -> String {
    use base64::Engine as _;
    let mut mac = Hmac::<Sha256>::new_from_slice(secret).expect("UNWRAP: HMAC takes keys of any length");
    mac.update(format!("{id}.{seconds}.{body}").as_bytes());
    format!("v1,{}", base64::engine::general_purpose::STANDARD.encode(mac.finalize().into_bytes()))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The example of the Standard Webhooks specification.
    #[test]
    fn signatures_are_those_of_the_specification() {
        use base64::Engine as _;
        let secret = base64::engine::general_purpose::STANDARD.decode("MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw").unwrap();
        let body = r#"{"test": 2432232314}"#;
        let signed = signature(&secret, "msg_p5jXN8AQM9LWM0D4loKWxJek", 1_614_265_330, body);
        assert_eq!(signed, "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE=");
    }
}
