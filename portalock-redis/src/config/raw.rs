//! Settings as they are in a configuration file, before they are checked.

use std::path::PathBuf;

use portalock_core::settings::{InvalidSetting, RawDuration};
use serde::Deserialize;

use super::{InvalidRedisSettings, RedisSettings};

#[derive(Deserialize)]
#[serde(deny_unknown_fields, rename = "RedisSettings")]
pub(super) struct RawSettings {
    url: String,
    sentinel_user: Option<String>,
    sentinel_password: Option<String>,
    prefix: Option<String>,
    label: Option<String>,
    session_ttl: Option<RawDuration>,
    restart_wait: Option<RawDuration>,
    release_without_notice: Option<bool>,
    tick_interval: Option<RawDuration>,
    connect_timeout: Option<RawDuration>,
    response_timeout: Option<RawDuration>,
    wait_replicas: Option<u32>,
    cluster_tags: Option<u16>,
    authority: Option<PathBuf>,
}

impl TryFrom<RawSettings> for RedisSettings {
    type Error = InvalidRedisSettings;

    fn try_from(raw: RawSettings) -> Result<Self, InvalidRedisSettings> {
        let mut settings = Self::new(&raw.url)?;
        match (raw.sentinel_user, raw.sentinel_password) {
            (user, Some(password)) => {
                settings = settings.with_sentinel_login(user.as_deref(), &password)?;
            }
            (None, None) => {}
            (Some(_), None) => {
                return Err(
                    InvalidSetting::new("sentinel_user", "needs a `sentinel_password`").into(),
                );
            }
        }
        if let Some(prefix) = raw.prefix {
            settings = settings.with_prefix(&prefix)?;
        }
        if let Some(label) = raw.label {
            settings = settings.with_label(label);
        }
        if let Some(ttl) = raw.session_ttl {
            settings = settings.with_session_ttl(ttl.check("session_ttl")?)?;
        }
        if let Some(wait) = raw.restart_wait {
            settings = settings.with_restart_wait(wait.check("restart_wait")?);
        }
        if let Some(at_once) = raw.release_without_notice {
            settings = settings.with_release_without_notice(at_once);
        }
        if let Some(interval) = raw.tick_interval {
            settings = settings.with_tick_interval(interval.check("tick_interval")?)?;
        }
        if let Some(timeout) = raw.connect_timeout {
            settings = settings.with_connect_timeout(timeout.check("connect_timeout")?)?;
        }
        if let Some(timeout) = raw.response_timeout {
            settings = settings.with_response_timeout(timeout.check("response_timeout")?)?;
        }
        if let Some(replicas) = raw.wait_replicas {
            settings = settings.with_wait_replicas(replicas);
        }
        if let Some(tags) = raw.cluster_tags {
            settings = settings.with_cluster_tags(tags)?;
        }
        if let Some(file) = raw.authority {
            settings = settings.with_authority(file);
        }
        Ok(settings)
    }
}
