//! How long a call waits, how often it tries, and how it handles failures.

use std::time::Duration;

use serde::{Deserialize, Serialize, Serializer};

use crate::settings::{InvalidSetting, RawDuration, positive, serialize_duration};

/// How an acquisition waits. The defaults are those of portalocker: a timeout of 5 s, and an attempt at least every 250
/// ms.
///
/// A policy loads from TOML or JSON with readable durations:
///
/// ```
/// use portalock_core::Policy;
/// use std::time::Duration;
///
/// let policy: Policy = toml::from_str(r#"timeout = "30s""#)?;
/// assert_eq!(policy.timeout(), Some(Duration::from_secs(30)));
/// assert_eq!(policy.check_interval(), Duration::from_millis(250));
///
/// let forever: Policy = toml::from_str(r#"timeout = "forever""#)?;
/// assert_eq!(forever.timeout(), None);
///
/// let error = toml::from_str::<Policy>("timeout = -1").unwrap_err();
/// assert!(error.to_string().contains("`timeout`"));
/// # Ok::<(), toml::de::Error>(())
/// ```
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(try_from = "RawPolicy")]
pub struct Policy {
    #[serde(serialize_with = "serialize_timeout")]
    timeout: Option<Duration>,
    #[serde(serialize_with = "serialize_duration")]
    check_interval: Duration,
    fail_when_locked: bool,
    #[serde(serialize_with = "serialize_duration")]
    first_check: Duration,
    jitter: f64,
    max_failures: u32,
}

/// A policy with an invalid value.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("the waiting policy is not valid: {0}")]
pub struct InvalidPolicy(#[from] InvalidSetting);

impl Policy {
    /// portalocker's `DEFAULT_TIMEOUT`.
    pub const DEFAULT_TIMEOUT: Duration = Duration::from_secs(5);
    /// portalocker's `DEFAULT_CHECK_INTERVAL`.
    pub const DEFAULT_CHECK_INTERVAL: Duration = Duration::from_millis(250);

    /// portalocker's defaults; the same as [`Policy::default`].
    pub const fn new() -> Self {
        Self {
            timeout: Some(Self::DEFAULT_TIMEOUT),
            check_interval: Self::DEFAULT_CHECK_INTERVAL,
            fail_when_locked: false,
            first_check: Duration::from_millis(1),
            jitter: 0.25,
            max_failures: 5,
        }
    }

    /// Waits without a time limit. If the service fails, the call still gives up after
    /// [`max_failures`](Self::max_failures).
    #[must_use]
    pub const fn forever() -> Self {
        let mut policy = Self::new();
        policy.timeout = None;
        policy
    }

    /// Sets the time after which a call gives up, including all requests to the service. Default 5 s.
    ///
    /// With zero the call makes one attempt and does not wait for a holder; the attempt may take a round trip, at most
    /// 5 s.
    #[must_use]
    pub const fn with_timeout(mut self, timeout: Duration) -> Self {
        self.timeout = Some(timeout);
        self
    }

    /// Sets the longest time between two attempts at a contended lock. Default 250 ms. If the backend wakes its
    /// waiters, this only matters when a wake-up is lost; a backend whose wake-ups are rarely lost may choose a longer time.
    ///
    /// # Errors
    ///
    /// [`InvalidPolicy`] if it is zero.
    pub fn with_check_interval(mut self, interval: Duration) -> Result<Self, InvalidPolicy> {
        self.check_interval = positive("check_interval", interval)?;
        Ok(self)
    }

    /// Sets whether a call fails at once if the lock is held, instead of waiting. Default false.
    #[must_use]
    pub const fn with_fail_when_locked(mut self, fail: bool) -> Self {
        self.fail_when_locked = fail;
        self
    }

    /// Sets the pause before the second attempt. Default 1 ms. Each later pause is twice as long, up to the check
    /// interval.
    ///
    /// # Errors
    ///
    /// [`InvalidPolicy`] if it is zero.
    pub fn with_first_check(mut self, first: Duration) -> Result<Self, InvalidPolicy> {
        self.first_check = positive("first_check", first)?;
        Ok(self)
    }

    /// Sets the largest fraction by which a pause is randomly shortened, so that waiters don't try at the same time: 0
    /// to 1. Default 0.25.
    ///
    /// # Errors
    ///
    /// [`InvalidPolicy`] if it is not from 0 to 1.
    pub fn with_jitter(mut self, jitter: f64) -> Result<Self, InvalidPolicy> {
        if !(0.0..=1.0).contains(&jitter) {
            return Err(InvalidSetting::new(
                "jitter",
                format!("is {jitter}: give a number from 0 to 1"),
            )
            .into());
        }
        self.jitter = jitter;
        Ok(self)
    }

    /// Sets how many failures of the service in a row are retried before the call gives up. Default 5, which takes
    /// about a second. Contention is not a failure.
    ///
    /// A call that has a place in the service's queue does not give up before the service would drop the place of a crashed client
    /// ([`Capabilities::crash_release`](crate::Capabilities::crash_release)). So a restart of the service costs no place in the
    /// queue.
    #[must_use]
    pub const fn with_max_failures(mut self, failures: u32) -> Self {
        self.max_failures = failures;
        self
    }

    /// The time after which a call gives up; `None` for never.
    pub const fn timeout(&self) -> Option<Duration> {
        self.timeout
    }

    /// The longest time between two attempts.
    pub const fn check_interval(&self) -> Duration {
        self.check_interval
    }

    /// Whether a call fails at once if the lock is held.
    pub const fn fail_when_locked(&self) -> bool {
        self.fail_when_locked
    }

    /// The pause before the second attempt.
    pub const fn first_check(&self) -> Duration {
        self.first_check
    }

    /// The largest fraction by which a pause is randomly shortened.
    pub const fn jitter(&self) -> f64 {
        self.jitter
    }

    /// How many failures in a row are retried.
    pub const fn max_failures(&self) -> u32 {
        self.max_failures
    }
}

impl Default for Policy {
    fn default() -> Self {
        Self::new()
    }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields, rename = "Policy")]
struct RawPolicy {
    timeout: Option<RawDuration>,
    check_interval: Option<RawDuration>,
    fail_when_locked: Option<bool>,
    first_check: Option<RawDuration>,
    jitter: Option<f64>,
    max_failures: Option<u32>,
}

impl TryFrom<RawPolicy> for Policy {
    type Error = InvalidPolicy;

    fn try_from(raw: RawPolicy) -> Result<Self, InvalidPolicy> {
        let mut policy = Self::new();
        match raw.timeout {
            None => {}
            Some(RawDuration::Text(text)) if text == "forever" => policy.timeout = None,
            Some(timeout) => policy.timeout = Some(timeout.check("timeout")?),
        }
        if let Some(interval) = raw.check_interval {
            policy = policy.with_check_interval(interval.check("check_interval")?)?;
        }
        if let Some(first) = raw.first_check {
            policy = policy.with_first_check(first.check("first_check")?)?;
        }
        if let Some(jitter) = raw.jitter {
            policy = policy.with_jitter(jitter)?;
        }
        if let Some(fail) = raw.fail_when_locked {
            policy.fail_when_locked = fail;
        }
        if let Some(failures) = raw.max_failures {
            policy.max_failures = failures;
        }
        Ok(policy)
    }
}

#[allow(clippy::ref_option, reason = "the signature is serde's")]
fn serialize_timeout<S: Serializer>(
    timeout: &Option<Duration>,
    serializer: S,
) -> Result<S::Ok, S::Error> {
    match timeout {
        Some(timeout) => serialize_duration(timeout, serializer),
        None => serializer.serialize_str("forever"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::settings::LONGEST;

    #[test]
    fn the_defaults_are_portalockers() {
        let policy: Policy = toml::from_str("").unwrap();
        assert_eq!(policy, Policy::default());
        assert_eq!(policy.timeout(), Some(Duration::from_secs(5)));
        assert_eq!(policy.check_interval(), Duration::from_millis(250));
        assert!(!policy.fail_when_locked());
    }

    #[test]
    fn a_policy_survives_a_round_trip() {
        let policy = Policy::forever()
            .with_max_failures(7)
            .with_fail_when_locked(true);
        let toml_text = toml::to_string(&policy).unwrap();
        assert_eq!(toml::from_str::<Policy>(&toml_text).unwrap(), policy);
        let json_text = serde_json::to_string(&policy).unwrap();
        assert_eq!(serde_json::from_str::<Policy>(&json_text).unwrap(), policy);
    }

    #[test]
    fn the_longest_durations_are_read_again_as_a_year() {
        let policy = Policy::new()
            .with_timeout(Duration::MAX)
            .with_check_interval(Duration::MAX)
            .unwrap();
        let text = toml::to_string(&policy).unwrap();
        let read: Policy = toml::from_str(&text).unwrap();
        assert_eq!(read.timeout(), Some(LONGEST));
        assert_eq!(read.check_interval(), LONGEST);
    }

    #[test]
    fn nonsense_is_refused_by_the_name_of_its_field() {
        for (field, json) in [
            ("timeout", r#"{"timeout": 5}"#),
            ("timeout", r#"{"timeout": "-5s"}"#),
            ("timeout", r#"{"timeout": "5 parsecs"}"#),
            ("timeout", r#"{"timeout": "900 years"}"#),
            ("timeout", r#"{"timeout": true}"#),
            ("timeout", r#"{"timeout": ["5s"]}"#),
            ("check_interval", r#"{"check_interval": "0s"}"#),
            ("first_check", r#"{"first_check": "0ms"}"#),
            ("jitter", r#"{"jitter": 1.5}"#),
            ("tiemout", r#"{"tiemout": "5s"}"#),
        ] {
            let error = serde_json::from_str::<Policy>(json)
                .expect_err(json)
                .to_string();
            assert!(error.contains(&format!("`{field}`")), "{json}: {error}");
        }
    }
}
